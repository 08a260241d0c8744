//! The strongest directions of a full matrix, without its whole SVD.
//!
//! Randomised range finder with power iterations (Halko, Martinsson & Tropp, *SIAM Review* 53, 2011, algorithms 4.4 and
//! 5.1): a Gaussian sketch `Y = (ΔW ΔWᵀ)^q ΔW Ω`, an orthonormal basis Q of it, then the exact SVD of the thin
//! `Q · QᵀΔW`. What is lost is known exactly: `‖ΔW − Q_k Q_kᵀΔW‖² = ‖ΔW‖² − Σσ²`.

use faer::{Mat, MatRef};

use super::{LowRank, Svd};
use crate::engine::Result;
use crate::engine::random::Philox;

/// Up to this many rows or columns the whole SVD takes milliseconds.
const SMALL: usize = 256;
/// Directions beyond those asked for, so that the last of them are right too.
const OVERSAMPLING: usize = 10;
/// After TIES a spectrum falls slowly; two rounds bring the error of the k-th direction below a percent of it.
const POWER_ITERATIONS: usize = 2;
/// The sketch is a function of the shape alone: equal inputs make equal bytes.
const SEED: u64 = 0x5ec7;

/// At least the `k` strongest directions of `delta`, all of them where it is small.
pub fn leading(delta: MatRef<'_, f64>, k: usize) -> Result<Svd> {
    let (out, input) = delta.shape();
    let width = k + OVERSAMPLING;
    if out.min(input) <= SMALL.max(2 * width) {
        return LowRank::from_dense(delta.to_owned()).svd();
    }
    let noise = Philox::new(SEED);
    let omega = Mat::from_fn(input, width, |i, j| noise.normal_f64(j as u32, i as u32));
    let mut q = (delta * omega).qr().compute_thin_Q();
    for _ in 0..POWER_ITERATIONS {
        // Orthonormal after every product: powers of σ would drown the weaker directions in rounding.
        let z = (delta.transpose() * &q).qr().compute_thin_Q();
        q = (delta * z).qr().compute_thin_Q();
    }
    let down = q.transpose() * delta;
    LowRank::of(q, down).svd()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| Philox::new(seed).normal_f64(j as u32, i as u32))
    }

    /// σᵢ = 0.9ⁱ in random directions.
    fn falling(out: usize, input: usize) -> Mat<f64> {
        let (u, v) = (gaussian(out, out, 1).qr().compute_Q(), gaussian(input, input, 2).qr().compute_Q());
        let n = out.min(input);
        let s = Mat::from_fn(n, n, |i, j| if i == j { 0.9_f64.powi(i as i32) } else { 0.0 });
        u.subcols(0, n) * s * v.subcols(0, n).transpose()
    }

    #[test]
    fn the_sketch_finds_what_the_whole_svd_finds() {
        for (out, input) in [(300, 260), (258, 340)] {
            let delta = falling(out, input);
            let svd = leading(delta.as_ref(), 8).unwrap();
            assert!(svd.s.len() < out.min(input), "the sketch was not used");
            for (i, s) in svd.s.iter().take(8).enumerate() {
                assert!((s / 0.9_f64.powi(i as i32) - 1.0).abs() < 1e-4, "{i}: {s}");
            }
            let kept = svd.truncated(8).dense();
            let best: f64 = (8..out.min(input)).map(|i| 0.81_f64.powi(i as i32)).sum();
            let lost = (&delta - &kept).squared_norm_l2();
            assert!(lost < best * 1.001, "{lost} instead of {best}");
            let known = delta.squared_norm_l2() - svd.s.iter().take(8).map(|s| s * s).sum::<f64>();
            assert!((lost - known).abs() < 1e-10, "{lost} reported as {known}");
        }
    }

    #[test]
    fn small_and_flat_matrices_are_exact() {
        for (out, input) in [(1, 7), (7, 1), (12, 9), (9, 12)] {
            let delta = gaussian(out, input, 3);
            let svd = leading(delta.as_ref(), 2).unwrap();
            assert!((svd.truncated(out.min(input)).dense() - &delta).norm_max() < 1e-12);
        }
        let nothing = leading(Mat::zeros(100, 80).as_ref(), 4).unwrap();
        assert!(nothing.s.iter().all(|&s| s == 0.0) && nothing.u.is_all_finite());
    }
}
