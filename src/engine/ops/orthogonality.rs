//! How far the columns of matrices are from orthonormal, as a loss.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, AutodiffBackend as _, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};

use super::wgsl::{self, Wgsl};
use super::{Case, Op};

pub const OP: Op = Op {
    name: "orthogonality",
    formula: "‖QᵀQ − I‖²",
    elements: &[[DType::F32, DType::F32]],
    kernel: |[_, element]| kernel(element),
    inputs: |case| vec![([matrices(case) * case.columns, case.rank], DType::F32)],
    outputs: |case| vec![[1, matrices(case)], [matrices(case) * case.rank, case.rank]],
    run: |case, t| {
        let n = matrices(case);
        if n * case.columns * case.rank == 0 {
            return vec![Tensor::zeros([1, n], &t[0].device())];
        }
        vec![orthogonality(t[0].clone().reshape([n, case.columns, case.rank])).reshape([1, n])]
    },
    launch: |case, kernel, t, out| {
        launch(kernel, [&t[0], &out[0], &out[1]], [matrices(case), case.columns, case.rank]);
    },
    differentiable: &[0],
    tolerance: 1e-5,
};

fn matrices(case: &Case) -> usize {
    case.rows.div_ceil(16)
}

/// `‖QᵀQ − I‖²` of each matrix `Q [n, rank]` of `q [matrices, n, rank]`, in f32: 0 where its columns are orthonormal.
pub fn orthogonality(q: Tensor<3>) -> Tensor<1> {
    let (loss, _) = Dispatch::orthogonality(q.cast(FloatDType::F32).into_dispatch());
    Tensor::from_dispatch(loss)
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Orthogonality: Backend {
    /// The loss, and `QᵀQ − I [matrices, rank, rank]` for the backward pass, through which no gradient flows.
    #[fusion(meta = |q| {
        let ([n, _, r], of) = (q.shape.dims(), |shape: burn::tensor::Shape| TensorSpec::new(shape, q.dtype));
        (of([n].into()), of([n, r, r].into()))
    })]
    fn orthogonality(q: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plain::<Self>(q)
    }
}

fn plain<B: Backend>(q: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let [n, _, r] = q.shape().dims();
    let one = (0..r * r).map(|at| f32::from(u8::from(at / r == at % r))).collect::<Vec<_>>();
    let one = B::float_from_data(TensorData::new(one, [1, r, r]), &q.device());
    let excess = B::float_sub(B::float_matmul(B::float_swap_dims(q.clone(), 1, 2), q), one);
    let squares = B::float_reshape(B::float_mul(excess.clone(), excess.clone()), [n, r * r].into());
    (B::float_reshape(B::float_sum_dim(squares, 1), [n].into()), excess)
}

impl Orthogonality for Flex {}

impl Orthogonality for CubeBackend {
    fn orthogonality(q: CubeTensor) -> (CubeTensor, CubeTensor) {
        let Some(kernel) = kernel(q.dtype) else { return plain::<Self>(q) };
        let q = into_contiguous(q);
        let [n, rows, r] = q.shape().dims();
        let loss = wgsl::empty(&q, [n].into(), q.dtype);
        let excess = wgsl::empty(&q, [n, r, r].into(), q.dtype);
        launch(kernel, [&q, &loss, &excess], [n, rows, r]);
        (loss, excess)
    }
}

fn kernel(element: DType) -> Option<Wgsl> {
    let text = concat!(
        include_str!("../../../shaders/common/total.wgsl"),
        include_str!("../../../shaders/ops/orthogonality.wgsl"),
    );
    (wgsl::element(element)? == "f32").then(|| Wgsl { text, elements: Vec::new() })
}

/// The matrices, their losses and excess; how many there are, of how many rows and columns.
fn launch(kernel: Wgsl, tensors: [&CubeTensor; 3], sizes: [usize; 3]) {
    kernel.launch(sizes[0], &tensors, &sizes.map(|n| n as u32));
}

impl<B: Orthogonality, C: CheckpointStrategy> Orthogonality for Autodiff<B, C> {
    fn orthogonality(q: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let node = q.node();
        let q = q.into_primitive();
        let (loss, excess) = B::orthogonality(q.clone());
        let untracked = Self::from_inner(excess.clone());
        match OrthogonalityBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => (prep.finish((q, excess), loss), untracked),
            OpsKind::UnTracked(prep) => (prep.finish(loss), untracked),
        }
    }
}

#[derive(Debug)]
struct OrthogonalityBackward;

impl<B: Backend> Backward<B, 1> for OrthogonalityBackward {
    /// `Q` and `QᵀQ − I`.
    type State = (FloatTensor<B>, FloatTensor<B>);

    /// `4·g·Q·(QᵀQ − I)`.
    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (q, excess) = ops.state;
        let g = gradients.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            let [n] = g.shape().dims();
            let g = B::float_mul_scalar(B::float_reshape(g, [n, 1, 1].into()), 4.0_f32.into());
            gradients.register::<B>(node.id, B::float_matmul(q, B::float_mul(excess, g)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};

    #[test]
    fn orthonormal_columns_cost_nothing() {
        // (3, 4)/5 and (−4, 3)/5; then twice the first column.
        let q = Tensor::<3>::from_floats([[[0.6, -0.8], [0.8, 0.6]], [[0.6, 0.6], [0.8, 0.8]]], &cpu());
        let loss = read(orthogonality(q)).unwrap();
        assert!(loss[0].abs() < 1e-12 && (loss[1] - 2.0).abs() < 1e-5, "{loss:?}");
    }
}
