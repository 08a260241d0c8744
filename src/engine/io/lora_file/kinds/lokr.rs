//! LoKr: `ΔW = s · w1 ⊗ w2`, either of them a product of its own.
//!
//! `s` is alpha/r where a factor is a product, with r from its read side and w2's before w1's, and 1 where both are whole:
//! LyCORIS stores an alpha that means nothing then. PEFT always divides.

use crate::engine::io::lora_file::kinds::{Read, loha};
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong, room};
use crate::engine::io::lora_file::{Difference, LoraLayer};

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
    if w1.shape.get(2..).is_some_and(|rest| rest.iter().any(|&side| side != 1)) {
        return Err(format!("its w1 has the shape {:?}", w1.shape));
    }
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
    Ok(Read::Whole(kronecker(&w1, &w2, scale)?))
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
    let up = kronecker(w1, a, 1.0)?.weight;
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

/// `s · w1 ⊗ w2`, where w2 may carry a kernel: `[o₁·o₂, i₁·i₂, kh, kw]`.
fn kronecker(w1: &Array, w2: &Array, scale: f64) -> Result<Difference, Wrong> {
    let (out, columns) = (room(&[w1.rows(), w2.rows()])?, room(&[w1.columns(), w2.columns()])?);
    let mut weight = Vec::with_capacity(room(&[out, columns])?);
    for i in 0..w1.rows() {
        for k in 0..w2.rows() {
            for &a in w1.row(i) {
                let a = scale * f64::from(a);
                weight.extend(w2.row(k).iter().map(|&b| (a * f64::from(b)) as f32));
            }
        }
    }
    let inner = w2.shape.get(1).copied().unwrap_or(1);
    let shape = [&[out, w1.columns() * inner], w2.shape.get(2..).unwrap_or(&[])].concat();
    Ok(Difference { weight, shape, bias: None })
}
