//! The moving average of what is trained (Polyak & Juditsky 1992): steadier than any single step.

use burn::tensor::Tensor;

/// Of every parameter, in their order.
#[derive(Clone, Debug)]
pub struct Average {
    decay: f64,
    /// Steps it has followed.
    pub steps: usize,
    pub values: Vec<Tensor<2>>,
}

impl Average {
    pub fn new(decay: f64, values: Vec<Tensor<2>>) -> Self {
        Self { decay, steps: 0, values }
    }

    /// After a step to `values`: `ē ← d·ē + (1 − d)·θ`. The decay rises as in diffusers' `EMAModel`,
    /// `d = min(decay, (1 + n)/(10 + n))` after `n` earlier steps and 0 at the first: the start is soon forgotten.
    pub fn follow(&mut self, values: &[Tensor<2>]) {
        let n = self.steps as f64;
        let d = if self.steps == 0 { 0.0 } else { self.decay.min((1.0 + n) / (10.0 + n)) };
        self.steps += 1;
        for (average, value) in self.values.iter_mut().zip(values) {
            *average = average.clone() * d + value.clone() * (1.0 - d);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    /// By hand, and as `diffusers.training_utils.EMAModel(decay=0.5)` gives it.
    #[test]
    fn the_average_follows_slower_and_slower_up_to_its_decay() {
        let device = crate::engine::device::cpu();
        let at = |x: f32| vec![Tensor::<2>::from_data(TensorData::new(vec![x], [1, 1]), &device)];
        let mut average = Average::new(0.5, at(100.0));
        let mut follow = |x: f32| {
            average.follow(&at(x));
            average.values[0].clone().into_scalar::<f32>()
        };
        let second = 2.0 / 11.0 + 2.0 * 9.0 / 11.0;
        let third = second * 0.25 + 3.0 * 0.75;
        for (x, expected) in [(1.0, 1.0), (2.0, second), (3.0, third)] {
            assert!((follow(x) - expected).abs() < 1e-6);
        }
        for _ in 0..20 {
            follow(0.0);
        }
        let before = follow(0.0);
        assert!((follow(0.0) / before - 0.5).abs() < 1e-6, "the decay is reached");
    }
}
