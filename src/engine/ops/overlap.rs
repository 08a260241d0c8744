//! What pairs of adapters share in many layers at once.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, AutodiffBackend as _, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::cpu;
use super::gram::{self, Gram};
use super::spectra::{Factors, Spectra, width};
use super::wgsl::{self, Wgsl};
use super::{Case, Op};

/// Numbers told of a pair.
const SUMS: usize = 4;

pub const OP: Op = Op {
    name: "overlap",
    formula: "Σ σσ'PQ, Σ P², Σ Q², Σ (σQσ')² with P = UᵢᵀUⱼ, Q = VᵢᵀVⱼ",
    elements: &[[DType::F32, DType::F32]],
    kernel: |_| Some(kernel()),
    inputs: |case| {
        let (n, w) = (ADAPTERS, width(case));
        let numbers = layers(case).iter().map(Factors::numbers).sum();
        [[1, numbers], [n, w], [2 * n * w, w]].map(|shape| (shape, DType::F32)).into()
    },
    outputs: |case| vec![[pairs(case).len(), SUMS]],
    run: |case, t| {
        let (layers, pairs, w) = (layers(case), pairs(case), width(case));
        if pairs.is_empty() || t[0].shape().num_elements() == 0 {
            return vec![Tensor::zeros([pairs.len(), SUMS], &t[0].device())];
        }
        let numbers = t[0].dims()[1];
        let spectra = Spectra { values: t[1].clone(), coefficients: t[2].clone().reshape([ADAPTERS, 2, w, w]) };
        vec![overlap(t[0].clone().reshape([numbers]), layers, spectra, pairs)]
    },
    launch: |case, kernel, t, out| launch(kernel, [&t[0], &t[1], &t[2], &out[0]], &layers(case), &pairs(case)),
    differentiable: &[],
    tolerance: 1e-5,
};

/// On one layer, to try the kernel with.
const ADAPTERS: usize = 3;

fn layers(case: &Case) -> Arc<[Factors]> {
    let (rank, out, input) = (width(case), case.columns, case.inner);
    let one = rank * (out + input);
    (0..ADAPTERS).map(|i| Factors { at: i * one, out, rank, input, scale: 1.0 }).collect()
}

fn pairs(case: &Case) -> Arc<[[usize; 2]]> {
    (0..case.rows.div_ceil(16)).map(|i| [i % ADAPTERS, (i + 1) % ADAPTERS]).collect()
}

