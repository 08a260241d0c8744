//! Inner products of the directions of thin factors, for many layers at once.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, AutodiffBackend as _, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::cpu;
use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// Of the output, on a side; the shader says the same.
const TILE: usize = 16;

pub const OP: Op = Op {
    name: "gram",
    formula: "A·Bᵀ over the long side of thin factors",
    elements: &[[DType::F32, DType::F32]],
    kernel: |_| Some(kernel()),
    inputs: |case| vec![([1, numbers(case)], DType::F32)],
    outputs: |case| vec![[products(case).len() * case.rank, case.rank]],
    run: |case, t| {
        let (products, rank) = (products(case), case.rank);
        let shape = [products.len() * rank, rank];
        if numbers(case) == 0 || shape.contains(&0) {
            return vec![Tensor::zeros(shape, &t[0].device())];
        }
        let factors = t[0].clone().reshape([numbers(case)]);
        vec![Tensor::<3>::from_dispatch(Dispatch::gram(factors.into_dispatch(), products, rank)).reshape(shape)]
    },
    launch: |case, kernel, t, out| launch(kernel, [&t[0], &out[0]], &products(case), case.rank),
    differentiable: &[],
    tolerance: 1e-5,
};

/// Two factors, and a few numbers so that they lie in different places.
fn numbers(case: &Case) -> usize {
    let one = case.columns * case.rank;
    if one == 0 { 0 } else { 2 * one + case.inner }
}

/// Each other one of a read side, and of one rank less.
fn products(case: &Case) -> Arc<[Product]> {
    let factor = case.columns * case.rank;
    (0..case.rows.div_ceil(TILE))
        .map(|i| Product {
            a: i % (case.inner + 1),
            b: factor,
            a_rank: case.rank,
            b_rank: (case.rank - i % 2).max(1),
            n: case.columns,
            turned: i % 2 == 1,
        })
        .collect()
}

/// Two thin factors in a row of numbers, row-major: write sides `[n, rank]`, or `turned`, which is read sides `[rank, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Where they begin.
    pub a: usize,
    pub b: usize,
    pub a_rank: usize,
    pub b_rank: usize,
    pub n: usize,
    pub turned: bool,
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Gram: Backend {
    /// `[products, widest, widest]`: inner products of the directions of `a` (rows) and `b` (columns), and zeros.
    #[fusion(meta = |factors, products, widest| {
        TensorSpec::new([products.len(), *widest, *widest].into(), factors.dtype)
    })]
    fn gram(factors: FloatTensor<Self>, products: Arc<[Product]>, widest: usize) -> FloatTensor<Self>;
}

impl<B: Gram, C: CheckpointStrategy> Gram for Autodiff<B, C> {
    /// For looking at: no gradient flows through it.
    fn gram(factors: FloatTensor<Self>, products: Arc<[Product]>, widest: usize) -> FloatTensor<Self> {
        Self::from_inner(B::gram(factors.into_primitive(), products, widest))
    }
}

impl Gram for Flex {
    fn gram(factors: FlexTensor, products: Arc<[Product]>, widest: usize) -> FlexTensor {
        let factors = cpu::contiguous(factors);
        let numbers: &[f32] = factors.storage();
        let mut out = vec![0.0_f32; products.len() * widest * widest];
        out.par_chunks_mut(widest * widest).zip(&*products).for_each(|(out, product)| {
            let &Product { a, b, a_rank, b_rank, n, turned } = product;
            let factor = |first: usize, rank: usize, i: usize, x: usize| {
                f64::from(numbers[first + if turned { i * n + x } else { x * rank + i }])
            };
            for i in 0..a_rank {
                for j in 0..b_rank {
                    let sum: f64 = (0..n).map(|x| factor(a, a_rank, i, x) * factor(b, b_rank, j, x)).sum();
                    out[i * widest + j] = sum as f32;
                }
            }
        });
        cpu::tensor(out, [products.len(), widest, widest])
    }
}

impl Gram for CubeBackend {
    fn gram(factors: CubeTensor, products: Arc<[Product]>, widest: usize) -> CubeTensor {
        on_gpu(&into_contiguous(factors), &products, widest)
    }
}

/// The same for kernels that go on from it.
pub(super) fn on_gpu(factors: &CubeTensor, products: &[Product], widest: usize) -> CubeTensor {
    let out = wgsl::empty(factors, [products.len(), widest, widest].into(), DType::F32);
    launch(kernel(), [factors, &out], products, widest);
    out
}

fn kernel() -> Wgsl {
    Wgsl { text: include_str!("../../../shaders/ops/gram.wgsl"), elements: Vec::new() }
}

/// The factors and the output.
fn launch(kernel: Wgsl, tensors: [&CubeTensor; 2], products: &[Product], widest: usize) {
    let words = |p: &Product| [p.a, p.b, p.a_rank, p.b_rank, p.n, usize::from(p.turned)].map(|n| n as u32);
    let numbers: Vec<u32> = std::iter::once(widest as u32).chain(products.iter().flat_map(words)).collect();
    kernel.launch(products.len() * widest.div_ceil(TILE).pow(2), &tensors, &numbers);
}
