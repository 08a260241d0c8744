//! What a training step asks of the network.

use burn::tensor::{Device, Tensor, TensorData};

use crate::engine::diffusion::{Prediction, Schedule};

/// `√ᾱ` and `√(1−ᾱ)` of each image's timestep, `[b, 1, 1, 1]`.
fn coefficients(schedule: &Schedule, timesteps: &[usize], device: &Device) -> (Tensor<4>, Tensor<4>) {
    let column = |f: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = timesteps.iter().map(|&t| f(schedule.alpha_bar[t]) as f32).collect();
        Tensor::from_data(TensorData::new(values, [timesteps.len(), 1, 1, 1]), device)
    };
    (column(&f64::sqrt), column(&|alpha_bar| (1.0 - alpha_bar).sqrt()))
}

/// `x_t = √ᾱ·x₀ + √(1−ᾱ)·ε`.
pub fn noised(x0: &Tensor<4>, noise: &Tensor<4>, timesteps: &[usize], schedule: &Schedule) -> Tensor<4> {
    let (signal, noise_level) = coefficients(schedule, timesteps, &x0.device());
    x0.clone() * signal + noise.clone() * noise_level
}

/// ε or v: what the network should say.
pub fn target(x0: &Tensor<4>, noise: &Tensor<4>, timesteps: &[usize], schedule: &Schedule) -> Tensor<4> {
    match schedule.prediction {
        Prediction::Epsilon => noise.clone(),
        Prediction::V => {
            let (signal, noise_level) = coefficients(schedule, timesteps, &x0.device());
            noise.clone() * signal - x0.clone() * noise_level
        }
    }
}

/// `c` of the pseudo-Huber measure: sd-scripts' `--huber_c`.
const HUBER_C: f64 = 0.1;

/// How a single error counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// `d²`
    #[default]
    Square,
    /// Pseudo-Huber, `2c·(√(d² + c²) − c)`: `d²` where errors are small, `2c·|d|` where they are large (sd-scripts'
    /// `--loss_type huber` with its constant schedule).
    Huber,
    /// `|d|`
    Absolute,
}

impl Measure {
    /// Of every number, `[b, c, h, w]`.
    pub fn of(self, prediction: Tensor<4>, target: Tensor<4>) -> Tensor<4> {
        let d = prediction - target;
        match self {
            Self::Square => d.powi_scalar(2),
            Self::Huber => ((d.powi_scalar(2) + HUBER_C * HUBER_C).sqrt() - HUBER_C) * (2.0 * HUBER_C),
            Self::Absolute => d.abs(),
        }
    }

    /// Its mean over each image, `[b]`; `mask` weighs every pixel, `[b, 1, h, w]`.
    pub fn per_image(self, prediction: Tensor<4>, target: Tensor<4>, mask: Option<Tensor<4>>) -> Tensor<1> {
        let errors = self.of(prediction, target);
        let errors = match mask {
            Some(mask) => errors * mask,
            None => errors,
        };
        errors.mean_dims(&[1, 2, 3]).flatten(0, 3)
    }
}

/// Mean square error of each image, `[b]`.
pub fn per_image(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    Measure::Square.per_image(prediction, target, None)
}

/// `SNR = ᾱ/(1−ᾱ)` of a timestep.
fn snr(schedule: &Schedule, timestep: usize) -> f64 {
    let alpha_bar = schedule.alpha_bar[timestep];
    alpha_bar / (1.0 - alpha_bar)
}

/// Min-SNR-γ weight of a timestep (Hang et al. 2023): `min(SNR, γ)` over SNR for ε, over SNR + 1 for v.
pub fn min_snr_weight(schedule: &Schedule, timestep: usize, gamma: f64) -> f64 {
    let snr = snr(schedule, timestep);
    match schedule.prediction {
        Prediction::Epsilon => snr.min(gamma) / snr,
        Prediction::V => snr.min(gamma) / (snr + 1.0),
    }
}

