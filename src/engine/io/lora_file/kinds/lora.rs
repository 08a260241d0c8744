//! LoRA and LoCon: `ΔW = alpha/r · up · down`, for convolutions also with Tucker's core between the two.

use crate::engine::io::lora_file::LoraLayer;
use crate::engine::io::lora_file::kinds::Read;
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong, room};

pub fn read(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let (down, up) = (side(parts, "lora_down", "down")?, side(parts, "lora_up", "up")?);
    let fits = matches!(
        (&down.shape[..], &up.shape[..]),
        ([rank, _], [_, r]) | ([rank, _, _, _], [_, r, 1, 1]) if rank == r
    );
    if !fits {
        return Err(format!("down {:?} and up {:?} do not belong together", down.shape, up.shape));
    }
    let rank = down.rows();
    let down = match parts.maybe("lora_mid")? {
        Some(core) => through(&core, &down)?,
        None => down,
    };
    let alpha = parts.alpha(rank)?;
    let (down, down_shape) = (down.values, down.shape);
    Ok(Read::Pair(LoraLayer { down, up: up.values, rank, alpha, down_shape, up_shape: up.shape }))
}

fn side(parts: &Parts<'_>, part: &'static str, name: &str) -> Result<Array, Wrong> {
    parts.maybe(part)?.ok_or_else(|| format!("its {name} side is missing"))
}

/// `down'[m,i,…] = Σₙ core[m,n,…] · down[n,i]`: the core joins the read side, and the pair stays as narrow as it was.
fn through(core: &Array, down: &Array) -> Result<Array, Wrong> {
    let [m, n, height, width] = core.axes("core")?;
    let (rank, input) = (down.rows(), down.columns());
    if (m, n) != (rank, rank) || down.shape[2..].iter().any(|&side| side != 1) {
        return Err(format!("its core {:?} does not belong to down {:?}", core.shape, down.shape));
    }
    let taps = height * width;
    let mut values = vec![0.0; room(&[m, input, taps])?];
    for (row, to) in values.chunks_exact_mut(input * taps).enumerate() {
        let mut sums = vec![0.0_f64; input * taps];
        for (n, core) in core.row(row).chunks_exact(taps).enumerate() {
            for (sum, &d) in sums.chunks_exact_mut(taps).zip(down.row(n)) {
                sum.iter_mut().zip(core).for_each(|(sum, &c)| *sum += f64::from(c) * f64::from(d));
            }
        }
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum as f32);
    }
    Ok(Array { values, shape: vec![m, input, height, width] })
}