/// `[pairs, 4]`: with `P = UᵢᵀUⱼ` and `Q = VᵢᵀVⱼ`, the inner product `Σ σσ'PQ = ⟨ΔWᵢ, ΔWⱼ⟩`, `ΣP²` of the write sides, `ΣQ²`
/// of the read sides and `Σ (σQσ')² = ‖ΔWᵢ ΔWⱼᵀ‖²`.
///
/// `spectra` are those of `factors`; a pair names two of `layers` that have the same outputs and inputs. Two dispatches
/// on a GPU, where nothing is read back; ranks beyond [`super::WIDEST`] are on the CPU by now.
pub fn overlap(factors: Tensor<1>, layers: Arc<[Factors]>, spectra: Spectra, pairs: Arc<[[usize; 2]]>) -> Tensor<2> {
    let Spectra { values, coefficients } = spectra;
    let factors = factors.to_device(&values.device());
    let [factors, values, coefficients] =
        [factors.into_dispatch(), values.into_dispatch(), coefficients.into_dispatch()];
    Tensor::from_dispatch(Dispatch::overlap(factors, values, coefficients, layers, pairs))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait PairOverlaps: Gram {
    /// [`overlap`]
    #[fusion(meta = |factors, _, _, _, pairs| TensorSpec::new([pairs.len(), SUMS].into(), factors.dtype))]
    fn overlap(
        factors: FloatTensor<Self>,
        values: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        layers: Arc<[Factors]>,
        pairs: Arc<[[usize; 2]]>,
    ) -> FloatTensor<Self>;
}

impl<B: PairOverlaps, C: CheckpointStrategy> PairOverlaps for Autodiff<B, C> {
    fn overlap(
        factors: FloatTensor<Self>,
        values: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        layers: Arc<[Factors]>,
        pairs: Arc<[[usize; 2]]>,
    ) -> FloatTensor<Self> {
        let [factors, values, coefficients] = [factors, values, coefficients].map(FloatTensor::<Self>::into_primitive);
        Self::from_inner(B::overlap(factors, values, coefficients, layers, pairs))
    }
}

fn products(layers: &[Factors], pairs: &[[usize; 2]]) -> Arc<[gram::Product]> {
    pairs.iter().flat_map(|&[i, j]| layers[i].products(&layers[j])).collect()
}

impl PairOverlaps for Flex {
    fn overlap(
        factors: FlexTensor,
        values: FlexTensor,
        coefficients: FlexTensor,
        layers: Arc<[Factors]>,
        pairs: Arc<[[usize; 2]]>,
    ) -> FlexTensor {
        let [_, w] = values.shape().dims();
        let grams = Self::gram(factors, products(&layers, &pairs), w);
        let [values, coefficients] = [values, coefficients].map(cpu::contiguous);
        let (grams, values, coefficients): (&[f32], &[f32], &[f32]) =
            (grams.storage(), values.storage(), coefficients.storage());
        let mut out = vec![0.0_f32; SUMS * pairs.len()];
        out.par_chunks_mut(SUMS).zip(grams.par_chunks(2 * w * w)).zip(&*pairs).for_each(|((out, grams), &[i, j])| {
            let mut sums = [0.0_f64; SUMS];
            for k in 0..w {
                // Of direction k of i: its coefficients · gram, of either side.
                let half = [0, 1].map(|side| -> Vec<f64> {
                    let own = &coefficients[((2 * i + side) * w + k) * w..][..w];
                    let gram = &grams[side * w * w..][..w * w];
                    (0..w).map(|b| (0..w).map(|a| f64::from(own[a]) * f64::from(gram[a * w + b])).sum()).collect()
                });
                for l in 0..w {
                    let [p, q] = [0, 1].map(|side| -> f64 {
                        let other = &coefficients[((2 * j + side) * w + l) * w..][..w];
                        half[side].iter().zip(other).map(|(a, &b)| a * f64::from(b)).sum()
                    });
                    let pushed = f64::from(values[i * w + k]) * f64::from(values[j * w + l]) * q;
                    for (sum, part) in sums.iter_mut().zip([pushed * p, p * p, q * q, pushed * pushed]) {
                        *sum += part;
                    }
                }
            }
            out.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum as f32);
        });
        cpu::tensor(out, [pairs.len(), SUMS])
    }
}

impl PairOverlaps for CubeBackend {
    fn overlap(
        factors: CubeTensor,
        values: CubeTensor,
        coefficients: CubeTensor,
        layers: Arc<[Factors]>,
        pairs: Arc<[[usize; 2]]>,
    ) -> CubeTensor {
        let [factors, values, coefficients] = [factors, values, coefficients].map(into_contiguous);
        let out = wgsl::empty(&factors, [pairs.len(), SUMS].into(), DType::F32);
        launch(kernel(), [&factors, &values, &coefficients, &out], &layers, &pairs);
        out
    }
}

fn kernel() -> Wgsl {
    Wgsl { text: include_str!("../../../shaders/ops/overlap.wgsl"), elements: Vec::new() }
}

/// Factors, values, coefficients and the output.
fn launch(kernel: Wgsl, tensors: [&CubeTensor; 4], layers: &[Factors], pairs: &[[usize; 2]]) {
    let [factors, values, coefficients, out] = tensors;
    let [_, w] = values.shape().dims();
    let grams = gram::on_gpu(factors, &products(layers, pairs), w);
    let numbers: Vec<u32> = std::iter::once(w).chain(pairs.iter().flatten().copied()).map(|n| n as u32).collect();
    kernel.launch(pairs.len(), &[&grams, values, coefficients, out], &numbers);
}