/// Debiased weight of a timestep (Yu et al. 2023, arXiv 2310.08442), the SNR cut at 1000: `1/√SNR` for ε, `1/√(SNR + 1)`
/// for v. So in OneTrainer; sd-scripts agrees for ε and takes `1/(SNR + 1)` for v.
pub fn debiased_weight(schedule: &Schedule, timestep: usize) -> f64 {
    let snr = snr(schedule, timestep).min(1000.0);
    match schedule.prediction {
        Prediction::Epsilon => 1.0 / snr.sqrt(),
        Prediction::V => 1.0 / (snr + 1.0).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::diffusion::guidance::denoised;
    use crate::engine::model::sd::ScheduleConfig;

    /// The network's ideal answer leads back to the picture, for both predictions.
    #[test]
    fn target_inverts_noising() {
        let device = crate::engine::device::cpu();
        for kind in ["epsilon", "v_prediction"] {
            let config = ScheduleConfig { prediction_type: kind.into(), ..ScheduleConfig::default() };
            let schedule = Schedule::new(&config).unwrap();
            let x0 = Tensor::<4>::from_data(TensorData::new(vec![0.5_f32, -1.0, 2.0], [1, 3, 1, 1]), &device);
            let noise = Tensor::<4>::from_data(TensorData::new(vec![1.5_f32, 0.3, -0.7], [1, 3, 1, 1]), &device);
            let t = 321;
            let sigma = schedule.sigma(t as f64);
            let x = noised(&x0, &noise, &[t], &schedule) * (sigma * sigma + 1.0).sqrt();
            let back = denoised(x, target(&x0, &noise, &[t], &schedule), sigma, schedule.prediction);
            let error: f32 = (back - x0).abs().max().into_scalar();
            assert!(error < 1e-5, "{kind}: {error}");
        }
    }

    #[test]
    fn a_mask_of_ones_is_no_mask_and_a_half_counts_half() {
        let device = crate::engine::device::cpu();
        let tensor = |seed, shape: [usize; 4]| {
            let values = crate::engine::random::Philox::new(seed).normal(0, shape.iter().product());
            Tensor::<4>::from_data(TensorData::new(values, shape), &device)
        };
        let (said, target) = (tensor(1, [2, 4, 3, 5]), tensor(2, [2, 4, 3, 5]));
        let values = |errors: Tensor<1>| errors.into_data().try_to_vec::<f32>().unwrap();
        let plain = values(per_image(said.clone(), target.clone()));
        let masked = |said, mask| Measure::Square.per_image(said, target.clone(), Some(mask));
        assert_eq!(values(masked(said.clone(), Tensor::ones([2, 1, 3, 5], &device))), plain);
        let first = Tensor::cat(vec![Tensor::ones([2, 1, 1, 5], &device), Tensor::zeros([2, 1, 2, 5], &device)], 2);
        let row = values(per_image(said.clone().narrow(2, 0, 1), target.clone().narrow(2, 0, 1)));
        for (found, row) in values(masked(said, first * 3.0)).into_iter().zip(row) {
            assert!((found - row).abs() < 1e-5, "a third of the pixels, three times the weight: {found} {row}");
        }
    }

    #[test]
    fn weights_are_one_where_snr_is_small() {
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        assert!((min_snr_weight(&schedule, 900, 5.0) - 1.0).abs() < 1e-12);
        assert!(min_snr_weight(&schedule, 10, 5.0) < 0.05);
    }

    /// Numbers of sd-scripts' `apply_debiased_estimation` (ε) and OneTrainer's (v) on Stable Diffusion's schedule.
    #[test]
    fn debiased_weights_undo_the_noise_and_stop_where_there_is_none() {
        let weights = |kind: &str| {
            let config = ScheduleConfig { prediction_type: kind.into(), ..ScheduleConfig::default() };
            let schedule = Schedule::new(&config).unwrap();
            [0, 500, 999].map(|t| debiased_weight(&schedule, t))
        };
        for (kind, expected) in [("epsilon", EPSILON), ("v_prediction", V)] {
            for (found, expected) in weights(kind).into_iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < 1e-4, "{kind}: {found} instead of {expected}");
            }
        }
    }

    const EPSILON: [f64; 3] = [0.031_622_777, 1.618_278_826, 14.614_641_229];
    const V: [f64; 3] = [0.031_606_977, 0.850_686_379, 0.997_667_230];

    #[test]
    fn the_measures_meet_where_errors_are_small_and_part_where_they_are_large() {
        let device = crate::engine::device::cpu();
        let of = |measure: Measure, d: f32| {
            let at = |x: f32| Tensor::<4>::from_data(TensorData::new(vec![x], [1, 1, 1, 1]), &device);
            measure.per_image(at(d + 0.5), at(0.5), None).into_scalar::<f32>()
        };
        for d in [-3.0_f32, 0.001, 2.0] {
            assert!((of(Measure::Square, d) - d * d).abs() < 1e-5 && (of(Measure::Absolute, d) - d.abs()).abs() < 1e-6);
        }
        assert!((of(Measure::Huber, 0.004) / of(Measure::Square, 0.004) - 1.0).abs() < 0.01);
        // torch: 2 * 0.1 * ((9 + 0.01) ** 0.5 - 0.1)
        assert!((of(Measure::Huber, 3.0) - 0.580_333).abs() < 1e-5);
    }
}
