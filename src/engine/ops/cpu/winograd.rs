//! 3×3 convolutions with a quarter of the multiplications: F(4×4, 3×3) of Lavin & Gray 2015 (arXiv 1509.09308).
//!
//! A tile of 4×4 results needs 6×6 inputs `d`. With the filter `g`, it is `Aᵀ·[(G·g·Gᵀ) ∘ (Bᵀ·d·B)]·A`; the product in the
//! middle, over all channels and tiles, is 36 matrix products. Rounding is about ten times that of a plain sum, 1e-5 of
//! the largest result.

use std::cell::Cell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::disjoint::Disjoint;
use super::product::{Parallelism, View, Write, product};

/// Channels that are transformed side by side; the widest vectors have as many numbers.
pub const LANES: usize = 16;
/// Places of a transformed tile.
const PLACES: usize = 36;
/// Tiles of a band: what they become stays in a core's cache, where channels are not many.
const BAND: usize = 32;
/// Numbers of a transformed filter that are held at a time: 16 MB.
const SPREAD: usize = 1 << 22;
/// With fewer tiles, transforming the filter takes longer than it saves.
const FEWEST: usize = 24;

/// A filter `[out, input, 3, 3]`, or one that is laid out otherwise.
#[derive(Clone, Copy)]
pub struct Filter<'a> {
    pub taps: &'a [f32],
    pub input: usize,
    pub out: usize,
    /// From one output's taps to the next one's, and from one input's.
    pub strides: [usize; 2],
    /// Last tap first.
    pub flipped: bool,
}

impl<'a> Filter<'a> {
    pub fn new(taps: &'a [f32], input: usize, out: usize) -> Self {
        Self { taps, input, out, strides: [9 * input, 9], flipped: false }
    }

    /// The filter that takes a gradient of the results to one of the inputs.
    pub fn turned(self) -> Self {
        let Self { taps, input, out, strides: [by_out, by_input], flipped } = self;
        Self { taps, input: out, out: input, strides: [by_input, by_out], flipped: !flipped }
    }
}

/// Of the pictures before and behind.
#[derive(Clone, Copy)]
pub struct Size {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
}

impl Size {
    /// Rows and columns of a picture's tiles.
    fn tiles(self) -> [usize; 2] {
        [self.height.div_ceil(4), self.width.div_ceil(4)]
    }

    /// Whether there are enough tiles for it. All pictures of a batch count, so that one rounds otherwise alone than among
    /// others.
    pub fn pays(self) -> bool {
        let [down, across] = self.tiles();
        self.batch * down * across >= FEWEST
    }
}

