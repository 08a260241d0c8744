//! Convolution. On the CPU by kernels of our own; a frozen filter keeps nothing of the input for the backward pass.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::ModuleOps as _;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Tensor};

use super::cpu;
use super::cpu::patches::{self, Shape};
use super::cpu::winograd::{self, Filter};

/// `x [b, i, h, w]` with `weight [o, i, kh, kw]` and `bias [o]`: `[b, o, h', w']`.
pub fn convolve(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Tensor<4> {
    let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &x.device()));
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::convolve(x, weight, bias, stride, padding))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Convolve: Backend {
    #[fusion(default)]
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        Self::conv2d(x, weight, Some(bias), options(stride, padding))
    }

    /// The gradient of an input `[b, i, height, width]` from that of the result.
    #[fusion(default)]
    fn convolve_backward(
        g: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        before: [usize; 2],
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        let ([_, _, h, w], [_, _, kh, kw]) = (g.shape().dims(), weight.shape().dims());
        let unread =
            |before: usize, behind: usize, kernel: usize| before + 2 * padding - ((behind - 1) * stride + kernel);
        let unread = [unread(before[0], h, kh), unread(before[1], w, kw)];
        Self::conv_transpose2d(g, weight, None, ConvTransposeOptions::new([stride; 2], [padding; 2], unread, [1; 2], 1))
    }
}

fn options(stride: usize, padding: usize) -> ConvOptions<2> {
    ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1)
}

impl Convolve for CubeBackend {}

impl Convolve for Flex {
    fn convolve(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, stride: usize, padding: usize) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return Self::conv2d(x, weight, Some(bias), options(stride, padding));
        }
        let [x, weight, bias] = [x, weight, bias].map(cpu::contiguous);
        let [batch, _, height, width] = x.shape().dims();
        let shape = shape(batch, [height, width], &weight, stride, padding);
        let values = match Kernel::of(&shape) {
            Kernel::Winograd(size) => {
                let filter = Filter::new(weight.storage(), shape.input, shape.out);
                winograd::convolve(x.storage(), filter, Some(bias.storage()), size)
            }
            Kernel::Patches => patches::convolve(x.storage(), weight.storage(), Some(bias.storage()), shape),
        };
        let [height, width] = shape.behind();
        cpu::tensor(values, [batch, shape.out, height, width])
    }

    fn convolve_backward(
        g: FlexTensor,
        weight: FlexTensor,
        before: [usize; 2],
        stride: usize,
        padding: usize,
    ) -> FlexTensor {
        if g.dtype() != DType::F32 {
            let [_, input, _, _] = weight.shape().dims();
            let [batch, ..] = g.shape().dims::<4>();
            let x = FlexTensor::zeros([batch, input, before[0], before[1]].into(), g.dtype());
            return Self::conv2d_x_backward(x, weight, g, options(stride, padding));
        }
        let [g, weight] = [g, weight].map(cpu::contiguous);
        let [batch, ..] = g.shape().dims::<4>();
        let shape = shape(batch, before, &weight, stride, padding);
        let values = match Kernel::of(&shape) {
            Kernel::Winograd(size) => {
                let filter = Filter::new(weight.storage(), shape.input, shape.out);
                winograd::convolve(g.storage(), filter.turned(), None, size)
            }
            Kernel::Patches => patches::backward(g.storage(), weight.storage(), shape),
        };
        cpu::tensor(values, [batch, shape.input, before[0], before[1]])
    }
}

fn shape(batch: usize, before: [usize; 2], weight: &FlexTensor, stride: usize, padding: usize) -> Shape {
    let [out, input, kh, kw] = weight.shape().dims();
    Shape { batch, input, out, before, kernel: [kh, kw], stride, padding }
}

enum Kernel {
    Winograd(winograd::Size),
    Patches,
}

impl Kernel {
    /// The faster one.
    fn of(shape: &Shape) -> Self {
        let Shape { batch, before: [height, width], .. } = *shape;
        let size = winograd::Size { batch, height, width };
        let same = shape.kernel == [3, 3] && (shape.stride, shape.padding) == (1, 1);
        // The latents' four channels are a quarter of a vector.
        let wide = shape.input >= winograd::LANES / 2;
        match same && wide && size.pays() {
            true => Self::Winograd(size),
            false => Self::Patches,
        }
    }
}

