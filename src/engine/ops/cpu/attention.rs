//! Attention, a head at a time: its scores stay in a core's cache and are never all in memory.

use std::cell::Cell;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::disjoint::Disjoint;
use super::exp::exp;
use super::product::{Parallelism, View, Write, product};
use super::reduce;

/// Of queries `[batch, n, heads·d]`, keys `[batch, m, heads·d]` and values `[batch, m, heads·e]`.
#[derive(Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub n: usize,
    pub m: usize,
    pub d: usize,
    pub e: usize,
    /// Queries whose scores are alive at a time.
    pub rows: usize,
}

impl Shape {
    /// Scores are multiplied with it.
    fn scale(&self) -> f32 {
        (self.d as f32).sqrt().recip()
    }

    fn bands(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let Self { n, rows, .. } = *self;
        (0..n).step_by(rows).map(move |first| first..(first + rows).min(n))
    }
}

/// One head of one picture in tokens `[batch, tokens, heads·width]`.
#[derive(Clone, Copy)]
struct Head {
    at: usize,
    stride: usize,
    width: usize,
}

impl Head {
    fn new(unit: usize, heads: usize, tokens: usize, width: usize) -> Self {
        let stride = heads * width;
        Self { at: unit / heads * tokens * stride + unit % heads * width, stride, width }
    }

    fn of(self, tokens: &[f32], first: usize) -> View<'_> {
        View { values: &tokens[self.at + first * self.stride..], strides: [self.stride, 1] }
    }

    /// Puts rows of its width in their place, from token `first` on.
    fn put(self, rows: &[f32], first: usize, into: &Disjoint<'_>) {
        for (i, row) in rows.chunks_exact(self.width).enumerate() {
            #[expect(unsafe_code, reason = "a head's columns lie between those of others")]
            // SAFETY: each of these rows of this head is put by one thread.
            let to = unsafe { into.part(self.at + (first + i) * self.stride, self.width) };
            to.copy_from_slice(row);
        }
    }
}

fn turned(view: View<'_>) -> View<'_> {
    View { strides: [view.strides[1], view.strides[0]], ..view }
}

fn rows(values: &[f32], width: usize) -> View<'_> {
    View { values, strides: [width, 1] }
}

