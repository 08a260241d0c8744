//! Normalisation in one pass, forwards and backwards.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::sigmoid;

/// Numbers that are worth a thread's while.
const GRAIN: usize = 1 << 14;
/// Sums run side by side, as one after the other would wait for each addition.
const LANES: usize = 16;

#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub gain: &'a [f32],
    pub offset: &'a [f32],
    pub eps: f32,
}

/// `x [b, c, h, w]` over each of `groups` groups of channels, then SiLU where asked.
pub fn group_norm(x: &[f32], norm: Norm<'_>, shape: [usize; 4], groups: usize, silu: bool) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let (len, pixels) = group(shape, groups);
    y.par_chunks_mut(len).zip(x.par_chunks(len)).enumerate().with_min_len(GRAIN.div_ceil(len)).for_each(
        |(i, (y, x))| {
            Arch::new().dispatch(Forward { x, y, norm, channel: i % groups * (len / pixels), pixels, silu });
        },
    );
    y
}

/// The gradient of `x` from `g`, that of the result.
pub fn group_norm_backward(
    x: &[f32],
    g: &[f32],
    norm: Norm<'_>,
    shape: [usize; 4],
    groups: usize,
    silu: bool,
) -> Vec<f32> {
    let mut by_x = vec![0.0; x.len()];
    let (len, pixels) = group(shape, groups);
    let parts = by_x.par_chunks_mut(len).zip(x.par_chunks(len)).zip(g.par_chunks(len)).enumerate();
    parts.with_min_len(GRAIN.div_ceil(len)).for_each(|(i, ((by_x, x), g))| {
        Arch::new().dispatch(Backward { x, g, by_x, norm, channel: i % groups * (len / pixels), pixels, silu });
    });
    by_x
}

/// Numbers of a group, and of one of its channels.
fn group([_, c, h, w]: [usize; 4], groups: usize) -> (usize, usize) {
    ((c / groups * h * w).max(1), (h * w).max(1))
}

/// Mean, and one over the deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> [f32; 2] {
    let n = x.len() as f32;
    let mean = sum(
        x,
        #[inline(always)]
        |x| x,
    ) / n;
    let variance = sum(
        x,
        #[inline(always)]
        |x| (x - mean) * (x - mean),
    ) / n;
    [mean, (variance + eps).sqrt().recip()]
}

#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += f(chunk[i]);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>()
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    norm: Norm<'a>,
    /// The group's first.
    channel: usize,
    pixels: usize,
    silu: bool,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, y, norm, channel, pixels, silu } = self;
        let [mean, r] = moments(x, norm.eps);
        for (i, (x, y)) in x.chunks_exact(pixels).zip(y.chunks_exact_mut(pixels)).enumerate() {
            let gain = norm.gain[channel + i] * r;
            let offset = norm.offset[channel + i] - mean * gain;
            match silu {
                false => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * gain + offset),
                true => y.iter_mut().zip(x).for_each(|(y, &x)| {
                    let z = x * gain + offset;
                    *y = z * sigmoid(z);
                }),
            }
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    g: &'a [f32],
    by_x: &'a mut [f32],
    norm: Norm<'a>,
    channel: usize,
    pixels: usize,
    silu: bool,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    /// As `GroupNorm::group_norm_backward` says it.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, g, by_x, norm, channel, pixels, silu } = self;
        let [mean, r] = moments(x, norm.eps);
        let n = x.len() as f32;
        let (mut total, mut along) = ([0.0; LANES], [0.0; LANES]);
        for (i, x) in x.chunks_exact(pixels).enumerate() {
            let (gain, offset) = (norm.gain[channel + i], norm.offset[channel + i]);
            let by_normal = &mut by_x[i * pixels..][..pixels];
            by_normal.copy_from_slice(&g[i * pixels..][..pixels]);
            for (to, &x) in by_normal.iter_mut().zip(x) {
                let z = (x - mean) * r * gain + offset;
                let s = sigmoid(z);
                let slope = if silu { s * (1.0 + z * (1.0 - s)) } else { 1.0 };
                *to *= slope * gain;
            }
            let ((chunks, rest), (xs, x_rest)) = (by_normal.as_chunks::<LANES>(), x.as_chunks::<LANES>());
            for (g, x) in chunks.iter().zip(xs) {
                for lane in 0..LANES {
                    total[lane] += g[lane];
                    along[lane] += g[lane] * (x[lane] - mean);
                }
            }
            for (g, x) in rest.iter().zip(x_rest) {
                total[0] += g;
                along[0] += g * (x - mean);
            }
        }
        let mean_g = total.iter().sum::<f32>() / n;
        let along = along.iter().sum::<f32>() / n * r * r;
        for (to, &x) in by_x.iter_mut().zip(x) {
            *to = r * (*to - mean_g - (x - mean) * along);
        }
    }
}
