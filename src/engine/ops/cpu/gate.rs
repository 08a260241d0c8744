//! `value · GELU(gate)` in one pass, forwards and backwards.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;

/// Numbers of the rows that a thread takes at a time.
const GRAIN: usize = 1 << 13;

/// `x [rows, 2·width] → [rows, width]`.
pub fn geglu(x: &[f32], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / 2];
    let rows = GRAIN.div_ceil(width.max(1));
    y.par_chunks_mut((rows * width).max(1))
        .zip(x.par_chunks((rows * 2 * width).max(1)))
        .for_each(|(y, x)| Arch::new().dispatch(Forward { x, y, width }));
    y
}

/// The gradient of `x` from `g [rows, width]`.
pub fn backward(x: &[f32], g: &[f32], width: usize) -> Vec<f32> {
    let mut by_x = vec![0.0; x.len()];
    let rows = GRAIN.div_ceil(width.max(1));
    let both = (rows * 2 * width).max(1);
    by_x.par_chunks_mut(both)
        .zip(x.par_chunks(both))
        .zip(g.par_chunks((rows * width).max(1)))
        .for_each(|((by_x, x), g)| Arch::new().dispatch(Backward { x, g, by_x, width }));
    by_x
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    width: usize,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (x, y) in self.x.chunks_exact(2 * self.width).zip(self.y.chunks_exact_mut(self.width)) {
            let (values, gates) = x.split_at(self.width);
            for ((y, &value), &gate) in y.iter_mut().zip(values).zip(gates) {
                *y = value * gate * normal(gate)[0];
            }
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    g: &'a [f32],
    by_x: &'a mut [f32],
    width: usize,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// GELU is `x·Φ(x)`, its slope `Φ(x) + x·φ(x)`.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.width;
        let rows = self.x.chunks_exact(2 * width).zip(self.g.chunks_exact(width));
        for ((x, g), by_x) in rows.zip(self.by_x.chunks_exact_mut(2 * width)) {
            let ((values, gates), (by_values, by_gates)) = (x.split_at(width), by_x.split_at_mut(width));
            let read = values.iter().zip(gates).zip(g);
            for (((&value, &gate), &g), (by_value, by_gate)) in read.zip(by_values.iter_mut().zip(by_gates)) {
                let [below, density] = normal(gate);
                *by_value = g * gate * below;
                *by_gate = g * value * (below + gate * density);
            }
        }
    }
}

/// The normal distribution's `Φ(x)` and its density `φ(x)`, to 3e-7: Abramowitz & Stegun 7.1.26.
#[inline(always)]
fn normal(x: f32) -> [f32; 2] {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let e = exp(-z * z);
    let tail =
        ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t + 0.254_829_6) * t * e * 0.5;
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    [below, e * 0.398_942_3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_normal_distribution() {
        for i in -1000..=1000 {
            let x = i as f32 * 0.01;
            let exact = 0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
            assert!((f64::from(normal(x)[0]) - exact).abs() < 3e-7, "Φ({x})");
        }
    }
}
