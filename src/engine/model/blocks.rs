//! The bricks that every network here is made of.
//!
//! Activations are `[batch, channels, height, width]` or `[batch, tokens, width]`.

use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Tensor, activation, module};

use crate::engine::model::mount::Place;
use crate::engine::model::{LayerId, Mounts, Signal};
use crate::engine::ops::{self, Then};

/// `y = x · weight_oiᵀ + bias`, plus what is mounted on it.
#[derive(Debug)]
pub struct Linear {
    pub id: LayerId,
    /// As it is held: f32 or f16.
    pub weight_oi: Tensor<2>,
    pub bias: Option<Tensor<1>>,
}

impl Linear {
    pub fn forward<const D: usize>(&self, x: Tensor<D>, mounts: &Mounts) -> Tensor<D> {
        let mut dims = x.dims();
        let width = dims[D - 1];
        let place = Place { id: self.id, weight_oi: self.weight_oi.clone(), bias: self.bias.as_ref(), shape: None };
        let rows = dims.iter().product::<usize>() / width;
        let Signal::Tokens(y) = mounts.run(&place, &Signal::Tokens(x.reshape([rows, width]))) else {
            unreachable!("tokens stay tokens")
        };
        dims[D - 1] = y.dims()[1];
        y.reshape(dims)
    }
}

/// Kernel `[height, width]`, stride and zero padding of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: usize,
}

impl ConvShape {
    /// 3×3 that keeps height and width.
    pub const SAME3: Self = Self { kernel: [3, 3], stride: 1, padding: 1 };
    /// 3×3 that halves them.
    pub const HALF3: Self = Self { kernel: [3, 3], stride: 2, padding: 1 };
    pub const POINT: Self = Self { kernel: [1, 1], stride: 1, padding: 0 };
}

/// A convolution with bias, plus what is mounted on it.
#[derive(Debug)]
pub struct Conv {
    pub id: LayerId,
    /// As it is held: f32 or f16.
    pub weight_oihw: Tensor<4>,
    pub bias: Tensor<1>,
    pub shape: ConvShape,
}

impl Conv {
    pub fn forward(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<4> {
        let [out, channels, kh, kw] = self.weight_oihw.dims();
        let weight_oi = self.weight_oihw.clone().reshape([out, channels * kh * kw]);
        let place = Place { id: self.id, weight_oi, bias: Some(&self.bias), shape: Some(self.shape) };
        let Signal::Picture(y) = mounts.run(&place, &Signal::Picture(x)) else {
            unreachable!("pictures stay pictures")
        };
        y
    }
}

/// `[b, i, h, w] * [o, i, kh, kw] → [b, o, h', w']`.
pub fn convolve(x: Tensor<4>, weight_oihw: Tensor<4>, bias: Option<Tensor<1>>, shape: ConvShape) -> Tensor<4> {
    if shape == ConvShape::POINT {
        let [out, channels, _, _] = weight_oihw.dims();
        return pointwise(x, weight_oihw.reshape([out, channels]), bias);
    }
    ops::convolve(x, weight_oihw, bias, shape.stride, shape.padding)
}

/// A 1×1 convolution as a matrix product: kernels that drivers pick for it have been wrong (burn #5626, cubek #519).
pub fn pointwise(x: Tensor<4>, weight_oi: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let [out, _] = weight_oi.dims();
    let y = weight_oi.unsqueeze::<3>().matmul(x.reshape([b, c, h * w]));
    let y = match bias {
        Some(bias) => y + bias.reshape([1, out, 1]),
        None => y,
    };
    y.reshape([b, out, h, w])
}

/// Gain and offset of a normalisation.
#[derive(Debug)]
pub struct Norm {
    pub weight: Tensor<1>,
    pub bias: Tensor<1>,
    pub eps: f64,
}

impl Norm {
    /// Over the last axis.
    pub fn layer<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(x, self.weight.clone(), self.bias.clone(), self.eps)
    }

    /// Over each of `groups` groups of channels together with height and width.
    pub fn group(&self, x: Tensor<4>, groups: usize, then: Then) -> Tensor<4> {
        ops::group_norm(x, self.weight.clone(), self.bias.clone(), groups, self.eps, then)
    }
}

/// Nearest neighbour to `[height, width]`.
pub fn upsample(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    if size == [2 * h, 2 * w] {
        // A broadcast: cheaper than a gather, forwards and backwards.
        return x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]).reshape([b, c, 2 * h, 2 * w]);
    }
    module::interpolate(x, InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(size))
}

/// `softmax(q·kᵀ/√d + mask)·v` on `heads` heads; `q [b, n, c]`, `k, v [b, m, c]`, `mask [1, 1, n, m]`.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Option<Tensor<4>>) -> Tensor<3> {
    let Some(mask) = mask else { return ops::attend(q, k, v, heads) };
    let [b, n, c] = q.dims();
    let head = c / heads;
    let split = |x: Tensor<3>| {
        let [b, tokens, _] = x.dims();
        x.reshape([b, tokens, heads, head]).swap_dims(1, 2)
    };
    // The scale goes onto the smaller operand.
    let (q, k, v) = (split(q) * (head as f64).powf(-0.5), split(k), split(v));
    let mixed = activation::softmax(q.matmul(k.transpose()) + mask, 3).matmul(v);
    mixed.swap_dims(1, 2).reshape([b, n, c])
}

/// Sinusoids of a timestep, cosines first: `[b] → [b, width]` (diffusers `flip_sin_to_cos`, `freq_shift` 0).
pub fn timestep_embedding(timesteps: &[f32], width: usize) -> Vec<f32> {
    let half = width / 2;
    let frequency = |i: usize| (-(10_000_f32.ln()) * i as f32 / half as f32).exp();
    timesteps
        .iter()
        .flat_map(|&t| {
            let angles = (0..half).map(move |i| t * frequency(i));
            angles.clone().map(f32::cos).chain(angles.map(f32::sin))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestep_zero_is_cosines_of_one() {
        assert_eq!(timestep_embedding(&[0.0], 4), [1.0, 1.0, 0.0, 0.0]);
    }
}
