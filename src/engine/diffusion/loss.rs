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

/// Mean square error of each image, `[b]`.
pub fn per_image(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    (prediction - target).powi_scalar(2).mean_dims(&[1, 2, 3]).flatten(0, 3)
}

/// Mean square error of each image with every pixel weighed, `[b]`; `weights` is `[b, 1, h, w]`.
pub fn masked(prediction: Tensor<4>, target: Tensor<4>, weights: Tensor<4>) -> Tensor<1> {
    ((prediction - target).powi_scalar(2) * weights).mean_dims(&[1, 2, 3]).flatten(0, 3)
}

/// Min-SNR-γ weight of a timestep (Hang et al. 2023): `min(SNR, γ)` over SNR for ε, over SNR + 1 for v.
pub fn min_snr_weight(schedule: &Schedule, timestep: usize, gamma: f64) -> f64 {
    let alpha_bar = schedule.alpha_bar[timestep];
    let snr = alpha_bar / (1.0 - alpha_bar);
    match schedule.prediction {
        Prediction::Epsilon => snr.min(gamma) / snr,
        Prediction::V => snr.min(gamma) / (snr + 1.0),
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
        assert_eq!(values(masked(said.clone(), target.clone(), Tensor::ones([2, 1, 3, 5], &device))), plain);
        let first = Tensor::cat(vec![Tensor::ones([2, 1, 1, 5], &device), Tensor::zeros([2, 1, 2, 5], &device)], 2);
        let row = values(per_image(said.clone().narrow(2, 0, 1), target.clone().narrow(2, 0, 1)));
        for (found, row) in values(masked(said, target, first * 3.0)).into_iter().zip(row) {
            assert!((found - row).abs() < 1e-5, "a third of the pixels, three times the weight: {found} {row}");
        }
    }

    #[test]
    fn weights_are_one_where_snr_is_small() {
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        assert!((min_snr_weight(&schedule, 900, 5.0) - 1.0).abs() < 1e-12);
        assert!(min_snr_weight(&schedule, 10, 5.0) < 0.05);
    }
}
