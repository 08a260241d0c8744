//! Singular values of low-rank changes of many layers at once, and the directions that belong to them.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, AutodiffBackend as _, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};
use faer::{Mat, MatRef, Scale};
use rayon::prelude::*;

use super::cpu::{self, triangle::triangle};
use super::gram::{self, Product};
use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// What a GPU decomposes: a group's memory has room for so many directions.
pub const WIDEST: usize = 64;
/// Numbers in the largest buffer that a batch of layers takes, half of what every GPU can bind.
const MOST: usize = 1 << 24;
/// Directions weaker than this share of the strongest have no coefficients; the shader says the same.
const WEAK: f64 = 1e-3;

pub const OP: Op = Op {
    name: "spectra",
    formula: "S of U·S·Vᵀ = scale·up·down",
    elements: &[[DType::F32, DType::F32]],
    kernel: |_| Some(kernel()),
    inputs: |case| vec![([1, layers(case).iter().map(Factors::numbers).sum()], DType::F32)],
    outputs: |case| {
        let (n, w) = (layers(case).len(), width(case));
        vec![[n, w], [2 * n * w, w]]
    },
    run: |case, t| {
        let (layers, [_, n]) = (layers(case), t[0].dims());
        if n == 0 {
            return vec![Tensor::zeros([layers.len(), width(case)], &t[0].device())];
        }
        // The signs of directions are nobody's, so the values alone are compared.
        let Spectra { values, .. } = spectra(t[0].clone().reshape([n]), layers);
        vec![values]
    },
    launch: |case, kernel, t, out| launch(kernel, &t[0], [&out[0], &out[1]], &layers(case)),
    differentiable: &[],
    tolerance: 1e-4,
};

pub(super) fn width(case: &Case) -> usize {
    case.rank.min(WIDEST)
}

/// Layers of a few sizes.
fn layers(case: &Case) -> Arc<[Factors]> {
    let (mut at, scales) = (0, case.scales());
    (0..case.rows.div_ceil(16))
        .map(|i| {
            let (out, input) = if i % 2 == 0 { (case.columns, case.inner) } else { (case.inner, case.columns) };
            let rank = if i == 0 { width(case) } else { width(case).div_ceil(2) };
            let layer = Factors { at, out, rank, input, scale: scales.get(i % 2).copied().unwrap_or(1.0) };
            at += layer.numbers();
            layer
        })
        .collect()
}

/// The factors of a layer in a row of numbers: `up [out, rank]`, then `down [rank, input]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// Where they begin.
    pub at: usize,
    pub out: usize,
    pub rank: usize,
    pub input: usize,
    pub scale: f32,
}

impl Factors {
    pub fn numbers(&self) -> usize {
        self.rank * (self.out + self.input)
    }

    /// The inner products of both sides of two adapters of one layer: `upᵢᵀ·upⱼ` and `downᵢ·downⱼᵀ`.
    pub(super) fn products(&self, other: &Self) -> [Product; 2] {
        let (a, b) = (self.at, other.at);
        let write = Product { a, b, a_rank: self.rank, b_rank: other.rank, n: self.out, turned: false };
        let (a, b) = (a + self.out * self.rank, b + other.out * other.rank);
        [write, Product { a, b, n: self.input, turned: true, ..write }]
    }
}

/// `U·S·Vᵀ` of many layers.
#[derive(Clone, Debug)]
pub struct Spectra {
    /// `[layers, widest]`: singular values, falling, and zeros.
    pub values: Tensor<2>,
    /// `[layers, 2, widest, widest]`: `writesᵀ`, then `readsᵀ`, with `U = up·writes` and `V = downᵀ·reads`; zeros for
    /// directions weaker than a thousandth of the strongest.
    pub coefficients: Tensor<4>,
}

/// `factors` is a row of f32; no gradient flows, and nothing is read back. A GPU takes ranks up to [`WIDEST`], and
/// [`Spectra::batch`] layers at a time.
///
/// On a GPU in f32 by way of Gram matrices, so what is weaker than a thousandth of the strongest is rounding; on the CPU
/// in f64 by way of triangles.
pub fn spectra(factors: Tensor<1>, layers: Arc<[Factors]>) -> Spectra {
    let (values, coefficients) = Dispatch::spectra(factors.into_dispatch(), layers);
    Spectra { values: Tensor::from_dispatch(values), coefficients: Tensor::from_dispatch(coefficients) }
}

impl Spectra {
    /// How many layers of such a rank fit into one go.
    pub fn batch(widest: usize) -> usize {
        (MOST / ((3 * widest + 1) * widest).max(1)).max(1)
    }
}