thread_local! {
    /// Kept from call to call, as fresh memory costs more than what is computed in it: the transformed tiles, their
    /// products, a row of tiles.
    static TILES: Cell<[Vec<f32>; 3]> = const { Cell::new([Vec::new(), Vec::new(), Vec::new()]) };
    /// The transformed filter.
    static FILTER: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `x [batch, input, h, w] → [batch, out, h, w]` with one pixel of zeros around the picture; `bias [out]`.
pub fn convolve(x: &[f32], filter: Filter<'_>, bias: Option<&[f32]>, size: Size) -> Vec<f32> {
    let Filter { input, out, .. } = filter;
    let Size { batch, height, width } = size;
    let [down, across] = size.tiles();
    let rows = batch * down;
    let band = (BAND / across).clamp(1, rows.div_ceil(rayon::current_num_threads()));
    let outs = (SPREAD / (PLACES * input) / LANES * LANES).clamp(LANES, out.next_multiple_of(LANES));
    let mut y = vec![0.0; batch * out * height * width];
    let whole = Disjoint::new(&mut y);
    let mut u = FILTER.take();
    for first in (0..out).step_by(outs) {
        let outs = first..(first + outs).min(out);
        let lanes = outs.len().next_multiple_of(LANES);
        u.resize(PLACES * plane(input * lanes), 0.0);
        let spread = Disjoint::new(&mut u);
        (0..input.div_ceil(LANES)).into_par_iter().for_each(|block| {
            let inputs = block * LANES..((block + 1) * LANES).min(input);
            Arch::new().dispatch(SpreadFilter { filter, inputs, outs: outs.clone(), u: &spread });
        });
        (0..rows.div_ceil(band)).into_par_iter().for_each(|i| {
            let rows = i * band..((i + 1) * band).min(rows);
            let tiles = rows.len() * across;
            let channels = input.next_multiple_of(LANES);
            let [mut v, mut m, mut row] = TILES.take();
            v.resize(PLACES * plane(tiles * channels), 0.0);
            m.resize(PLACES * plane(tiles * lanes), 0.0);
            Arch::new().dispatch(SpreadTiles { x, input, size, rows: rows.clone(), row: &mut row, v: &mut v });
            for place in 0..PLACES {
                let v = View { values: &v[place * plane(tiles * channels)..], strides: [channels, 1] };
                let u = View { values: &u[place * plane(input * lanes)..], strides: [lanes, 1] };
                let m = &mut m[place * plane(tiles * lanes)..];
                product(m, lanes, [tiles, input, lanes], v, u, Write::Replace, Parallelism::None);
            }
            let outs = outs.clone();
            Arch::new().dispatch(Gather { m: &m, bias, size, rows, outs, out, row: &mut row, y: &whole });
            TILES.set([v, m, row]);
        });
    }
    FILTER.set(u);
    y
}

/// From one place's numbers to the next one's: were it a power of two, all 36 would fall into the same lines of the cache.
fn plane(numbers: usize) -> usize {
    numbers + LANES
}

#[inline(always)]
fn load<S: Simd>(from: &[f32]) -> S::f32s {
    S::as_simd_f32s(from).0[0]
}

#[inline(always)]
fn store<S: Simd>(to: &mut [f32], x: S::f32s) {
    S::as_mut_simd_f32s(to).0[0] = x;
}

/// `Bᵀ·d`.
#[inline(always)]
fn b<S: Simd>(s: S, [d0, d1, d2, d3, d4, d5]: [S::f32s; 6]) -> [S::f32s; 6] {
    let (two, four) = (s.splat_f32s(2.0), s.splat_f32s(4.0));
    let (minus_four, minus_five) = (s.splat_f32s(-4.0), s.splat_f32s(-5.0));
    let (even, odd) = (s.mul_add_f32s(d2, minus_four, d4), s.mul_add_f32s(d1, minus_four, d3));
    let (far, near) = (s.sub_f32s(d4, d2), s.mul_f32s(s.sub_f32s(d3, d1), two));
    [
        s.mul_add_f32s(d0, four, s.mul_add_f32s(d2, minus_five, d4)),
        s.add_f32s(even, odd),
        s.sub_f32s(even, odd),
        s.add_f32s(far, near),
        s.sub_f32s(far, near),
        s.mul_add_f32s(d1, four, s.mul_add_f32s(d3, minus_five, d5)),
    ]
}

/// `G·g`.
#[inline(always)]
fn g<S: Simd>(s: S, [g0, g1, g2]: [S::f32s; 3]) -> [S::f32s; 6] {
    let (quarter, sixth) = (s.splat_f32s(0.25), s.splat_f32s(1.0 / 6.0));
    let (twelfth, last) = (s.splat_f32s(1.0 / 12.0), s.splat_f32s(1.0 / 24.0));
    let (outer, inner) = (s.mul_f32s(s.add_f32s(g0, g2), sixth), s.mul_f32s(g1, sixth));
    let (far, near) = (s.mul_add_f32s(g0, last, s.mul_f32s(g2, sixth)), s.mul_f32s(g1, twelfth));
    [
        s.mul_f32s(g0, quarter),
        s.sub_f32s(s.sub_f32s(s.splat_f32s(0.0), outer), inner),
        s.sub_f32s(inner, outer),
        s.add_f32s(far, near),
        s.sub_f32s(far, near),
        g2,
    ]
}

/// `Aᵀ·m`.
#[inline(always)]
fn a<S: Simd>(s: S, [m0, m1, m2, m3, m4, m5]: [S::f32s; 6]) -> [S::f32s; 4] {
    let (two, four, eight) = (s.splat_f32s(2.0), s.splat_f32s(4.0), s.splat_f32s(8.0));
    let (sum, difference) = (s.add_f32s(m1, m2), s.sub_f32s(m1, m2));
    let (far_sum, far) = (s.add_f32s(m3, m4), s.sub_f32s(m3, m4));
    [
        s.add_f32s(m0, s.add_f32s(sum, far_sum)),
        s.mul_add_f32s(far, two, difference),
        s.mul_add_f32s(far_sum, four, sum),
        s.add_f32s(s.mul_add_f32s(far, eight, difference), m5),
    ]
}

/// `G·g·Gᵀ` of at most 16 inputs: `[36][input, lanes of outs]`.
struct SpreadFilter<'a> {
    filter: Filter<'a>,
    inputs: Range<usize>,
    outs: Range<usize>,
    u: &'a Disjoint<'a>,
}

