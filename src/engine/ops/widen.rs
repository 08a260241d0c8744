//! Weights that are held in 16 bits, as the 32-bit numbers that everything is computed in.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::ops::FloatTensorOps as _;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::*;

/// Numbers that a thread converts at a time: 256 KiB of results stay in its cache.
const CHUNK: usize = 1 << 16;

/// `x` in f32; one that is in f32 already is handed back as it is.
pub fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F32 => x,
        _ => Tensor::from_dispatch(Dispatch::widen(x.into_dispatch())),
    }
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Widen: Backend {
    #[fusion(dtype = DType::F32, shape = x)]
    fn widen(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cast(x, FloatDType::F32)
    }
}

impl Widen for CubeBackend {}

impl<B: Widen, C: CheckpointStrategy> Widen for Autodiff<B, C> {}

impl Widen for Flex {
    /// burn-flex 0.22 converts number by number on one thread: a tenth of a denoiser's whole forward pass.
    fn widen(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if x.dtype() != DType::F16 {
            return Self::float_cast(x, FloatDType::F32);
        }
        let x = x.to_contiguous();
        let shape = x.shape();
        let halves: &[f16] = x.storage();
        let mut out = vec![0.0_f32; halves.len()];
        out.par_chunks_mut(CHUNK).zip(halves.par_chunks(CHUNK)).for_each(|(out, x)| x.convert_to_f32_slice(out));
        Self::float_from_data(TensorData::new(out, shape), &x.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};

    #[test]
    fn every_half_is_itself() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| x.is_finite()).collect();
        let expected: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let n = halves.len();
        let x = Tensor::<2>::from_data(TensorData::new(halves, [2, n / 2]), (&cpu(), DType::F16));
        assert_eq!(x.dtype(), DType::F16);
        assert_eq!(read(widen(x.clone())).unwrap(), expected);
        // As a view, not as it lies in memory.
        let turned: Vec<f32> = (0..n).map(|i| expected[i % 2 * (n / 2) + i / 2]).collect();
        assert_eq!(read(widen(x.transpose())).unwrap(), turned);
    }
}
