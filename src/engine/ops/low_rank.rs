//! The forward pass of low-rank adapters beside their layer, trained through the shader.

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, AutodiffBackend as _, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};

use super::outer::Outer;
use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// Rows and columns of the output that a group computes; the shader says the same.
const GROUP: [usize; 2] = [16, 256];

pub const OP: Op = Op {
    name: "low_rank",
    formula: "y + (s ∘ (x·downᵀ))·upᵀ",
    elements: &[[DType::F32, DType::F32], [DType::F16, DType::F16]],
    kernel: |[_, element]| kernel(element),
    inputs: |&Case { rows, columns, inner, rank, elements: [element, _], .. }| {
        [[rows, inner], [rows, columns], [rank, inner], [columns, rank]].map(|shape| (shape, element)).into()
    },
    outputs: |case| vec![[case.rows, case.columns], [case.rows, case.rank]],
    run: |case, t| with_h(t[0].clone(), t[1].clone(), t[2].clone(), t[3].clone(), &case.scales()).into(),
    launch: |case, kernel, t, out| launch(kernel, [&t[0], &t[1], &t[2], &t[3], &out[0], &out[1]], &case.scales()),
    differentiable: &[0, 1, 2, 3],
    tolerance: 1e-5,
};

/// `y + (s ∘ (x·downᵀ))·upᵀ`: each adapter of rank `r` owns `r` rows of `down`, the same columns of `up`, and repeats its
/// strength · alpha / rank over these places of `s`. These go along with each launch: a fader that moves builds nothing
/// anew.
///
/// - `x`: `[rows, in]`, what the layer reads; `y`: `[rows, out]`, what the layer made of it.
/// - `down`: `[R, in]`, `up`: `[out, R]`, `s`: one for each of the `R` ranks.
/// - the result: `[rows, out]`. All is of `y`'s type (f32 or f16), else it is converted.
///
/// Any of the tensors may be tracked; each that is not costs the backward pass nothing.
pub fn low_rank(x: Tensor<2>, y: Tensor<2>, down: Tensor<2>, up: Tensor<2>, s: &Arc<[f32]>) -> Tensor<2> {
    let [out, _] = with_h(x, y, down, up, s);
    out
}

/// The result and `h = x·downᵀ`, which is untracked.
fn with_h(x: Tensor<2>, y: Tensor<2>, down: Tensor<2>, up: Tensor<2>, s: &Arc<[f32]>) -> [Tensor<2>; 2] {
    let ([rows, inner], [out, rank]) = (x.dims(), up.dims());
    assert_eq!((y.dims(), down.dims()), ([rows, out], [rank, inner]), "an adapter {inner} → {rank} → {out}");
    assert_eq!(s.len(), rank, "scales for {rank} ranks");
    let dtype = FloatDType::from(y.dtype());
    if rows * inner * rank * out == 0 {
        return [y, Tensor::<2>::zeros([rows, rank], &x.device()).cast(dtype)];
    }
    let [x, down, up] = [x, down, up].map(|tensor| tensor.cast(dtype).into_dispatch());
    let (out, h) = Dispatch::low_rank(x, y.into_dispatch(), down, up, Arc::clone(s));
    [out, h].map(Tensor::from_dispatch)
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait LowRank: Outer {
    /// The result and `h`, from which `∂up` follows: keeping `x` for it would hold a layer's whole input in memory.
    #[fusion(meta = |x, y, down, _, _| (y.clone(), TensorSpec::new([x.shape[0], down.shape[0]].into(), y.dtype)))]
    fn low_rank(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        s: Arc<[f32]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plain::<Self>(x, y, down, up, &s)
    }

    /// `∂x = (s ∘ (g·up))·down`, and `g·up`, from which `∂down` follows: the same work with the factors' parts exchanged.
    #[fusion(meta = |g, down, up, _| {
        let of = |columns: usize| TensorSpec::new([g.shape[0], columns].into(), g.dtype);
        (of(down.shape[1]), of(up.shape[1]))
    })]
    fn low_rank_backward(
        g: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        s: Arc<[f32]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plain_backward::<Self>(g, down, up, &s)
    }
}