impl WithSimd for SpreadFilter<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { filter: Filter { taps, input, strides, flipped, .. }, inputs, outs, u } = self;
        let lanes = outs.len().next_multiple_of(LANES);
        let mut side_by_side = [0.0; 9 * LANES * LANES];
        for o in (0..outs.len()).step_by(LANES) {
            for lane in 0..LANES.min(outs.len() - o) {
                for (i, input) in inputs.clone().enumerate() {
                    let taps = &taps[(outs.start + o + lane) * strides[0] + input * strides[1]..][..9];
                    for (k, &tap) in taps.iter().enumerate() {
                        side_by_side[(9 * i + k) * LANES + lane] = tap;
                    }
                }
            }
            for (i, input_at) in inputs.clone().enumerate() {
                for l in (0..LANES).step_by(S::F32_LANES) {
                    let mut t = [s.splat_f32s(0.0); 9];
                    for (k, t) in t.iter_mut().enumerate() {
                        let k = if flipped { 8 - k } else { k };
                        *t = load::<S>(&side_by_side[(9 * i + k) * LANES + l..]);
                    }
                    let top = g(s, [t[0], t[1], t[2]]);
                    let middle = g(s, [t[3], t[4], t[5]]);
                    let bottom = g(s, [t[6], t[7], t[8]]);
                    for (across, ((top, middle), bottom)) in top.into_iter().zip(middle).zip(bottom).enumerate() {
                        let column = g(s, [top, middle, bottom]);
                        for (down, &value) in column.iter().enumerate() {
                            let at = (6 * down + across) * plane(input * lanes) + input_at * lanes + o + l;
                            #[expect(unsafe_code, reason = "the planes of one input lie far apart")]
                            // SAFETY: only this call writes this input's numbers.
                            store::<S>(unsafe { u.part(at, S::F32_LANES) }, value);
                        }
                    }
                }
            }
        }
    }
}

/// `Bᵀ·d·B` of rows of tiles: `[36][tile, lanes of inputs]`.
struct SpreadTiles<'a> {
    x: &'a [f32],
    input: usize,
    size: Size,
    rows: Range<usize>,
    /// The pixels of a row of tiles, channels side by side.
    row: &'a mut Vec<f32>,
    v: &'a mut [f32],
}