thread_local! {
    /// Scores, what becomes of them, and a head's rows.
    static BANDS: Cell<[Vec<f32>; 3]> = const { Cell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// `softmax(q·kᵀ/√d)·v`: `[batch, n, heads·e]`.
pub fn attend(q: &[f32], k: &[f32], v: &[f32], shape: Shape) -> Vec<f32> {
    let Shape { batch, heads, n, m, d, e, .. } = shape;
    let mut out = vec![0.0; batch * n * heads * e];
    let whole = Disjoint::new(&mut out);
    let units: Vec<_> = (0..batch * heads).flat_map(|unit| shape.bands().map(move |band| (unit, band))).collect();
    units.into_par_iter().for_each(|(unit, band)| {
        let [q_head, k_head] = [n, m].map(|tokens| Head::new(unit, heads, tokens, d));
        let [v_head, out_head] = [m, n].map(|tokens| Head::new(unit, heads, tokens, e));
        let [mut scores, spare, mut mixed] = BANDS.take();
        scores.resize(band.len() * m, 0.0);
        mixed.resize(band.len() * e, 0.0);
        let (q, k) = (q_head.of(q, band.start), turned(k_head.of(k, 0)));
        product(&mut scores, m, [band.len(), d, m], q, k, Write::Replace, Parallelism::None);
        Arch::new().dispatch(Softmax { scores: &mut scores, m, scale: shape.scale() });
        let v = v_head.of(v, 0);
        product(&mut mixed, e, [band.len(), m, e], rows(&scores, m), v, Write::Replace, Parallelism::None);
        out_head.put(&mixed, band.start, &whole);
        BANDS.set([scores, spare, mixed]);
    });
    out
}

/// The gradients of `q`, `k` and `v` from `g`, that of the result. With `P` the softmax and `D = g·vᵀ`: `∂v = Pᵀ·g`,
/// `S = P∘(D − rowsum(P∘D))/√d`, `∂q = S·k`, `∂k = Sᵀ·q`.
pub fn backward(q: &[f32], k: &[f32], v: &[f32], g: &[f32], shape: Shape) -> [Vec<f32>; 3] {
    let Shape { batch, heads, n, m, d, e, .. } = shape;
    let mut by = [(n, d), (m, d), (m, e)].map(|(tokens, width)| vec![0.0; batch * tokens * heads * width]);
    let [by_q, by_k, by_v] = by.each_mut().map(|by| Disjoint::new(by));
    (0..batch * heads).into_par_iter().for_each(|unit| {
        let [q_head, k_head] = [n, m].map(|tokens| Head::new(unit, heads, tokens, d));
        let [v_head, g_head] = [m, n].map(|tokens| Head::new(unit, heads, tokens, e));
        let [mut p, mut s, mut gradient] = BANDS.take();
        gradient.resize(n * d + m * d + m * e, 0.0);
        let (q_rows, rest) = gradient.split_at_mut(n * d);
        let (k_rows, v_rows) = rest.split_at_mut(m * d);
        for band in shape.bands() {
            let count = band.len();
            let write = if band.start == 0 { Write::Replace } else { Write::Add };
            let (q, k, v, g) = (q_head.of(q, band.start), k_head.of(k, 0), v_head.of(v, 0), g_head.of(g, band.start));
            p.resize(count * m, 0.0);
            s.resize(count * m, 0.0);
            product(&mut p, m, [count, d, m], q, turned(k), Write::Replace, Parallelism::None);
            Arch::new().dispatch(Softmax { scores: &mut p, m, scale: shape.scale() });
            product(v_rows, e, [m, count, e], turned(rows(&p, m)), g, write, Parallelism::None);
            product(&mut s, m, [count, e, m], g, turned(v), Write::Replace, Parallelism::None);
            Arch::new().dispatch(SoftmaxBackward { p: &p, d: &mut s, m, scale: shape.scale() });
            let of_band = &mut q_rows[band.start * d..][..count * d];
            product(of_band, d, [count, m, d], rows(&s, m), k, Write::Replace, Parallelism::None);
            product(k_rows, d, [m, count, d], turned(rows(&s, m)), q, write, Parallelism::None);
        }
        q_head.put(q_rows, 0, &by_q);
        k_head.put(k_rows, 0, &by_k);
        v_head.put(v_rows, 0, &by_v);
        BANDS.set([p, s, gradient]);
    });
    by
}

/// Each row of `m` scores, times `scale`, through the softmax.
struct Softmax<'a> {
    scores: &'a mut [f32],
    m: usize,
    scale: f32,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { scores, m, scale } = self;
        for row in scores.chunks_exact_mut(m) {
            let largest = reduce::largest(s, row);
            for x in row.iter_mut() {
                *x = exp((*x - largest) * scale);
            }
            let sum = reduce::sum(s, row);
            let share = sum.recip();
            for x in row.iter_mut() {
                *x *= share;
            }
        }
    }
}

/// `P∘(D − rowsum(P∘D))·scale`, in place of `D`.
struct SoftmaxBackward<'a> {
    p: &'a [f32],
    d: &'a mut [f32],
    m: usize,
    scale: f32,
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { p, d, m, scale } = self;
        for (p, d) in p.chunks_exact(m).zip(d.chunks_exact_mut(m)) {
            // P∘D, then what is taken off it.
            d.iter_mut().zip(p).for_each(|(d, &p)| *d *= p);
            let sum = reduce::sum(s, d);
            d.iter_mut().zip(p).for_each(|(d, &p)| *d = (*d - p * sum) * scale);
        }
    }
}