impl<B: Convolve, C: CheckpointStrategy> Convolve for Autodiff<B, C> {
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let [_, _, height, width] = x.shape().dims();
        let inner = [&x, &weight, &bias].map(|tensor| tensor.primitive().clone());
        let [x_inner, weight_inner, bias_inner] = inner;
        let out = B::convolve(x_inner, weight_inner, bias_inner, stride, padding);
        match ConvolveBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [
                    weight.is_tracked().then(|| prep.checkpoint(&x)),
                    (x.is_tracked() || weight.is_tracked()).then(|| prep.checkpoint(&weight)),
                ];
                prep.finish((kept, [height, width], stride, padding), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct ConvolveBackward;

impl<B: Convolve> Backward<B, 3> for ConvolveBackward {
    /// Input and weight, those that a gradient needs; height and width of the input, stride and padding.
    type State = ([Option<NodeId>; 2], [usize; 2], usize, usize);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, weight_node, bias_node] = ops.parents;
        let (kept, before, stride, padding) = ops.state;
        let [x, weight] = kept.map(|id| id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));
        let g = gradients.consume::<B>(&ops.node);
        if let (Some(node), Some(x), Some(weight)) = (weight_node, x, &weight) {
            let gradient = B::conv2d_weight_backward(x, weight.clone(), g.clone(), options(stride, padding));
            gradients.register::<B>(node.id, gradient);
        }
        if let Some(node) = bias_node {
            let [batch, out, height, width] = g.shape().dims();
            let by_channel =
                B::float_reshape(B::float_swap_dims(g.clone(), 0, 1), [out, batch * height * width].into());
            gradients.register::<B>(node.id, B::float_reshape(B::float_sum_dim(by_channel, 1), [out].into()));
        }
        if let (Some(node), Some(weight)) = (x_node, weight) {
            gradients.register::<B>(node.id, B::convolve_backward(g, weight, before, stride, padding));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::random::Philox;
    use burn::tensor::{TensorData, module};

    /// Odd sizes, channels that fill no vector, other strides and kernels, few tiles and many: the same as burn's.
    #[test]
    fn results_and_gradients_are_those_of_a_plain_convolution() {
        for (sizes, out, kernel, stride, padding) in [
            ([2, 24, 23, 18], 20, 3, 1, 1),
            ([3, 70, 9, 13], 33, 3, 1, 1),
            ([1, 12, 5, 6], 7, 3, 1, 1),
            ([2, 3, 17, 12], 18, 3, 2, 1),
            ([1, 16, 10, 11], 5, 3, 2, 0),
            ([4, 5, 6, 7], 3, 1, 1, 0),
            ([1, 2, 9, 9], 4, 4, 3, 2),
            // More than one block of outputs, more than one band of patches, pictures of one pixel.
            ([1, 400, 20, 20], 300, 3, 1, 1),
            ([1, 48, 80, 80], 5, 4, 1, 1),
            ([30, 9, 1, 1], 17, 3, 1, 1),
        ] {
            let tensor = |draw, shape: &[usize]| {
                let values = Philox::new(0).normal(draw, shape.iter().product());
                TensorData::new(values, shape.to_vec())
            };
            let leaf = |data: TensorData| Tensor::<4>::from_data(data, &cpu()).autodiff().require_grad();
            let (x, w) = (leaf(tensor(0, &sizes)), leaf(tensor(1, &[out, sizes[1], kernel, kernel])));
            let bias = Tensor::<1>::from_data(tensor(2, &[out]), &cpu()).autodiff().require_grad();
            let run = |y: Tensor<4>| {
                let pull = Tensor::<4>::from_data(tensor(3, &y.dims()), &cpu());
                let gradients = (y.clone() * pull.autodiff()).sum().backward();
                let of = |leaf: &Tensor<4>| read(leaf.grad(&gradients).unwrap()).unwrap();
                [read(y.inner()).unwrap(), of(&x), of(&w), read(bias.grad(&gradients).unwrap()).unwrap()]
            };
            let ours = run(convolve(x.clone(), w.clone(), Some(bias.clone()), stride, padding));
            let plain = run(module::conv2d(x.clone(), w.clone(), Some(bias.clone()), options(stride, padding)));
            for (ours, plain) in ours.iter().zip(&plain) {
                let largest = plain.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let worst = ours.iter().zip(plain).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(worst < 2e-5 * largest, "{sizes:?} → {out}, {kernel}/{stride}: {worst} of {largest}");
            }
        }
    }
}