fn widest(layers: &[Factors]) -> usize {
    layers.iter().map(|layer| layer.rank).max().unwrap_or(0)
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait LayerSpectra: Backend {
    /// Values and coefficients of [`Spectra`].
    #[fusion(meta = |factors, layers| {
        let (n, w) = (layers.len(), widest(layers));
        (TensorSpec::new([n, w].into(), factors.dtype), TensorSpec::new([n, 2, w, w].into(), factors.dtype))
    })]
    fn spectra(factors: FloatTensor<Self>, layers: Arc<[Factors]>) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: LayerSpectra, C: CheckpointStrategy> LayerSpectra for Autodiff<B, C> {
    fn spectra(factors: FloatTensor<Self>, layers: Arc<[Factors]>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (values, coefficients) = B::spectra(factors.into_primitive(), layers);
        (Self::from_inner(values), Self::from_inner(coefficients))
    }
}

impl LayerSpectra for Flex {
    fn spectra(factors: FlexTensor, layers: Arc<[Factors]>) -> (FlexTensor, FlexTensor) {
        let factors = cpu::contiguous(factors);
        let (numbers, n, w): (&[f32], _, _) = (factors.storage(), layers.len(), widest(&layers));
        let (mut values, mut coefficients) = (vec![0.0_f32; n * w], vec![0.0_f32; 2 * n * w * w]);
        let places = values.par_chunks_mut(w).zip(coefficients.par_chunks_mut(2 * w * w));
        places.zip(&*layers).for_each(|((values, coefficients), layer)| {
            // What is no number has no spectrum.
            if decompose(numbers, layer, values, coefficients).is_none() {
                values.fill(f32::NAN);
            }
        });
        (cpu::tensor(values, [n, w]), cpu::tensor(coefficients, [n, 2, w, w]))
    }
}

/// The decomposition of a layer, by that of the core `R_up·R_downᵀ = X·S·Yᵀ`.
fn decompose(numbers: &[f32], layer: &Factors, values: &mut [f32], coefficients: &mut [f32]) -> Option<()> {
    let &Factors { at, out, rank, input, scale } = layer;
    let (up, down) = numbers[at..at + layer.numbers()].split_at(out * rank);
    let up = MatRef::from_row_major_slice(up, out, rank).map(|&x| f64::from(x));
    let down = MatRef::from_row_major_slice(down, rank, input).map(|&x| f64::from(x));
    let (up, down) = (triangle(up.as_ref()), triangle(down.transpose()));
    let core = Scale(f64::from(scale)) * (&up * down.transpose());
    let svd = core.thin_svd().ok()?;
    let sigmas: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    values.iter_mut().zip(&sigmas).for_each(|(value, &sigma)| *value = sigma as f32);
    let w = values.len();
    let (writes, reads) = coefficients.split_at_mut(w * w);
    let strong = sigmas.iter().take_while(|&&sigma| sigma > WEAK * sigmas[0]).count();
    for (k, &sigma) in sigmas.iter().enumerate().take(strong) {
        // ΔW·v = σ·u on both sides: V = downᵀ·(scale·upᵀu/σ), and U = up·(scale·down·v/σ).
        let read: Mat<f64> = Scale(f64::from(scale) / sigma) * (up.transpose() * svd.U().subcols(k, 1));
        let write: Mat<f64> = Scale(f64::from(scale) / sigma) * (down.transpose() * svd.V().subcols(k, 1));
        for (row, side) in [(&mut *writes, write), (&mut *reads, read)] {
            row[k * w..].iter_mut().zip(side.col(0).iter()).for_each(|(to, &from)| *to = from as f32);
        }
    }
    Some(())
}

impl LayerSpectra for CubeBackend {
    fn spectra(factors: CubeTensor, layers: Arc<[Factors]>) -> (CubeTensor, CubeTensor) {
        let factors = into_contiguous(factors);
        let (n, w) = (layers.len(), widest(&layers));
        assert!(w <= WIDEST, "rank {w} on a GPU");
        let values = wgsl::empty(&factors, [n, w].into(), DType::F32);
        let coefficients = wgsl::empty(&factors, [n, 2, w, w].into(), DType::F32);
        launch(kernel(), &factors, [&values, &coefficients], &layers);
        (values, coefficients)
    }
}

fn kernel() -> Wgsl {
    let text = concat!(
        include_str!("../../../shaders/ops/spectra.wgsl"),
        include_str!("../../../shaders/ops/spectra/triangles.wgsl"),
        include_str!("../../../shaders/ops/spectra/rotations.wgsl"),
        include_str!("../../../shaders/ops/spectra/directions.wgsl"),
    );
    Wgsl { text, elements: Vec::new() }
}

/// Values and coefficients, from the Gram matrices of all layers.
fn launch(kernel: Wgsl, factors: &CubeTensor, [values, coefficients]: [&CubeTensor; 2], layers: &[Factors]) {
    let (n, w) = (layers.len(), widest(layers));
    let products: Vec<_> = layers.iter().flat_map(|layer| layer.products(layer)).collect();
    let grams = gram::on_gpu(factors, &products, w);
    let work = wgsl::empty(factors, [n, 3 * w + 1, w.next_multiple_of(4)].into(), DType::F32);
    let scales = layers.iter().map(|layer| layer.scale.to_bits());
    let numbers: Vec<u32> = std::iter::once(w as u32).chain(scales).collect();
    kernel.launch(n, &[&grams, values, coefficients, &work], &numbers);
}
