//! Convolutions of any kernel, stride and padding: a band of patches is laid out as a matrix, multiplied and forgotten.

use rayon::prelude::*;

use super::product::{Parallelism, View, Write, product};

/// Numbers of a band of patches: 4 MB.
const BAND: usize = 1 << 20;

/// A convolution of `[batch, input, h, w]` with a filter `[out, input, kh, kw]`.
#[derive(Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub input: usize,
    pub out: usize,
    /// Height and width before.
    pub before: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: usize,
}

impl Shape {
    /// Height and width behind. The kernel is no larger than a padded picture.
    pub fn behind(&self) -> [usize; 2] {
        let Self { before, kernel, stride, padding, .. } = self;
        [0, 1].map(|i| (before[i] + 2 * padding - kernel[i]) / stride + 1)
    }

    /// Numbers of a picture before and behind.
    fn numbers(&self) -> [usize; 2] {
        [self.input * self.before[0] * self.before[1], self.out * self.pixels()]
    }

    /// Of a picture behind.
    fn pixels(&self) -> usize {
        self.behind()[0] * self.behind()[1]
    }

    /// Rows of a matrix of patches.
    fn taps(&self) -> usize {
        self.input * self.kernel[0] * self.kernel[1]
    }

    /// Rows of pixels in a band.
    fn band(&self) -> usize {
        (BAND / (self.taps() * self.behind()[1])).clamp(1, self.behind()[0])
    }

    /// Calls `picture` for each: side by side, or one after the other with all threads for its products.
    fn each(&self, all: &mut [f32], numbers: usize, picture: impl Fn(usize, &mut [f32], Parallelism) + Sync) {
        if self.batch >= rayon::current_num_threads() {
            all.par_chunks_mut(numbers).enumerate().for_each(|(i, to)| picture(i, to, Parallelism::None));
        } else {
            all.chunks_mut(numbers).enumerate().for_each(|(i, to)| picture(i, to, Parallelism::Rayon(0)));
        }
    }
}

/// The results; `bias [out]`.
pub fn convolve(x: &[f32], taps: &[f32], bias: Option<&[f32]>, shape: Shape) -> Vec<f32> {
    let ([before, behind], pixels) = (shape.numbers(), shape.pixels());
    let mut y = vec![0.0; shape.batch * behind];
    if y.is_empty() {
        return y;
    }
    let weight = View { values: taps, strides: [shape.taps(), 1] };
    shape.each(&mut y, behind, |picture, y, threads| {
        if let Some(bias) = bias {
            y.chunks_exact_mut(pixels).zip(bias).for_each(|(channel, &bias)| channel.fill(bias));
        }
        let x = &x[picture * before..][..before];
        for_bands(&shape, |rows| {
            let (first, count) = (rows.start * shape.behind()[1], rows.len() * shape.behind()[1]);
            let mut patches = vec![0.0; shape.taps() * count];
            walk(&shape, rows, |patch, line, pixels| match pixels.step {
                1 => patches[patch..][..pixels.count].copy_from_slice(&x[line..][..pixels.count]),
                step => patches[patch..][..pixels.count]
                    .iter_mut()
                    .zip(x[line..].iter().step_by(step))
                    .for_each(|(to, &x)| *to = x),
            });
            let patches = View { values: &patches, strides: [count, 1] };
            product(&mut y[first..], pixels, [shape.out, shape.taps(), count], weight, patches, Write::Add, threads);
        });
    });
    y
}

/// The gradient of the pictures before, from that of the results `g`.
pub fn backward(g: &[f32], taps: &[f32], shape: Shape) -> Vec<f32> {
    let ([before, behind], pixels) = (shape.numbers(), shape.pixels());
    let mut by_x = vec![0.0; shape.batch * before];
    if g.is_empty() || by_x.is_empty() {
        return by_x;
    }
    let turned = View { values: taps, strides: [1, shape.taps()] };
    shape.each(&mut by_x, before, |picture, by_x, threads| {
        let g = &g[picture * behind..][..behind];
        for_bands(&shape, |rows| {
            let (first, count) = (rows.start * shape.behind()[1], rows.len() * shape.behind()[1]);
            let mut patches = vec![0.0; shape.taps() * count];
            let g = View { values: &g[first..], strides: [pixels, 1] };
            product(&mut patches, count, [shape.taps(), shape.out, count], turned, g, Write::Replace, threads);
            walk(&shape, rows, |patch, line, pixels| {
                let from = &patches[patch..][..pixels.count];
                by_x[line..].iter_mut().step_by(pixels.step).zip(from).for_each(|(to, &g)| *to += g);
            });
        });
    });
    by_x
}

fn for_bands(shape: &Shape, mut band: impl FnMut(std::ops::Range<usize>)) {
    let (rows, step) = (shape.behind()[0], shape.band());
    (0..rows).step_by(step).for_each(|first| band(first..(first + step).min(rows)));
}

/// Neighbours in a row of the results; what they read lies `step` apart.
struct Pixels {
    count: usize,
    step: usize,
}

/// Where a band's patches come from: for each tap and each row of results, the place of its first pixel in the matrix of
/// patches, the place in the picture that it reads, and how many read on within the picture. The others read zeros.
fn walk(shape: &Shape, rows: std::ops::Range<usize>, mut line: impl FnMut(usize, usize, Pixels)) {
    let Shape { input, before: [height, width], kernel: [kh, kw], stride, padding, .. } = *shape;
    let [_, across] = shape.behind();
    for (tap, (channel, (down, right))) in
        (0..input).flat_map(|c| (0..kh).flat_map(move |i| (0..kw).map(move |j| (c, (i, j))))).enumerate()
    {
        // The first and last result whose tap lies within the row.
        let first = padding.saturating_sub(right).div_ceil(stride);
        let Some(last) = (width + padding).checked_sub(right + 1) else { continue };
        let count = (last / stride + 1).min(across).saturating_sub(first);
        if count == 0 {
            continue;
        }
        for row in rows.clone() {
            let Some(y) = (row * stride + down).checked_sub(padding).filter(|&y| y < height) else { continue };
            let to = (tap * rows.len() + row - rows.start) * across + first;
            line(to, (channel * height + y) * width + first * stride + right - padding, Pixels { count, step: stride });
        }
    }
}
