//! The forward pass of a low-rank adapter beside its layer, trained through the shader.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// Rows and columns of the output that a group computes; the shader says the same.
const GROUP: [usize; 2] = [16, 256];

pub const OP: Op = Op {
    name: "low_rank",
    formula: "y + s·(x·downᵀ)·upᵀ",
    elements: &[[DType::F32, DType::F32], [DType::F16, DType::F16]],
    kernel: |[_, element]| kernel(element),
    inputs: |&Case { rows, columns, inner, rank, elements: [element, _], .. }| {
        [[rows, inner], [rows, columns], [rank, inner], [columns, rank]].map(|shape| (shape, element)).into()
    },
    output: |case| [case.rows, case.columns],
    run: |case, t| low_rank(t[0].clone(), t[1].clone(), t[2].clone(), t[3].clone(), case.scale),
    launch: |case, kernel, t, out| launch(kernel, [&t[0], &t[1], &t[2], &t[3], out], case.scale),
    differentiable: &[0, 1, 2, 3],
};

/// `y + s·(x·downᵀ)·upᵀ`.
///
/// - `x`: `[rows, in]`, what the layer reads; `y`: `[rows, out]`, what the layer made of it.
/// - `down`: `[rank, in]`, `up`: `[out, rank]`; `scale`: strength · alpha / rank.
/// - the result: `[rows, out]`. All is of `y`'s type (f32 or f16), else it is converted.
///
/// Any of the tensors may be tracked; each that is not costs the backward pass nothing.
pub fn low_rank(x: Tensor<2>, y: Tensor<2>, down: Tensor<2>, up: Tensor<2>, scale: f32) -> Tensor<2> {
    let ([rows, inner], [out, rank]) = (x.dims(), up.dims());
    assert_eq!((y.dims(), down.dims()), ([rows, out], [rank, inner]), "an adapter {inner} → {rank} → {out}");
    if rows * inner * rank * out == 0 {
        return y;
    }
    let dtype = FloatDType::from(y.dtype());
    let [x, down, up] = [x, down, up].map(|tensor| tensor.cast(dtype).into_dispatch());
    Tensor::from_dispatch(Dispatch::low_rank(x, y.into_dispatch(), down, up, scale))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait LowRank: Backend {
    #[fusion(dtype = y, shape = y)]
    fn low_rank(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        plain::<Self>(x, y, down, up, scale)
    }
}

fn plain<B: Backend>(
    x: FloatTensor<B>,
    y: FloatTensor<B>,
    down: FloatTensor<B>,
    up: FloatTensor<B>,
    scale: f32,
) -> FloatTensor<B> {
    let h = B::float_mul_scalar(times_transposed::<B>(x, down), scale.into());
    B::float_add(y, times_transposed::<B>(h, up))
}

fn times_transposed<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(a, B::float_transpose(b))
}

impl LowRank for Flex {}

impl LowRank for CubeBackend {
    fn low_rank(x: CubeTensor, y: CubeTensor, down: CubeTensor, up: CubeTensor, scale: f32) -> CubeTensor {
        let Some(kernel) = kernel(y.dtype) else { return plain::<Self>(x, y, down, up, scale) };
        let [x, y, down, up] = [x, y, down, up].map(into_contiguous);
        let out = wgsl::empty(&y, y.shape(), y.dtype);
        launch(kernel, [&x, &y, &down, &up, &out], scale);
        out
    }
}

fn kernel(element: DType) -> Option<Wgsl> {
    let elements = vec![("element", wgsl::element(element)?)];
    Some(Wgsl { text: include_str!("../../../shaders/ops/low_rank.wgsl"), elements })
}

fn launch(kernel: Wgsl, tensors: [&CubeTensor; 5], scale: f32) {
    let [_, _, down, _, out] = tensors;
    let ([rows, columns], [rank, inner]) = (out.shape().dims(), down.shape().dims());
    let groups = rows.div_ceil(GROUP[0]) * columns.div_ceil(GROUP[1]);
    let [rows, columns, inner, rank] = [rows, columns, inner, rank].map(|n| n as u32);
    kernel.launch(groups, &tensors, &[rows, columns, inner, rank, scale.to_bits()]);
}

impl<B: LowRank, C: CheckpointStrategy> LowRank for Autodiff<B, C> {
    fn low_rank(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), y.node(), down.node(), up.node()];
        match LowRankBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                // ∂x needs down and up, ∂down x and up, ∂up x and down; ∂y needs nothing.
                let [for_x, for_down, for_up] = [&x, &down, &up].map(|tensor| tensor.is_tracked());
                let state = State {
                    x: (for_down || for_up).then(|| prep.checkpoint(&x)),
                    down: (for_x || for_up).then(|| prep.checkpoint(&down)),
                    up: (for_x || for_down).then(|| prep.checkpoint(&up)),
                    scale,
                };
                let [x, y, down, up] = [x, y, down, up].map(|tensor| tensor.into_primitive());
                prep.finish(state, B::low_rank(x, y, down, up, scale))
            }
            OpsKind::UnTracked(prep) => {
                let [x, y, down, up] = [x, y, down, up].map(|tensor| tensor.into_primitive());
                prep.finish(B::low_rank(x, y, down, up, scale))
            }
        }
    }
}

#[derive(Debug)]
struct LowRankBackward;

#[derive(Clone, Debug)]
struct State {
    x: Option<NodeId>,
    down: Option<NodeId>,
    up: Option<NodeId>,
    scale: f32,
}

impl<B: Backend> Backward<B, 4> for LowRankBackward {
    type State = State;

    /// `∂x = s·(g·up)·down`, `∂down = s·(g·up)ᵀ·x`, `∂up = s·gᵀ·(x·downᵀ)`, `∂y = g`; the scale goes to the thin factor.
    fn backward(self, ops: Ops<State, 4>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, y_node, down_node, up_node] = ops.parents;
        let g = gradients.consume::<B>(&ops.node);
        let scale = |tensor| B::float_mul_scalar(tensor, ops.state.scale.into());
        let [x, down, up] = [ops.state.x, ops.state.down, ops.state.up]
            .map(|id| id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));

        if let Some(node) = up_node
            && let (Some(x), Some(down)) = (x.clone(), down.clone())
        {
            let h = scale(times_transposed::<B>(x, down));
            gradients.register::<B>(node.id, B::float_matmul(B::float_transpose(g.clone()), h));
        }
        if let Some(up) = up {
            let g_up = scale(B::float_matmul(g.clone(), up));
            if let (Some(node), Some(x)) = (down_node, x) {
                gradients.register::<B>(node.id, B::float_matmul(B::float_transpose(g_up.clone()), x));
            }
            if let (Some(node), Some(down)) = (x_node, down) {
                gradients.register::<B>(node.id, B::float_matmul(g_up, down));
            }
        }
        if let Some(node) = y_node {
            gradients.register::<B>(node.id, g);
        }
    }
}
