//! LoKr: `ΔW = s · w1 ⊗ w2`, either of them a product of its own.
//!
//! `s` is alpha/r where a factor is a product, with r from its read side and w2's before w1's, and 1 where both are whole:
//! LyCORIS stores an alpha that means nothing then. PEFT always divides.

use crate::engine::io::lora_file::LoraLayer;
use crate::engine::io::lora_file::kinds::{Read, loha};
use crate::engine::io::lora_file::kronecker::Kronecker;
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong, room};

pub fn read(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let mut rank = None;
    let w1 = if let Some(w1) = parts.maybe("lokr_w1")? {
        w1
    } else {
        let (a, b) = (parts.array("lokr_w1_a")?, parts.array("lokr_w1_b")?);
        rank = Some(b.rows());
        loha::product(&a, &b)?
    };
    let halves = match parts.maybe("lokr_w2")? {
        Some(_) => None,
        None => Some((parts.array("lokr_w2_a")?, parts.array("lokr_w2_b")?)),
    };
    if let Some((_, b)) = &halves {
        rank = Some(b.rows());
    }
    let scale = match rank.or(parts.numbers.rank) {
        Some(rank) => f64::from(parts.alpha(rank)?) / rank as f64,
        None => 1.0,
    };
    let w2 = match (halves, parts.maybe("lokr_t2")?) {
        (None, _) => parts.array("lokr_w2")?,
        (Some((a, b)), Some(t)) => loha::with_core(&t, &a, &b)?,
        (Some((a, b)), None) => {
            if let Some(pair) = factored(&w1, &a, &b, scale)? {
                return Ok(Read::Pair(pair));
            }
            loha::product(&a, &b)?
        }
    };
    Ok(Read::Kronecker(Kronecker::new(w1, w2, scale)?))
}

/// `kron(w1, a) · kron(I, b)`: as many directions as w1 has columns, times those of `a·b`. `None` where they are too many
/// to be worth it.
fn factored(w1: &Array, a: &Array, b: &Array, scale: f64) -> Result<Option<LoraLayer>, Wrong> {
    let (o1, i1, o2, r, i2) = (w1.rows(), w1.columns(), a.rows(), b.rows(), b.columns());
    if a.columns() != r {
        return Err(format!("its w2 factors {:?} and {:?} do not belong together", a.shape, b.shape));
    }
    let (out, input, rank) = (room(&[o1, o2])?, room(&[i1, i2])?, room(&[i1, r])?);
    room(&[out, input])?;
    if 2 * rank > out.min(input) {
        return Ok(None);
    }
    let up = Kronecker::new(w1.clone(), a.clone(), 1.0)?.product().weight;
    let mut down = vec![0.0; rank * input];
    for block in 0..i1 {
        for k in 0..r {
            let at = (block * r + k) * input + block * i2;
            down[at..at + i2].copy_from_slice(b.row(k));
        }
    }
    let alpha = (scale * rank as f64) as f32;
    Ok(Some(LoraLayer { down, up, rank, alpha, down_shape: vec![rank, input], up_shape: vec![out, rank] }))
}
