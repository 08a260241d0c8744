//! A step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), step for step as PyTorch computes it.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::cpu::{self, moments};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// What a step is taken with.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub rate: f64,
    pub decay: f64,
    /// Counted from 1.
    pub number: i32,
}

impl Step {
    /// The factors of a step: what is left of the value, the rate with the mean's bias, the square root of the other bias.
    fn factors(self) -> [f32; 3] {
        let unbiased = |beta: f64| 1.0 - beta.powi(self.number);
        let left = 1.0 - self.rate * self.decay;
        [left, self.rate / unbiased(BETA1), unbiased(BETA2).sqrt()].map(|x| x as f32)
    }
}

/// The value, the running mean and the running mean square behind a step along `gradient`; all of one shape.
pub fn adamw(value: Tensor<2>, mean: Tensor<2>, square: Tensor<2>, gradient: Tensor<2>, step: Step) -> [Tensor<2>; 3] {
    let [left, rate, unbias] = step.factors();
    let [value, mean, square, gradient] = [value, mean, square, gradient].map(Tensor::into_dispatch);
    let (value, mean, square) = Dispatch::adamw(value, mean, square, gradient, left, rate, unbias);
    [value, mean, square].map(Tensor::from_dispatch)
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait AdamW: Backend {
    #[fusion(default)]
    fn adamw(
        value: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        left: f32,
        rate: f32,
        unbias: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let times = |x: FloatTensor<Self>, by: f64| Self::float_mul_scalar(x, by.into());
        let squared = Self::float_mul(gradient.clone(), gradient.clone());
        let mean = Self::float_add(times(mean, BETA1), times(gradient, 1.0 - BETA1));
        let square = Self::float_add(times(square, BETA2), times(squared, 1.0 - BETA2));
        let deviation = Self::float_div_scalar(Self::float_sqrt(square.clone()), unbias.into());
        let along = Self::float_div(mean.clone(), Self::float_add_scalar(deviation, EPS.into()));
        let value = Self::float_mul_scalar(value, left.into());
        (Self::float_sub(value, Self::float_mul_scalar(along, rate.into())), mean, square)
    }
}

impl AdamW for CubeBackend {}

impl<B: AdamW, C: CheckpointStrategy> AdamW for Autodiff<B, C> {}

impl AdamW for Flex {
    fn adamw(
        value: FlexTensor,
        mean: FlexTensor,
        square: FlexTensor,
        gradient: FlexTensor,
        left: f32,
        rate: f32,
        unbias: f32,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [mut value, mut mean, mut square, gradient] = [value, mean, square, gradient].map(cpu::contiguous);
        let state = [value.storage_mut(), mean.storage_mut(), square.storage_mut()];
        let [beta1, beta2] = [BETA1, BETA2].map(|beta| [beta as f32, (1.0 - beta) as f32]);
        let factors = moments::Factors { beta1, beta2, eps: EPS as f32, left, rate, unbias };
        moments::step(state, gradient.storage(), factors);
        (value, mean, square)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use burn::tensor::TensorData;

    #[test]
    fn a_step_is_the_formula() {
        let n = 37;
        let tensor = |f: fn(f32) -> f32| {
            let values: Vec<f32> = (0..n).map(|i| f(i as f32)).collect();
            Tensor::<2>::from_data(TensorData::new(values, [1, n]), &cpu())
        };
        let step = Step { rate: 0.01, decay: 0.1, number: 3 };
        let (value, mean, square) = (tensor(|i| i - 9.0), tensor(|i| 0.1 * i - 1.0), tensor(|i| 0.01 * i));
        let gradient = tensor(|i| 2.0 - 0.3 * i);
        let before = [&value, &mean, &square, &gradient].map(|x| read(x.clone()).unwrap());
        let after = adamw(value.clone(), mean, square, gradient, step).map(|x| read(x).unwrap());
        for i in 0..n {
            let [x, m, v, g] = before.each_ref().map(|values| f64::from(values[i]));
            let (m, v) = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g);
            let (m_hat, v_hat) = (m / (1.0 - 0.9_f64.powi(3)), v / (1.0 - 0.999_f64.powi(3)));
            let x = x - 0.01 * 0.1 * x - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
            for (found, expected) in after.iter().map(|values| f64::from(values[i])).zip([x, m, v]) {
                assert!((found - expected).abs() < 1e-6 * expected.abs().max(0.01), "{found} {expected}");
            }
        }
        // What others hold is not touched.
        assert_eq!(read(value).unwrap(), before[0]);
    }
}
