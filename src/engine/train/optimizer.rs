//! AdamW's memory of a parameter, and clipping by the joint norm.

use burn::tensor::Tensor;

use crate::engine::ops::{self, Step};

/// Running mean and mean square of one parameter's gradient.
#[derive(Clone, Debug)]
pub struct Moments {
    pub mean: Tensor<2>,
    pub square: Tensor<2>,
    /// Steps they have seen.
    pub steps: i32,
}

impl Moments {
    pub fn new(parameter: &Tensor<2>) -> Self {
        Self { mean: parameter.zeros_like(), square: parameter.zeros_like(), steps: 0 }
    }

    /// The parameter after a step along `gradient`.
    pub fn step(&mut self, parameter: Tensor<2>, gradient: Tensor<2>, rate: f64, decay: f64) -> Tensor<2> {
        self.steps = self.steps.saturating_add(1);
        let step = Step { rate, decay, number: self.steps };
        let value;
        [value, self.mean, self.square] = ops::adamw(parameter, self.mean.clone(), self.square.clone(), gradient, step);
        value
    }
}

/// The joint norm of all `gradients`, on the device; `None` of none.
pub fn joint_norm<'a>(gradients: impl IntoIterator<Item = &'a Tensor<2>>) -> Option<Tensor<1>> {
    let squares = gradients.into_iter().map(|g| g.clone().powi_scalar(2).sum()).reduce(|a, b| a + b)?;
    Some(squares.sqrt())
}

/// The factor that brings gradients of a joint norm down to `limit`, on the device: no value is read back.
pub fn clip_factor(norm: Tensor<1>, limit: f64) -> Tensor<1> {
    // PyTorch's `clip_grad_norm_` adds the same constant.
    ((norm + 1e-6).recip() * limit).clamp_max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn clipping_leaves_short_gradients_and_shortens_long_ones() {
        let device = crate::engine::device::cpu();
        let g = Tensor::<2>::from_data(TensorData::new(vec![3.0_f32, 4.0], [1, 2]), &device);
        let factor = |limit: f64| clip_factor(joint_norm([&g]).unwrap(), limit).into_scalar::<f32>();
        assert!((factor(10.0) - 1.0).abs() < 1e-6);
        assert!((factor(1.0) - 0.2).abs() < 1e-6);
    }
}
