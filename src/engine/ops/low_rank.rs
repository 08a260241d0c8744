//! The forward pass of a low-rank adapter beside its layer, trained through the shader.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, AutodiffBackend as _, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
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
    outputs: |case| vec![[case.rows, case.columns], [case.rows, case.rank]],
    run: |case, t| with_h(t[0].clone(), t[1].clone(), t[2].clone(), t[3].clone(), case.scale).into(),
    launch: |case, kernel, t, out| launch(kernel, [&t[0], &t[1], &t[2], &t[3], &out[0], &out[1]], case.scale),
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
    let [out, _] = with_h(x, y, down, up, scale);
    out
}

/// The result and `h = x·downᵀ`, which is untracked.
fn with_h(x: Tensor<2>, y: Tensor<2>, down: Tensor<2>, up: Tensor<2>, scale: f32) -> [Tensor<2>; 2] {
    let ([rows, inner], [out, rank]) = (x.dims(), up.dims());
    assert_eq!((y.dims(), down.dims()), ([rows, out], [rank, inner]), "an adapter {inner} → {rank} → {out}");
    let dtype = FloatDType::from(y.dtype());
    if rows * inner * rank * out == 0 {
        return [y, Tensor::<2>::zeros([rows, rank], &x.device()).cast(dtype)];
    }
    let [x, down, up] = [x, down, up].map(|tensor| tensor.cast(dtype).into_dispatch());
    let (out, h) = Dispatch::low_rank(x, y.into_dispatch(), down, up, scale);
    [out, h].map(Tensor::from_dispatch)
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait LowRank: Backend {
    /// The result and `h`, from which `∂up` follows: keeping `x` for it would hold a layer's whole input in memory.
    #[fusion(meta = |x, y, down, _, _| (y.clone(), TensorSpec::new([x.shape[0], down.shape[0]].into(), y.dtype)))]
    fn low_rank(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plain::<Self>(x, y, down, up, scale)
    }
}

fn plain<B: Backend>(
    x: FloatTensor<B>,
    y: FloatTensor<B>,
    down: FloatTensor<B>,
    up: FloatTensor<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let h = B::float_matmul(x, B::float_transpose(down));
    let scaled = B::float_mul_scalar(h.clone(), scale.into());
    (B::float_add(y, B::float_matmul(scaled, B::float_transpose(up))), h)
}

impl LowRank for Flex {}

impl LowRank for CubeBackend {
    fn low_rank(
        x: CubeTensor,
        y: CubeTensor,
        down: CubeTensor,
        up: CubeTensor,
        scale: f32,
    ) -> (CubeTensor, CubeTensor) {
        let Some(kernel) = kernel(y.dtype) else { return plain::<Self>(x, y, down, up, scale) };
        let [x, y, down, up] = [x, y, down, up].map(into_contiguous);
        let out = wgsl::empty(&y, y.shape(), y.dtype);
        let h = wgsl::empty(&y, [x.shape()[0], down.shape()[0]].into(), y.dtype);
        launch(kernel, [&x, &y, &down, &up, &out, &h], scale);
        (out, h)
    }
}

fn kernel(element: DType) -> Option<Wgsl> {
    let elements = vec![("element", wgsl::element(element)?)];
    Some(Wgsl { text: include_str!("../../../shaders/ops/low_rank.wgsl"), elements })
}

fn launch(kernel: Wgsl, tensors: [&CubeTensor; 6], scale: f32) {
    let [_, _, down, _, out, _] = tensors;
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
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), y.node(), down.node(), up.node()];
        let [x_inner, down_inner, up_inner] = [&x, &down, &up].map(|tensor| tensor.primitive().clone());
        let (out, h) = B::low_rank(x_inner, y.into_primitive(), down_inner, up_inner, scale);
        let untracked_h = Self::from_inner(h.clone());
        match LowRankBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [
                    down.is_tracked().then(|| prep.checkpoint(&x)),
                    x.is_tracked().then(|| prep.checkpoint(&down)),
                    (x.is_tracked() || down.is_tracked()).then(|| prep.checkpoint(&up)),
                ];
                let h = up.is_tracked().then_some(h);
                (prep.finish((kept, h, scale), out), untracked_h)
            }
            OpsKind::UnTracked(prep) => (prep.finish(out), untracked_h),
        }
    }
}

#[derive(Debug)]
struct LowRankBackward;

impl<B: Backend> Backward<B, 4> for LowRankBackward {
    /// `x`, `down` and `up`, then `h` and the scale; of the tensors, those that a tracked one needs.
    type State = ([Option<NodeId>; 3], Option<FloatTensor<B>>, f32);

    /// `∂x = s·(g·up)·down`, `∂down = s·(g·up)ᵀ·x`, `∂up = s·gᵀ·h`, `∂y = g`; the scale goes to the thin factor.
    fn backward(self, ops: Ops<Self::State, 4>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, y_node, down_node, up_node] = ops.parents;
        let (kept, h, scale) = ops.state;
        let [x, down, up] = kept.map(|id| id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));
        let g = gradients.consume::<B>(&ops.node);
        let scaled = |thin| B::float_mul_scalar(thin, scale.into());

        if let (Some(node), Some(h)) = (up_node, h) {
            gradients.register::<B>(node.id, B::float_matmul(B::float_transpose(g.clone()), scaled(h)));
        }
        if let Some(up) = up {
            let g_up = scaled(B::float_matmul(g.clone(), up));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_body_is_the_formula() {
        let tensor = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(burn::tensor::TensorData::new(values, shape), &crate::engine::device::cpu())
        };
        let (x, y) = (tensor(vec![1.0, 2.0, 3.0], [1, 3]), tensor(vec![10.0, 20.0], [1, 2]));
        let (down, up) = (tensor(vec![1.0, -1.0, 4.0], [1, 3]), tensor(vec![2.0, 3.0], [2, 1]));
        // x·downᵀ = 11
        let out = low_rank(x, y, down, up, 0.5);
        assert_eq!(out.into_data().try_to_vec::<f32>().unwrap(), [10.0 + 11.0, 20.0 + 16.5]);
    }
}
