//! What the networks are made of and how they are trained, beside the kernels of our own.

use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions, MaxPoolOptions};
use burn::tensor::{DType, Int, Tensor, TensorData, activation, module};

use super::trial::flat;
use crate::engine::ops::{Input, Step, Then, adamw, attend, convolve, geglu, group_norm, layer_norm, widen};

pub struct Row {
    pub name: &'static str,
    pub inputs: &'static [Input],
    /// Those that gradients pass to when something is trained.
    pub tracked: &'static [usize],
    pub run: fn(&[Tensor<2>]) -> Vec<Tensor<2>>,
}

const fn wide(rows: usize, columns: usize) -> Input {
    ([rows, columns], DType::F32)
}

const fn half(rows: usize, columns: usize) -> Input {
    ([rows, columns], DType::F16)
}

/// Few channels, not powers of two alone. Rows share sizes where they can: on a GPU each new one is a search for the
/// fastest kernel.
pub const ROWS: &[Row] = &[
    Row {
        name: "linear layer",
        inputs: &[wide(77, 96), wide(40, 96), wide(1, 40)],
        tracked: &[0, 1, 2],
        run: |t| vec![module::linear(x(t), t[1].clone().transpose(), Some(row(t, 2)))],
    },
    Row {
        name: "linear layer, weights in f16",
        inputs: &[wide(77, 96), half(40, 96)],
        tracked: &[0],
        run: |t| vec![module::linear(x(t), widen(t[1].clone()).transpose(), None)],
    },
    Row {
        name: "1×1 convolution",
        inputs: &[wide(2 * 96, 77), wide(40, 96)],
        tracked: &[0, 1],
        run: |t| vec![flat(t[1].clone().unsqueeze::<3>().matmul(x(t).reshape([2, 96, 77])))],
    },
    Row {
        name: "3×3 convolution",
        inputs: &[wide(2 * 64, 64), wide(96, 64 * 9), wide(1, 96)],
        tracked: &[0, 1, 2],
        run: |t| conv(t, [2, 64, 8, 8], t[1].clone(), Some(row(t, 2)), 1),
    },
    Row {
        name: "3×3 convolution, weights in f16",
        inputs: &[wide(2 * 64, 64), half(96, 64 * 9)],
        tracked: &[0],
        run: |t| conv(t, [2, 64, 8, 8], widen(t[1].clone()), None, 1),
    },
    Row {
        name: "3×3 convolution of stride 2",
        inputs: &[wide(2 * 40, 81), wide(48, 40 * 9)],
        tracked: &[0],
        run: |t| conv(t, [2, 40, 9, 9], t[1].clone(), None, 2),
    },
    Row {
        name: "3×3 convolution of latents",
        inputs: &[wide(4, 64), wide(40, 4 * 9)],
        tracked: &[],
        run: |t| conv(t, [1, 4, 8, 8], t[1].clone(), None, 1),
    },
    Row {
        name: "3×3 convolution of each channel",
        inputs: &[wide(48, 81), wide(48, 9)],
        tracked: &[0],
        run: |t| {
            let options = ConvOptions::new([2, 2], [1, 1], [1, 1], 48);
            let weight = t[1].clone().reshape([48, 1, 3, 3]);
            vec![flat(module::conv2d(x(t).reshape([1, 48, 9, 9]), weight, None, options))]
        },
    },
    Row {
        name: "3×3 filters at the shifts where they meet",
        inputs: &[wide(24, 20 * 9)],
        tracked: &[0],
        run: |t| {
            let k = x(t).reshape([24, 20, 3, 3]);
            vec![flat(module::conv2d(k.clone(), k, None, ConvOptions::new([2, 2], [2, 2], [1, 1], 1)))]
        },
    },
    Row {
        name: "attention",
        inputs: &[wide(2 * 50, 80), wide(2 * 77, 80), wide(2 * 77, 80)],
        tracked: &[0, 1, 2],
        run: |t| {
            let [q, k, v] = [(0, 50), (1, 77), (2, 77)].map(|(i, places)| t[i].clone().reshape([2, places, 80]));
            vec![flat(attend(q, k, v, 2))]
        },
    },
    Row {
        name: "softmax under a mask",
        inputs: &[wide(4 * 77, 77), wide(77, 77)],
        tracked: &[0],
        run: |t| {
            let mask = t[1].clone().triu(1).abs() * -1e4;
            let masked = x(t).reshape([2, 2, 77, 77]) * 4.0 + mask.reshape([1, 1, 77, 77]);
            vec![flat(activation::softmax(masked, 3))]
        },
    },
    Row {
        name: "layer norm",
        inputs: &[wide(2 * 77, 96), wide(1, 96), wide(1, 96)],
        tracked: &[0],
        run: |t| vec![layer_norm(x(t), row(t, 1), row(t, 2), 1e-5)],
    },
    Row {
        name: "group norm",
        inputs: &[wide(2 * 40, 49), wide(1, 40), wide(1, 40)],
        tracked: &[0],
        run: |t| vec![grouped(t, Then::Nothing)],
    },
    Row {
        name: "group norm and SiLU",
        inputs: &[wide(2 * 40, 49), wide(1, 40), wide(1, 40)],
        tracked: &[0],
        run: |t| vec![grouped(t, Then::Silu)],
    },
    Row { name: "GEGLU", inputs: &[wide(77, 192)], tracked: &[0], run: |t| vec![flat(geglu(x(t).unsqueeze::<3>()))] },
    Row { name: "GELU", inputs: &[wide(64, 96)], tracked: &[0], run: |t| vec![activation::gelu(x(t) * 3.0)] },
    Row {
        name: "quick GELU",
        inputs: &[wide(64, 96)],
        tracked: &[0],
        run: |t| vec![x(t) * activation::sigmoid(x(t) * 1.702)],
    },
    Row { name: "SiLU", inputs: &[wide(64, 96)], tracked: &[0], run: |t| vec![activation::silu(x(t) * 3.0)] },
    Row {
        name: "words by their numbers",
        inputs: &[wide(300, 40)],
        tracked: &[0],
        run: |t| {
            let ids: Vec<i64> = (0..77).map(|i| i * i * 31 % 300).collect();
            vec![x(t).select(0, Tensor::<1, Int>::from_data(TensorData::new(ids, [77]), &t[0].device()))]
        },
    },
    Row {
        name: "doubling of pixels",
        inputs: &[wide(40, 35)],
        tracked: &[0],
        run: |t| vec![flat(x(t).reshape([1, 40, 5, 1, 7, 1]).expand([1, 40, 5, 2, 7, 2]))],
    },
    Row {
        name: "nearest pixels of an odd size",
        inputs: &[wide(40, 35)],
        tracked: &[0],
        run: |t| vec![resized(t, InterpolateOptions::new(InterpolateMode::Nearest), [1, 40, 5, 7], [9, 13])],
    },
    Row {
        name: "bicubic resize",
        inputs: &[wide(3, 64)],
        tracked: &[],
        run: |t| {
            let options = InterpolateOptions::new(InterpolateMode::Bicubic).with_align_corners(false);
            vec![resized(t, options, [1, 3, 8, 8], [24, 24])]
        },
    },
    Row {
        name: "skip, margin and mean",
        inputs: &[wide(40, 49), wide(24, 49)],
        tracked: &[0, 1],
        run: |t| {
            let joined = Tensor::cat(vec![x(t), t[1].clone()], 0).reshape([1, 64, 7, 7]);
            let framed = joined.pad((0, 1, 0, 1), 0.0);
            vec![framed.powi_scalar(2).mean_dims(&[2, 3]).reshape([1, 64])]
        },
    },
    Row {
        name: "largest of 3×3 pixels",
        inputs: &[wide(40, 81)],
        tracked: &[0],
        run: |t| {
            let options = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
            vec![flat(module::max_pool2d(x(t).reshape([1, 40, 9, 9]), options))]
        },
    },
    Row {
        name: "AdamW",
        inputs: &[wide(24, 40), wide(24, 40), wide(24, 40), wide(24, 40)],
        tracked: &[],
        run: |t| {
            let step = Step { rate: 0.1, decay: 0.01, number: 3 };
            adamw(x(t), t[1].clone(), t[2].clone().abs(), t[3].clone(), step).into()
        },
    },
    Row { name: "f16 as f32", inputs: &[half(77, 51)], tracked: &[], run: |t| vec![widen(x(t))] },
];

fn x(t: &[Tensor<2>]) -> Tensor<2> {
    t[0].clone()
}

/// An input of one row as a vector.
fn row(t: &[Tensor<2>], i: usize) -> Tensor<1> {
    t[i].clone().flatten(0, 1)
}

/// A 3×3 convolution of margin 1 on `[b, i, h, w]`.
fn conv(
    t: &[Tensor<2>],
    shape: [usize; 4],
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    stride: usize,
) -> Vec<Tensor<2>> {
    let [out, _] = weight.dims();
    vec![flat(convolve(x(t).reshape(shape), weight.reshape([out, shape[1], 3, 3]), bias, stride, 1))]
}

fn grouped(t: &[Tensor<2>], then: Then) -> Tensor<2> {
    // Away from zero mean, as activations are.
    let x = x(t).reshape([2, 40, 7, 7]) * 3.0 + 1.0;
    flat(group_norm(x, row(t, 1), row(t, 2), 5, 1e-5, then))
}

fn resized(t: &[Tensor<2>], options: InterpolateOptions, shape: [usize; 4], size: [usize; 2]) -> Tensor<2> {
    flat(module::interpolate(x(t).reshape(shape), options.with_output_size(size)))
}