fn plain<B: Backend>(
    x: FloatTensor<B>,
    y: FloatTensor<B>,
    down: FloatTensor<B>,
    up: FloatTensor<B>,
    s: &[f32],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let h = B::float_matmul(x, B::float_transpose(down));
    (B::float_add(y, B::float_matmul(scaled::<B>(h.clone(), s), B::float_transpose(up))), h)
}

fn plain_backward<B: Backend>(
    g: FloatTensor<B>,
    down: FloatTensor<B>,
    up: FloatTensor<B>,
    s: &[f32],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let g_up = B::float_matmul(g, up);
    (B::float_matmul(scaled::<B>(g_up.clone(), s), down), g_up)
}

/// `h [rows, R]`, each column times its own factor.
pub(super) fn scaled<B: Backend>(h: FloatTensor<B>, s: &[f32]) -> FloatTensor<B> {
    match s {
        [first, rest @ ..] if rest.iter().all(|s| s.to_bits() == first.to_bits()) => {
            B::float_mul_scalar(h, (*first).into())
        }
        _ => {
            let row = B::float_from_data(TensorData::new(s.to_vec(), [1, s.len()]), &h.device());
            let row = B::float_cast(row, h.dtype().into());
            B::float_mul(h, row)
        }
    }
}

impl LowRank for Flex {}

impl LowRank for CubeBackend {
    fn low_rank(
        x: CubeTensor,
        y: CubeTensor,
        down: CubeTensor,
        up: CubeTensor,
        s: Arc<[f32]>,
    ) -> (CubeTensor, CubeTensor) {
        let Some(kernel) = kernel(y.dtype) else { return plain::<Self>(x, y, down, up, &s) };
        let [x, y, down, up] = [x, y, down, up].map(into_contiguous);
        let out = wgsl::empty(&y, y.shape(), y.dtype);
        let h = wgsl::empty(&y, [x.shape()[0], s.len()].into(), y.dtype);
        launch(kernel, [&x, &y, &down, &up, &out, &h], &s);
        (out, h)
    }

    fn low_rank_backward(g: CubeTensor, down: CubeTensor, up: CubeTensor, s: Arc<[f32]>) -> (CubeTensor, CubeTensor) {
        let Some(kernel) = kernel(g.dtype) else { return plain_backward::<Self>(g, down, up, &s) };
        let [g, down, up] = [g, down, up].map(into_contiguous);
        let rows = g.shape()[0];
        let of = |columns: usize| wgsl::empty(&g, [rows, columns].into(), g.dtype);
        let (by_x, g_up) = (of(down.shape()[1]), of(s.len()));
        launch_turned(kernel, [&g, &down, &up, &by_x, &g_up], &s);
        (by_x, g_up)
    }
}

fn kernel(element: DType) -> Option<Wgsl> {
    let elements = vec![("element", wgsl::element(element)?)];
    Some(Wgsl { text: include_str!("../../../shaders/ops/low_rank.wgsl"), elements })
}

/// `x`, `y`, `down`, `up`, then the result and `h`.
fn launch(kernel: Wgsl, tensors: [&CubeTensor; 6], s: &[f32]) {
    let [x, _, _, _, out, _] = tensors;
    run(kernel, tensors, [x, out].map(|t| t.shape()[1]), false, s);
}

/// The gradient of the result, `down`, `up`, then the gradient of `x` and `g·up`.
fn launch_turned(kernel: Wgsl, tensors: [&CubeTensor; 5], s: &[f32]) {
    let [g, down, up, by_x, g_up] = tensors;
    // Nothing is added to: the second binding is not read.
    run(kernel, [g, g, up, down, by_x, g_up], [g, by_x].map(|t| t.shape()[1]), true, s);
}

