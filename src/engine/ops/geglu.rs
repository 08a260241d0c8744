//! The gate of a transformer's feed-forward half (Shazeer 2020, arXiv 2002.05202): `value · GELU(gate)`.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{Slice, Tensor};

use super::cpu::{self, gate};

/// `x [b, n, 2·width]`, values before gates: `[b, n, width]`.
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    let [b, n, both] = x.dims();
    let y = Dispatch::geglu_rows(x.reshape([b * n, both]).into_dispatch());
    Tensor::<2>::from_dispatch(y).reshape([b, n, both / 2])
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Geglu: Backend {
    #[fusion(default)]
    fn geglu_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let [value, gate] = halves::<Self>(&x);
        Self::float_mul(value, Self::gelu(gate))
    }

    /// The gradient of `x` from `g`, that of the result.
    #[fusion(default)]
    fn geglu_rows_backward(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self> {
        let [value, gate] = halves::<Self>(&x);
        let by_value = Self::float_mul(g.clone(), Self::gelu(gate.clone()));
        let by_gate = Self::gelu_backward(gate, Self::float_mul(g, value));
        Self::float_cat(vec![by_value, by_gate], 1)
    }
}

fn halves<B: Backend>(x: &FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let [_, both] = x.shape().dims();
    let half = |from: usize| B::float_slice(x.clone(), &[Slice::full(), Slice::from(from..from + both / 2)]);
    [half(0), half(both / 2)]
}

impl Geglu for CubeBackend {}

impl Geglu for Flex {
    fn geglu_rows(x: FlexTensor) -> FlexTensor {
        let x = cpu::contiguous(x);
        let [rows, both] = x.shape().dims();
        cpu::tensor(gate::geglu(x.storage(), both / 2), [rows, both / 2])
    }

    fn geglu_rows_backward(x: FlexTensor, g: FlexTensor) -> FlexTensor {
        let [x, g] = [x, g].map(cpu::contiguous);
        let [_, both] = x.shape().dims::<2>();
        cpu::tensor(gate::backward(x.storage(), g.storage(), both / 2), x.shape())
    }
}

impl<B: Geglu, C: CheckpointStrategy> Geglu for Autodiff<B, C> {
    fn geglu_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = x.node();
        let x = x.into_primitive();
        let out = B::geglu_rows(x.clone());
        match GegluBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct GegluBackward;

impl<B: Geglu> Backward<B, 1> for GegluBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let g = gradients.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<B>(node.id, B::geglu_rows_backward(ops.state, g));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use burn::tensor::{TensorData, activation};

    #[test]
    fn result_and_gradient_are_those_of_single_operations() {
        let values: Vec<f32> = (0..2 * 150 * 76).map(|i| (i as f32 * 0.7).sin() * 6.0).collect();
        let x = Tensor::<3>::from_data(TensorData::new(values, [2, 150, 76]), &cpu()).autodiff().require_grad();
        let run = |y: Tensor<3>| {
            let gradients = y.clone().powi_scalar(2).sum().backward();
            [read(y.inner()).unwrap(), read(x.grad(&gradients).unwrap()).unwrap()]
        };
        let plain = run(x.clone().narrow(2, 0, 38) * activation::gelu(x.clone().narrow(2, 38, 38)));
        let ours = run(geglu(x.clone()));
        for (a, b) in plain.iter().flatten().zip(ours.iter().flatten()) {
            assert!((a - b).abs() < 2e-6 * a.abs().max(10.0), "{a} {b}");
        }
    }
}
