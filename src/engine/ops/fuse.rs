//! Adds low-rank adapters to a weight, all in one pass.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// Of the output, on a side; the shader says the same.
const TILE: usize = 16;

pub const OP: Op = Op {
    name: "fuse",
    formula: "W' = W + Σₖ sₖ·upₖ·downₖ",
    elements: &[[DType::F32, DType::F32], [DType::F32, DType::F16], [DType::F16, DType::F32], [DType::F16, DType::F16]],
    kernel,
    inputs: |&Case { rows, columns, rank, elements: [weight, _], .. }| {
        let factors = [[rows, rank], [rank, columns], [1, rank]].map(|shape| (shape, DType::F32));
        [([rows, columns], weight)].into_iter().chain(factors).collect()
    },
    outputs: |case| vec![[case.rows, case.columns]],
    run: |case, t| {
        let [weight, left, right, scales] = [0, 1, 2, 3].map(|i| t[i].clone());
        vec![fuse(weight, left, right, scales.squeeze_dim(0), case.elements[1].into())]
    },
    launch: |_, kernel, t, out| launch(kernel, [&t[0], &t[1], &t[2], &t[3], &out[0]]),
    differentiable: &[0, 1, 2, 3],
    tolerance: 1e-5,
};

/// `W' = W + left · diag(scales) · right`: each adapter of rank `r` owns `r` columns of `left`, the same rows of `right`,
/// and repeats its strength · alpha / rank over these places of `scales`.
///
/// - `weight`: `[m, n]`, of type f32 or f16. Either orientation of a layer will do, if the factors follow it.
/// - `left`: `[m, R]`, `right`: `[R, n]`, `scales`: `[R]`, in f32 (else they are converted); `R` may be 0.
/// - the result: `[m, n]` of type `dtype`, added up in f32 and rounded once.
///
/// A tracked input takes plain tensor operations and gets its gradient from them.
pub fn fuse(weight: Tensor<2>, left: Tensor<2>, right: Tensor<2>, scales: Tensor<1>, dtype: FloatDType) -> Tensor<2> {
    let ([m, n], [rank]) = (weight.dims(), scales.dims());
    assert_eq!((left.dims(), right.dims()), ([m, rank], [rank, n]), "factors of rank {rank} for a weight [{m}, {n}]");
    if m * n * rank == 0 {
        return weight.cast(dtype);
    }
    let [left, right] = [left, right].map(|factor| factor.cast(FloatDType::F32));
    let scales = scales.cast(FloatDType::F32).reshape([1, rank]);
    Tensor::from_dispatch(Dispatch::fuse(
        weight.into_dispatch(),
        left.into_dispatch(),
        right.into_dispatch(),
        scales.into_dispatch(),
        dtype,
    ))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Fuse: Backend {
    /// `scales` is `[1, R]`.
    #[fusion(dtype = (*dtype).into(), shape = weight)]
    fn fuse(
        weight: FloatTensor<Self>,
        left: FloatTensor<Self>,
        right: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        plain::<Self>(weight, left, right, scales, dtype)
    }
}

fn plain<B: Backend>(
    weight: FloatTensor<B>,
    left: FloatTensor<B>,
    right: FloatTensor<B>,
    scales: FloatTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let delta = B::float_matmul(B::float_mul(left, scales), right);
    B::float_cast(B::float_add(B::float_cast(weight, FloatDType::F32), delta), dtype)
}

impl Fuse for Flex {}

impl<B: Fuse, C: CheckpointStrategy> Fuse for Autodiff<B, C> {}

impl Fuse for CubeBackend {
    fn fuse(
        weight: CubeTensor,
        left: CubeTensor,
        right: CubeTensor,
        scales: CubeTensor,
        dtype: FloatDType,
    ) -> CubeTensor {
        let Some(kernel) = kernel([weight.dtype, dtype.into()]) else {
            return plain::<Self>(weight, left, right, scales, dtype);
        };
        let [weight, left, right, scales] = [weight, left, right, scales].map(into_contiguous);
        let out = wgsl::empty(&weight, weight.shape(), dtype.into());
        launch(kernel, [&weight, &left, &right, &scales, &out]);
        out
    }
}

fn kernel([weight, out]: [DType; 2]) -> Option<Wgsl> {
    let elements = vec![("weight", wgsl::element(weight)?), ("out", wgsl::element(out)?)];
    Some(Wgsl { text: include_str!("../../../shaders/ops/fuse.wgsl"), elements })
}

/// Weight, left, right, scales and the output.
fn launch(kernel: Wgsl, tensors: [&CubeTensor; 5]) {
    let [_, left, _, _, out] = tensors;
    let [rows, columns] = out.shape().dims();
    let rank = left.shape()[1];
    kernel.launch(rows.div_ceil(TILE) * columns.div_ceil(TILE), &tensors, &[rows, columns, rank].map(|n| n as u32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_body_is_the_formula() {
        let tensor = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(burn::tensor::TensorData::new(values, shape), &crate::engine::device::cpu())
        };
        let weight = tensor(vec![10.0, 20.0, 30.0], [1, 3]);
        let (left, right) = (tensor(vec![2.0, 5.0], [1, 2]), tensor(vec![1.0, 2.0, 3.0, -1.0, 0.0, 4.0], [2, 3]));
        let scales = Tensor::from_floats([0.5, 2.0], &crate::engine::device::cpu());
        // One adapter adds (1, 2, 3), the other 10·(−1, 0, 4).
        let out = fuse(weight, left, right, scales, FloatDType::F32);
        assert_eq!(out.into_data().try_to_vec::<f32>().unwrap(), [1.0, 22.0, 73.0]);
    }
}