fn run(kernel: Wgsl, tensors: [&CubeTensor; 6], [inner, columns]: [usize; 2], turned: bool, s: &[f32]) {
    let rows = tensors[0].shape()[0];
    let groups = rows.div_ceil(GROUP[0]) * columns.div_ceil(GROUP[1]);
    let sizes = [rows, columns, inner, s.len(), usize::from(turned)].map(|n| n as u32);
    let numbers: Vec<u32> = sizes.into_iter().chain(s.iter().map(|s| s.to_bits())).collect();
    kernel.launch(groups, &tensors, &numbers);
}

impl<B: LowRank, C: CheckpointStrategy> LowRank for Autodiff<B, C> {
    fn low_rank(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        s: Arc<[f32]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), y.node(), down.node(), up.node()];
        let [x_inner, down_inner, up_inner] = [&x, &down, &up].map(|tensor| tensor.primitive().clone());
        let (out, h) = B::low_rank(x_inner, y.into_primitive(), down_inner, up_inner, Arc::clone(&s));
        let untracked_h = Self::from_inner(h.clone());
        match LowRankBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [
                    down.is_tracked().then(|| prep.checkpoint(&x)),
                    x.is_tracked().then(|| prep.checkpoint(&down)),
                    (x.is_tracked() || down.is_tracked()).then(|| prep.checkpoint(&up)),
                ];
                let h = up.is_tracked().then_some(h);
                (prep.finish((kept, h, s), out), untracked_h)
            }
            OpsKind::UnTracked(prep) => (prep.finish(out), untracked_h),
        }
    }
}

#[derive(Debug)]
struct LowRankBackward;

impl<B: LowRank> Backward<B, 4> for LowRankBackward {
    /// `x`, `down` and `up`, then `h` and the scales; of the tensors, those that a tracked one needs.
    type State = ([Option<NodeId>; 3], Option<FloatTensor<B>>, Arc<[f32]>);

    /// `∂x = (s ∘ (g·up))·down`, `∂down = (s ∘ (g·up))ᵀ·x`, `∂up = gᵀ·(s ∘ h)`, `∂y = g`.
    fn backward(self, ops: Ops<Self::State, 4>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [x_node, y_node, down_node, up_node] = ops.parents;
        let (kept, h, s) = ops.state;
        let [x, down, up] = kept.map(|id| id.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)));
        let g = gradients.consume::<B>(&ops.node);

        if let (Some(node), Some(h)) = (up_node, h) {
            gradients.register::<B>(node.id, B::outer(g.clone(), h, Arc::clone(&s), false));
        }
        if let Some(up) = up {
            let g_up = match (x_node, down) {
                (Some(node), Some(down)) => {
                    let (by_x, g_up) = B::low_rank_backward(g.clone(), down, up, Arc::clone(&s));
                    gradients.register::<B>(node.id, by_x);
                    g_up
                }
                _ => B::float_matmul(g.clone(), up),
            };
            if let (Some(node), Some(x)) = (down_node, x) {
                gradients.register::<B>(node.id, B::outer(x, g_up, s, true));
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
            Tensor::<2>::from_data(TensorData::new(values, shape), &crate::engine::device::cpu())
        };
        let (x, y) = (tensor(vec![1.0, 2.0, 3.0], [1, 3]), tensor(vec![10.0, 20.0], [1, 2]));
        let (down, up) =
            (tensor(vec![1.0, -1.0, 4.0, 0.0, 1.0, 0.0], [2, 3]), tensor(vec![2.0, 1.0, 3.0, -1.0], [2, 2]));
        // x·downᵀ = (11, 2); times the scales (5.5, 4).
        let out = low_rank(x, y, down, up, &[0.5, 2.0].into());
        assert_eq!(out.into_data().try_to_vec::<f32>().unwrap(), [10.0 + 15.0, 20.0 + 12.5]);
    }
}
