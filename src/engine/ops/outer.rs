//! Sums of outer products over many rows: the gradients of thin factors.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, Tensor};

use super::low_rank::scaled;
use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// Of the output, on a side; the shader says the same.
const TILE: usize = 16;

pub const OP: Op = Op {
    name: "outer",
    formula: "Σ over rows of a ⊗ (s ∘ h)",
    elements: &[[DType::F32, DType::F32], [DType::F16, DType::F16]],
    kernel: |[_, element]| kernel(element),
    // Few are summed, so that an error shows.
    inputs: |&Case { rows, inner, rank, elements: [element, _], .. }| {
        [[inner, rows], [inner, rank]].map(|shape| (shape, element)).into()
    },
    outputs: |case| vec![shape([case.rows, case.rank], turned(case))],
    run: |case, t| {
        if case.rows * case.inner * case.rank == 0 {
            return vec![Tensor::zeros(shape([case.rows, case.rank], turned(case)), &t[0].device())];
        }
        let [a, h] = [&t[0], &t[1]].map(|t| t.clone().into_dispatch());
        vec![Tensor::from_dispatch(Dispatch::outer(a, h, case.scales(), turned(case)))]
    },
    launch: |case, kernel, t, out| launch(kernel, [&t[0], &t[1], &out[0]], &case.scales(), turned(case)),
    differentiable: &[],
    tolerance: 1e-5,
};

/// Both ways are tried.
fn turned(case: &Case) -> bool {
    case.columns % 2 == 1
}

fn shape([columns, rank]: [usize; 2], turned: bool) -> [usize; 2] {
    if turned { [rank, columns] } else { [columns, rank] }
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Outer: Backend {
    /// `Σ over rows of a ⊗ (s ∘ h)`: of `a [rows, n]` and `h [rows, R]` the sum `[n, R]`, or `[R, n]` where it is
    /// `turned`. With the gradient that comes in as `a` and `h` what went up, it is the gradient of a write side.
    #[fusion(meta = |a, h, _, turned| TensorSpec::new(shape([a.shape[1], h.shape[1]], *turned).into(), a.dtype))]
    fn outer(a: FloatTensor<Self>, h: FloatTensor<Self>, s: Arc<[f32]>, turned: bool) -> FloatTensor<Self> {
        plain::<Self>(a, h, &s, turned)
    }
}

fn plain<B: Backend>(a: FloatTensor<B>, h: FloatTensor<B>, s: &[f32], turned: bool) -> FloatTensor<B> {
    // The scale goes to the thin side.
    let h = scaled::<B>(h, s);
    match turned {
        true => B::float_matmul(B::float_transpose(h), a),
        false => B::float_matmul(B::float_transpose(a), h),
    }
}

impl Outer for Flex {}

impl<B: Outer, C: CheckpointStrategy> Outer for Autodiff<B, C> {}

impl Outer for CubeBackend {
    fn outer(a: CubeTensor, h: CubeTensor, s: Arc<[f32]>, turned: bool) -> CubeTensor {
        let Some(kernel) = kernel(a.dtype) else { return plain::<Self>(a, h, &s, turned) };
        let [a, h] = [a, h].map(into_contiguous);
        let out = wgsl::empty(&a, shape([a.shape()[1], s.len()], turned).into(), a.dtype);
        launch(kernel, [&a, &h, &out], &s, turned);
        out
    }
}

fn kernel(element: DType) -> Option<Wgsl> {
    let elements = vec![("element", wgsl::element(element)?)];
    Some(Wgsl { text: include_str!("../../../shaders/ops/outer.wgsl"), elements })
}

/// `a`, `h` and the output.
fn launch(kernel: Wgsl, tensors: [&CubeTensor; 3], s: &[f32], turned: bool) {
    let [rows, columns] = tensors[0].shape().dims();
    let sizes = [rows, columns, s.len(), usize::from(turned)].map(|n| n as u32);
    let numbers: Vec<u32> = sizes.into_iter().chain(s.iter().map(|s| s.to_bits())).collect();
    kernel.launch(columns.div_ceil(TILE) * s.len().div_ceil(TILE), &tensors, &numbers);
}
