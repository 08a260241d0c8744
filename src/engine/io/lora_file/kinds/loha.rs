//! LoHa: `ΔW = alpha/r · (w1a·w1b) ∘ (w2a·w2b)`, for convolutions also with Tucker's cores.

use crate::engine::io::lora_file::kinds::Read;
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong, room};
use crate::engine::io::lora_file::{Difference, LoraLayer};

pub fn read(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let [w1a, w1b, w2a, w2b] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].map(|name| parts.array(name));
    let (w1a, w1b, w2a, w2b) = (w1a?, w1b?, w2a?, w2b?);
    let scale = f64::from(parts.alpha(w1b.rows())?) / w1b.rows() as f64;
    let (first, second) = match (parts.maybe("hada_t1")?, parts.maybe("hada_t2")?) {
        (Some(t1), Some(t2)) => (with_core(&t1, &w1a, &w1b)?, with_core(&t2, &w2a, &w2b)?),
        (None, None) => match factored([&w1a, &w1b, &w2a, &w2b], scale)? {
            Some(pair) => return Ok(Read::Pair(pair)),
            None => (product(&w1a, &w1b)?, product(&w2a, &w2b)?),
        },
        _ => return Err("one of its cores is missing".into()),
    };
    if first.shape != second.shape {
        return Err(format!("its halves have the shapes {:?} and {:?}", first.shape, second.shape));
    }
    let product = first.values.iter().zip(&second.values);
    let weight = product.map(|(&a, &b)| (scale * f64::from(a) * f64::from(b)) as f32).collect();
    Ok(Read::Whole(Difference { weight, shape: first.shape, bias: None }))
}

/// The product of products is a product of more columns (Khatri and Rao's): `up[o,(p,q)] = w1a[o,p]·w2a[o,q]`,
/// `down[(p,q),i] = w1b[p,i]·w2b[q,i]`. `None` where they are too many to be worth it.
fn factored([w1a, w1b, w2a, w2b]: [&Array; 4], scale: f64) -> Result<Option<LoraLayer>, Wrong> {
    let (out, input) = (w1a.rows(), w1b.columns());
    let (p, q) = (w1b.rows(), w2b.rows());
    if w1a.columns() != p || w2a.columns() != q || w2a.rows() != out || w2b.columns() != input {
        return Err("its factors do not belong together".into());
    }
    room(&[out, input])?;
    let rank = p * q;
    if 2 * rank > out.min(input) {
        return Ok(None);
    }
    let up =
        (0..out).flat_map(|o| w1a.row(o).iter().flat_map(move |a| w2a.row(o).iter().map(move |b| a * b))).collect();
    let down = (0..p).flat_map(|p| (0..q).map(move |q| (p, q)));
    let down = down.flat_map(|(p, q)| w1b.row(p).iter().zip(w2b.row(q)).map(|(a, b)| a * b)).collect();
    let alpha = (scale * rank as f64) as f32;
    Ok(Some(LoraLayer { down, up, rank, alpha, down_shape: vec![rank, input], up_shape: vec![out, rank] }))
}

/// `a·b`, `[out, in]`.
pub fn product(a: &Array, b: &Array) -> Result<Array, Wrong> {
    let (out, rank, input) = (a.rows(), b.rows(), b.columns());
    if a.columns() != rank {
        return Err(format!("its factors {:?} and {:?} do not belong together", a.shape, b.shape));
    }
    let mut values = Vec::with_capacity(room(&[out, input])?);
    for o in 0..out {
        let mut sums = vec![0.0_f64; input];
        for (r, &a) in a.row(o).iter().enumerate() {
            sums.iter_mut().zip(b.row(r)).for_each(|(sum, &b)| *sum += f64::from(a) * f64::from(b));
        }
        values.extend(sums.into_iter().map(|sum| sum as f32));
    }
    Ok(Array { values, shape: [&[out], &b.shape[1..]].concat() })
}

/// `Σ t[i,j,…] · a[i,o] · b[j,c]`, `[out, channels, kh, kw]`.
pub fn with_core(t: &Array, a: &Array, b: &Array) -> Result<Array, Wrong> {
    let [i, j, height, width] = t.axes("core")?;
    if (a.rows(), b.rows()) != (i, j) {
        return Err(format!("its core {:?} does not belong to {:?} and {:?}", t.shape, a.shape, b.shape));
    }
    let (out, channels, taps) = (a.columns(), b.columns(), height * width);
    let mut sums = vec![0.0_f64; room(&[out, channels, taps])?];
    for i in 0..i {
        // Σⱼ t[i,j,…]·b[j,c]: the same for every row of the result.
        let mut read = vec![0.0_f64; channels * taps];
        for (j, t) in t.row(i).chunks_exact(taps).enumerate() {
            for (sum, &b) in read.chunks_exact_mut(taps).zip(b.row(j)) {
                sum.iter_mut().zip(t).for_each(|(sum, &t)| *sum += f64::from(t) * f64::from(b));
            }
        }
        for (sum, &a) in sums.chunks_exact_mut(channels * taps).zip(a.row(i)) {
            sum.iter_mut().zip(&read).for_each(|(sum, read)| *sum += f64::from(a) * read);
        }
    }
    Ok(Array { values: sums.into_iter().map(|sum| sum as f32).collect(), shape: vec![out, channels, height, width] })
}
