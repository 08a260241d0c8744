//! A picture in overlapping tiles, where it is too large for one pass of the autoencoder.

use burn::tensor::{Tensor, TensorData, s};

/// Largest picture that goes through in one piece, in latent pixels: 768×768 in Stable Diffusion. Its decoder takes 1 GB
/// at 512×512.
const WHOLE: usize = 96 * 96;
/// Side of a tile in latent pixels, as in diffusers (`AutoencoderKL.tile_latent_min_size` at 512 pixels).
const SIDE: usize = 64;
/// What neighbours share, a quarter of a tile: over it one fades into the other.
const SHARED: usize = SIDE / 4;

/// `pass` over the whole of `x`, or over its tiles: `x` is `[b, c, h·from, w·from]`, the result
/// `[b, channels, h·to, w·to]`.
///
/// A tile is normalised by what it shows itself, so that tiles differ a little in tone; fading hides the seams.
pub fn in_tiles(
    x: Tensor<4>,
    channels: usize,
    [from, to]: [usize; 2],
    pass: impl Fn(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let [b, _, height, width] = x.dims();
    let (height, width) = (height / from, width / from);
    if height * width <= WHOLE {
        return pass(x);
    }
    // The weights are summed as one more channel, to be divided out again.
    let mut sum = Tensor::zeros([b, channels + 1, height * to, width * to], &x.device());
    let (h, w) = (SIDE.min(height), SIDE.min(width));
    for top in starts(height) {
        for left in starts(width) {
            let tile = pass(x.clone().slice(s![.., .., top * from..(top + h) * from, left * from..(left + w) * from]));
            let weight = |at: usize, n: usize, all: usize| fade(at > 0, at + n < all, n * to, SHARED * to);
            let down = column(weight(top, h, height), &tile).reshape([1, 1, h * to, 1]);
            let across = column(weight(left, w, width), &tile).reshape([1, 1, 1, w * to]);
            let weighted = Tensor::cat(vec![tile.clone(), tile.narrow(1, 0, 1).ones_like()], 1) * down * across;
            let place = s![.., .., top * to..(top + h) * to, left * to..(left + w) * to];
            let under = sum.clone().slice(place);
            sum = sum.slice_assign(place, under + weighted);
        }
    }
    sum.clone().narrow(1, 0, channels) / sum.narrow(1, channels, 1)
}

/// Where tiles begin along a side.
fn starts(side: usize) -> Vec<usize> {
    let last = side.saturating_sub(SIDE);
    (0..last).step_by(SIDE - SHARED).chain([last]).collect()
}

/// Weights of a tile's `n` pixels along a side: rising over the `shared` first, falling over the last, never 0.
fn fade(before: bool, behind: bool, n: usize, shared: usize) -> Vec<f32> {
    let ramp = |i: usize| (i + 1) as f32 / (shared + 1) as f32;
    let weight = |i: usize| {
        let rise = if before && i < shared { ramp(i) } else { 1.0 };
        let fall = if behind && n - 1 - i < shared { ramp(n - 1 - i) } else { 1.0 };
        rise.min(fall)
    };
    (0..n).map(weight).collect()
}

fn column(weights: Vec<f32>, like: &Tensor<4>) -> Tensor<1> {
    let n = weights.len();
    Tensor::from_data(TensorData::new(weights, [n]), &like.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::random::Philox;
    use burn::tensor::module::interpolate;
    use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

    #[test]
    fn tiles_cover_a_side() {
        assert_eq!(starts(64), [0]);
        assert_eq!(starts(65), [0, 1]);
        assert_eq!(starts(128), [0, 48, 64]);
        assert_eq!(starts(20), [0]);
    }

    /// What looks at single pixels is the same in tiles: every pixel is covered, and weights divide out.
    #[test]
    fn a_pass_without_neighbours_is_unchanged() {
        let shape = [1, 2, 130, 100];
        let x = Tensor::<4>::from_data(TensorData::new(Philox::new(0).normal(0, 26_000), shape), &cpu());
        let twice = |x: Tensor<4>| {
            let [_, _, h, w] = x.dims();
            let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * h, 2 * w]);
            interpolate(x * 3.0, options)
        };
        let (tiled, whole) = (in_tiles(x.clone(), 2, [1, 2], twice), twice(x));
        let apart = read((tiled - whole).abs().max().unsqueeze::<1>()).unwrap()[0];
        assert!(apart < 1e-5, "{apart}");
    }
}
