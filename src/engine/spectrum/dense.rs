//! The strongest directions of a whole weight.

use faer::{Mat, MatRef};

use crate::engine::Result;
use crate::engine::random::Philox;
use crate::engine::spectrum::Svd;
use crate::engine::spectrum::lowrank::{fix_signs, no_convergence};

/// Up to this many rows or columns the whole SVD takes a fraction of a second.
const SMALL: usize = 384;
/// Directions sought beyond those asked for, and passes over the weight (Halko, Martinsson & Tropp 2011, §4.3–4.5).
const OVERSAMPLE: usize = 10;
const POWER: usize = 4;

/// The `rank` largest singular values of `weight [out, in]`, row-major, with their vectors; fewer where the weight has
/// fewer. Exact up to a size, beyond it by a randomised range finder of fixed seed.
pub fn strongest(weight: &[f32], [out, input]: [usize; 2], rank: usize) -> Result<Svd> {
    let w = MatRef::from_row_major_slice(weight, out, input).map(|&x| f64::from(x));
    let (few, sought) = (out.min(input), rank + OVERSAMPLE);
    if few <= SMALL || 2 * sought >= few {
        return thin(w.as_ref(), rank);
    }
    let start = Philox::new(0).normal(0, input * sought);
    let mut q = &w * MatRef::from_row_major_slice(&start, input, sought).map(|&x| f64::from(x));
    for _ in 0..POWER {
        q = q.qr().compute_thin_Q();
        q = &w * (w.transpose() * q).qr().compute_thin_Q();
    }
    let q = q.qr().compute_thin_Q();
    let Svd { u, s, v } = thin((q.transpose() * &w).as_ref(), rank)?;
    let mut svd = Svd { u: q * u, s, v };
    fix_signs(&mut svd);
    Ok(svd)
}

fn thin(w: MatRef<'_, f64>, rank: usize) -> Result<Svd> {
    let all = w.thin_svd().map_err(no_convergence)?;
    let k = rank.min(all.S().column_vector().nrows());
    let first = |m: MatRef<'_, f64>| -> Mat<f64> { m.subcols(0, k).to_owned() };
    let s = all.S().column_vector().iter().take(k).copied().collect();
    let mut svd = Svd { u: first(all.U()), s, v: first(all.V()) };
    fix_signs(&mut svd);
    Ok(svd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_randomised_way_finds_what_the_exact_one_does() {
        // A falling spectrum, as weights have.
        let (out, input, rank) = (400, 500, 6);
        let values = |seed: u64, n: usize| Philox::new(seed).normal(0, n);
        let (u, v) = (values(1, out * 60), values(2, 60 * input));
        let weight: Vec<f32> = (0..out * input)
            .map(|at| {
                let (o, i) = (at / input, at % input);
                (0..60).map(|k| u[o * 60 + k] * v[k * input + i] * 0.85_f32.powi(k as i32)).sum()
            })
            .collect();
        let exact = thin(MatRef::from_row_major_slice(&weight, out, input).map(|&x| f64::from(x)).as_ref(), rank);
        let (exact, found) = (exact.unwrap(), strongest(&weight, [out, input], rank).unwrap());
        for k in 0..rank {
            assert!((found.s[k] / exact.s[k] - 1.0).abs() < 1e-6, "{k}: {} and {}", found.s[k], exact.s[k]);
            for (a, b) in [(&found.u, &exact.u), (&found.v, &exact.v)] {
                assert!((a.col(k) - b.col(k)).norm_l2() < 1e-4, "direction {k}");
            }
        }
    }
}
