//! Normalisation in one pass, forwards and backwards.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::sigmoid;
use super::reduce;

/// Numbers that are worth a thread's while.
const GRAIN: usize = 1 << 14;

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
fn moments<S: Simd>(s: S, x: &[f32], eps: f32) -> [f32; 2] {
    let n = x.len() as f32;
    let mean = reduce::sum(s, x) / n;
    [mean, (reduce::spread(s, x, mean) / n + eps).sqrt().recip()]
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
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, y, norm, channel, pixels, silu } = self;
        let [mean, r] = moments(s, x, norm.eps);
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
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, g, by_x, norm, channel, pixels, silu } = self;
        let [mean, r] = moments(s, x, norm.eps);
        let n = x.len() as f32;
        let (mut total, mut along) = (0.0, 0.0);
        for (i, x) in x.chunks_exact(pixels).enumerate() {
            let (gain, offset) = (norm.gain[channel + i], norm.offset[channel + i]);
            let by_normal = &mut by_x[i * pixels..][..pixels];
            by_normal.copy_from_slice(&g[i * pixels..][..pixels]);
            for (to, &x) in by_normal.iter_mut().zip(x) {
                let z = (x - mean) * r * gain + offset;
                let share = sigmoid(z);
                let slope = if silu { share * (1.0 + z * (1.0 - share)) } else { 1.0 };
                *to *= slope * gain;
            }
            total += reduce::sum(s, by_normal);
            along += reduce::along(s, by_normal, x, mean);
        }
        let (total, along) = (total / n, along / n * r * r);
        for (to, &x) in by_x.iter_mut().zip(x) {
            *to = r * (*to - total - (x - mean) * along);
        }
    }
}

/// Each row of `x`, as long as the gain.
pub fn layer_norm(x: &[f32], norm: Norm<'_>) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let block = rows(norm);
    y.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(y, x)| Arch::new().dispatch(Rows { x, g: None, to: y, norm }));
    y
}

/// The gradient of `x` from `g`, that of the result.
pub fn layer_norm_backward(x: &[f32], g: &[f32], norm: Norm<'_>) -> Vec<f32> {
    let mut by_x = vec![0.0; x.len()];
    let block = rows(norm);
    by_x.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .zip(g.par_chunks(block))
        .for_each(|((to, x), g)| Arch::new().dispatch(Rows { x, g: Some(g), to, norm }));
    by_x
}

/// Numbers of the rows that a thread takes at a time.
fn rows(norm: Norm<'_>) -> usize {
    let n = norm.gain.len().max(1);
    GRAIN.div_ceil(n) * n
}

/// Forwards, or backwards where there is a gradient.
struct Rows<'a> {
    x: &'a [f32],
    g: Option<&'a [f32]>,
    to: &'a mut [f32],
    norm: Norm<'a>,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, g, to, norm } = self;
        let n = norm.gain.len();
        for (i, (x, to)) in x.chunks_exact(n).zip(to.chunks_exact_mut(n)).enumerate() {
            let [mean, r] = moments(s, x, norm.eps);
            match g {
                None => {
                    for (((to, &x), &gain), &offset) in to.iter_mut().zip(x).zip(norm.gain).zip(norm.offset) {
                        *to = (x - mean) * r * gain + offset;
                    }
                }
                Some(g) => {
                    to.iter_mut().zip(&g[i * n..]).zip(norm.gain).for_each(|((to, &g), &gain)| *to = g * gain);
                    let (total, along) = (reduce::sum(s, to), reduce::along(s, to, x, mean));
                    let (total, along) = (total / n as f32, along / n as f32 * r * r);
                    to.iter_mut().zip(x).for_each(|(to, &x)| *to = r * (*to - total - (x - mean) * along));
                }
            }
        }
    }
}
