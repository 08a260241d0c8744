//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450) in one pass, which keeps its input alone for the backward pass.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::Tensor;

use super::cpu;
use super::cpu::norm::{self, Norm};

/// Each row of `x`, over its last axis, times `gain` plus `offset`. Both are frozen: no gradient flows to them.
pub fn layer_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, offset: Tensor<1>, eps: f64) -> Tensor<D> {
    let shape = x.dims();
    let [n] = gain.dims();
    let rows = x.reshape([shape.iter().product::<usize>() / n, n]);
    let y = Dispatch::layer_norm_rows(rows.into_dispatch(), gain.into_dispatch(), offset.into_dispatch(), eps);
    Tensor::<2>::from_dispatch(y).reshape(shape)
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait LayerNorm: Backend {
    #[fusion(default)]
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (normal, _) = normal::<Self>(x, eps);
        Self::float_add(Self::float_mul(normal, row::<Self>(gain)), row::<Self>(offset))
    }

    /// The gradient of `x` from `g`, that of the result. With `n` the normalised input, `r` one over the deviation and
    /// `g' = g·gain`: `r·(g' − mean(g') − n·mean(g'·n))`.
    #[fusion(default)]
    fn layer_norm_rows_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        g: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (normal, r) = normal::<Self>(x, eps);
        let g = Self::float_mul(g, row::<Self>(gain));
        let mean = Self::float_mean_dim(g.clone(), 1);
        let along = Self::float_mean_dim(Self::float_mul(g.clone(), normal.clone()), 1);
        let rest = Self::float_sub(Self::float_sub(g, mean), Self::float_mul(normal, along));
        Self::float_mul(rest, r)
    }
}

/// The normalised numbers, and one over each row's deviation.
fn normal<B: Backend>(x: FloatTensor<B>, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 1);
    let r = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, eps.into())));
    (B::float_mul(centred, r.clone()), r)
}

fn row<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [n] = x.shape().dims();
    B::float_reshape(x, [1, n].into())
}

impl LayerNorm for CubeBackend {}

impl LayerNorm for Flex {
    fn layer_norm_rows(x: FlexTensor, gain: FlexTensor, offset: FlexTensor, eps: f64) -> FlexTensor {
        let [x, gain, offset] = [x, gain, offset].map(cpu::contiguous);
        let norm = Norm { gain: gain.storage(), offset: offset.storage(), eps: eps as f32 };
        cpu::tensor(norm::layer_norm(x.storage(), norm), x.shape())
    }

    fn layer_norm_rows_backward(x: FlexTensor, gain: FlexTensor, g: FlexTensor, eps: f64) -> FlexTensor {
        let [x, gain, g] = [x, gain, g].map(cpu::contiguous);
        let norm = Norm { gain: gain.storage(), offset: &[], eps: eps as f32 };
        cpu::tensor(norm::layer_norm_backward(x.storage(), g.storage(), norm), x.shape())
    }
}

impl<B: LayerNorm, C: CheckpointStrategy> LayerNorm for Autodiff<B, C> {
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let node = x.node();
        let [x, gain, offset] = [x, gain, offset].map(FloatTensor::<Self>::into_primitive);
        let out = B::layer_norm_rows(x.clone(), gain.clone(), offset, eps);
        match LayerNormBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([x, gain], eps), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct LayerNormBackward;

impl<B: LayerNorm> Backward<B, 1> for LayerNormBackward {
    /// Input and gain, and ε.
    type State = ([FloatTensor<B>; 2], f64);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([x, gain], eps) = ops.state;
        let g = gradients.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<B>(node.id, B::layer_norm_rows_backward(x, gain, g, eps));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::random::Philox;
    use burn::tensor::{TensorData, module};

    #[test]
    fn result_and_gradient_are_those_of_single_operations() {
        let tensor = |draw, shape: [usize; 3]| {
            let values = Philox::new(0).normal(draw, shape.iter().product());
            Tensor::<3>::from_data(TensorData::new(values, shape), &cpu())
        };
        let x = (tensor(0, [2, 300, 37]) * 3.0 + 1.0).autodiff().require_grad();
        let pull = tensor(1, [2, 300, 37]).autodiff();
        let [gain, offset] = [2, 3].map(|draw| tensor(draw, [1, 1, 37]).reshape([37]).autodiff());
        let run = |y: Tensor<3>| {
            let gradients = (y.clone() * pull.clone()).sum().backward();
            [read(y.inner()).unwrap(), read(x.grad(&gradients).unwrap()).unwrap()]
        };
        let plain = run(module::layer_norm(x.clone(), gain.clone(), Some(offset.clone()), 1e-5));
        let ours = run(layer_norm(x.clone(), gain, offset, 1e-5));
        for (a, b) in plain.iter().flatten().zip(ours.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
