//! Group normalisation (Wu & He 2018, arXiv 1803.08494), with SiLU behind it where asked: one pass, which keeps its input
//! alone for the backward pass.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::Tensor;

use super::cpu;
use super::cpu::norm::{Norm, group_norm as forward, group_norm_backward as backward};

/// What follows the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Nothing,
    Silu,
}

/// `x [b, c, h, w]`, normalised over each of `groups` groups of channels, times `gain [c]` plus `offset [c]`. Gain and
/// offset are frozen: no gradient flows to them.
pub fn group_norm(x: Tensor<4>, gain: Tensor<1>, offset: Tensor<1>, groups: usize, eps: f64, then: Then) -> Tensor<4> {
    assert!(x.dims()[1].is_multiple_of(groups), "{groups} groups of {} channels", x.dims()[1]);
    let (x, gain, offset) = (x.into_dispatch(), gain.into_dispatch(), offset.into_dispatch());
    Tensor::from_dispatch(Dispatch::group_norm(x, gain, offset, groups, eps, then == Then::Silu))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait GroupNorm: Backend {
    #[fusion(default)]
    fn group_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        let shape = x.shape();
        let (normal, _) = normal::<Self>(x, groups, eps);
        let z = affine::<Self>(Self::float_reshape(normal, shape), gain, offset);
        match silu {
            true => Self::float_mul(z.clone(), Self::sigmoid(z)),
            false => z,
        }
    }

    /// The gradient of `x` from that of the result. With `n` the normalised input, `r` one over the deviation and `g'` the
    /// gradient before the gain: `r·(g' − mean(g') − n·mean(g'·n))`.
    #[fusion(default)]
    fn group_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        g: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        let shape = x.shape();
        let (normal, r) = normal::<Self>(x, groups, eps);
        let by_z = if silu {
            // σ(z)·(1 + z·(1 − σ(z)))
            let z = affine::<Self>(Self::float_reshape(normal.clone(), shape.clone()), gain.clone(), offset);
            let s = Self::sigmoid(z.clone());
            let rest = Self::float_add_scalar(Self::float_neg(s.clone()), 1.0_f32.into());
            let slope = Self::float_mul(s, Self::float_add_scalar(Self::float_mul(z, rest), 1.0_f32.into()));
            Self::float_mul(g, slope)
        } else {
            g
        };
        let grouped = normal.shape();
        let by_normal = Self::float_reshape(Self::float_mul(by_z, by_channel::<Self>(gain)), grouped);
        let mean = Self::float_mean_dim(by_normal.clone(), 2);
        let along = Self::float_mean_dim(Self::float_mul(by_normal.clone(), normal.clone()), 2);
        let rest = Self::float_sub(Self::float_sub(by_normal, mean), Self::float_mul(normal, along));
        Self::float_reshape(Self::float_mul(rest, r), shape)
    }
}

/// The normalised numbers `[b, groups, n]` and one over their deviation `[b, groups, 1]`.
fn normal<B: Backend>(x: FloatTensor<B>, groups: usize, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let [b, c, h, w] = x.shape().dims();
    let x = B::float_reshape(x, [b, groups, c / groups * h * w].into());
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 2));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 2);
    let r = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, eps.into())));
    (B::float_mul(centred, r.clone()), r)
}

fn affine<B: Backend>(x: FloatTensor<B>, gain: FloatTensor<B>, offset: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(B::float_mul(x, by_channel::<B>(gain)), by_channel::<B>(offset))
}

fn by_channel<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [c] = x.shape().dims();
    B::float_reshape(x, [1, c, 1, 1].into())
}

impl GroupNorm for CubeBackend {}

impl GroupNorm for Flex {
    fn group_norm(
        x: FlexTensor,
        gain: FlexTensor,
        offset: FlexTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FlexTensor {
        let [x, gain, offset] = [x, gain, offset].map(cpu::contiguous);
        let shape = x.shape();
        let norm = Norm { gain: gain.storage(), offset: offset.storage(), eps: eps as f32 };
        cpu::tensor(forward(x.storage(), norm, shape.dims(), groups, silu), shape)
    }

    fn group_norm_backward(
        x: FlexTensor,
        gain: FlexTensor,
        offset: FlexTensor,
        g: FlexTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FlexTensor {
        let [x, gain, offset, g] = [x, gain, offset, g].map(cpu::contiguous);
        let shape = x.shape();
        let norm = Norm { gain: gain.storage(), offset: offset.storage(), eps: eps as f32 };
        cpu::tensor(backward(x.storage(), g.storage(), norm, shape.dims(), groups, silu), shape)
    }
}

impl<B: GroupNorm, C: CheckpointStrategy> GroupNorm for Autodiff<B, C> {
    fn group_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        let node = x.node();
        let inner = [x, gain, offset].map(FloatTensor::<Self>::into_primitive);
        let [x, gain, offset] = inner.clone();
        let out = B::group_norm(x, gain, offset, groups, eps, silu);
        match GroupNormBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inner, groups, eps, silu), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct GroupNormBackward;

impl<B: GroupNorm> Backward<B, 1> for GroupNormBackward {
    /// Input, gain and offset; groups, ε and whether SiLU follows.
    type State = ([FloatTensor<B>; 3], usize, f64, bool);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([x, gain, offset], groups, eps, silu) = ops.state;
        let g = gradients.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<B>(node.id, B::group_norm_backward(x, gain, offset, g, groups, eps, silu));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::random::Philox;
    use burn::tensor::{TensorData, activation};

    #[test]
    fn result_and_gradient_are_those_of_single_operations() {
        let (groups, [b, c, h, w]) = (3, [2, 6, 5, 7]);
        let tensor = |draw, n: usize| Philox::new(0).normal(draw, n);
        let x = Tensor::<4>::from_data(TensorData::new(tensor(0, b * c * h * w), [b, c, h, w]), &cpu());
        let x = (x * 3.0 + 1.0).autodiff().require_grad();
        let [gain, offset] = [1, 2].map(|draw| Tensor::<1>::from_data(TensorData::new(tensor(draw, c), [c]), &cpu()));
        let pull = Tensor::<4>::from_data(TensorData::new(tensor(3, b * c * h * w), [b, c, h, w]), &cpu()).autodiff();
        for then in [Then::Nothing, Then::Silu] {
            let run = |y: Tensor<4>| {
                let gradients = (y.clone() * pull.clone()).sum().backward();
                [read(y.inner()).unwrap(), read(x.grad(&gradients).unwrap()).unwrap()]
            };
            let grouped = x.clone().reshape([b, groups, c / groups * h * w]);
            let centred = grouped.clone() - grouped.mean_dim(2);
            let deviation = (centred.clone().powi_scalar(2).mean_dim(2) + 1e-5).sqrt();
            let [gain4, offset4] = [&gain, &offset].map(|x| x.clone().reshape([1, c, 1, 1]).autodiff());
            let z = (centred / deviation).reshape([b, c, h, w]) * gain4 + offset4;
            let plain = run(if then == Then::Silu { activation::silu(z) } else { z });
            let ours =
                run(group_norm(x.clone(), gain.clone().autodiff(), offset.clone().autodiff(), groups, 1e-5, then));
            for (a, b) in plain.iter().flatten().zip(ours.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{then:?}: {a} {b}");
            }
        }
    }
}