impl WithSimd for SpreadTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, input, size: size @ Size { height, width, .. }, rows, row: pixels, v } = self;
        let [down, across] = size.tiles();
        let channels = input.next_multiple_of(LANES);
        let plane = plane(rows.len() * across * channels);
        let padded = 4 * across + 2;
        pixels.resize(6 * padded * LANES, 0.0);
        for first in (0..input).step_by(LANES) {
            let count = LANES.min(input - first);
            for row in rows.clone() {
                let (picture, tile_row) = (row / down, row % down);
                for (r, line) in pixels.chunks_exact_mut(padded * LANES).enumerate() {
                    // The first line of the first row of tiles lies above the picture.
                    let y = (4 * tile_row + r).checked_sub(1).filter(|&y| y < height);
                    if y.is_none() || count < LANES {
                        line.fill(0.0);
                    }
                    let Some(y) = y else { continue };
                    line[..LANES].fill(0.0);
                    line[(width + 1) * LANES..].fill(0.0);
                    for lane in 0..count {
                        let from = &x[((picture * input + first + lane) * height + y) * width..][..width];
                        for (to, &x) in line[LANES..].as_chunks_mut::<LANES>().0.iter_mut().zip(from) {
                            to[lane] = x;
                        }
                    }
                }
                for tile in 0..across {
                    let to = ((row - rows.start) * across + tile) * channels + first;
                    for l in (0..LANES).step_by(S::F32_LANES) {
                        let mut columns = [[s.splat_f32s(0.0); 6]; 6];
                        for (i, column) in columns.iter_mut().enumerate() {
                            let mut d = [s.splat_f32s(0.0); 6];
                            for (j, d) in d.iter_mut().enumerate() {
                                *d = load::<S>(&pixels[(j * padded + 4 * tile + i) * LANES + l..]);
                            }
                            *column = b(s, d);
                        }
                        for j in 0..6 {
                            let [c0, c1, c2, c3, c4, c5] = columns;
                            let line = b(s, [c0[j], c1[j], c2[j], c3[j], c4[j], c5[j]]);
                            for (i, &value) in line.iter().enumerate() {
                                store::<S>(&mut v[(6 * j + i) * plane + to + l..], value);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `Aᵀ·m·A` plus the bias, into the pictures.
struct Gather<'a> {
    m: &'a [f32],
    bias: Option<&'a [f32]>,
    size: Size,
    rows: Range<usize>,
    outs: Range<usize>,
    out: usize,
    row: &'a mut Vec<f32>,
    y: &'a Disjoint<'a>,
}

impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { m, bias, size: size @ Size { height, width, .. }, rows, outs, out, row: pixels, y } = self;
        let [down, across] = size.tiles();
        let lanes = outs.len().next_multiple_of(LANES);
        let plane = plane(rows.len() * across * lanes);
        let padded = 4 * across;
        pixels.resize(4 * padded * LANES, 0.0);
        for o in (0..outs.len()).step_by(LANES) {
            let first = outs.start + o;
            let count = LANES.min(outs.end - first);
            let mut offsets = [0.0; LANES];
            if let Some(bias) = bias {
                offsets[..count].copy_from_slice(&bias[first..first + count]);
            }
            for row in rows.clone() {
                let (picture, tile_row) = (row / down, row % down);
                for tile in 0..across {
                    let from = ((row - rows.start) * across + tile) * lanes + o;
                    for l in (0..LANES).step_by(S::F32_LANES) {
                        let offset = load::<S>(&offsets[l..]);
                        let mut columns = [[offset; 4]; 6];
                        for (i, column) in columns.iter_mut().enumerate() {
                            let mut places = [offset; 6];
                            for (j, place) in places.iter_mut().enumerate() {
                                *place = load::<S>(&m[(6 * j + i) * plane + from + l..]);
                            }
                            *column = a(s, places);
                        }
                        for j in 0..4 {
                            let [c0, c1, c2, c3, c4, c5] = columns;
                            let line = a(s, [c0[j], c1[j], c2[j], c3[j], c4[j], c5[j]]);
                            for (i, &value) in line.iter().enumerate() {
                                let to = (j * padded + 4 * tile + i) * LANES + l;
                                store::<S>(&mut pixels[to..], s.add_f32s(value, offset));
                            }
                        }
                    }
                }
                for (r, line) in pixels.chunks_exact(padded * LANES).take(height - 4 * tile_row).enumerate() {
                    for lane in 0..count {
                        let at = ((picture * out + first + lane) * height + 4 * tile_row + r) * width;
                        #[expect(unsafe_code, reason = "a channel's rows lie between those of others")]
                        // SAFETY: only this call writes these rows of this channel.
                        let to = unsafe { y.part(at, width) };
                        for (to, from) in to.iter_mut().zip(line.as_chunks::<LANES>().0) {
                            *to = from[lane];
                        }
                    }
                }
            }
        }
    }
}
