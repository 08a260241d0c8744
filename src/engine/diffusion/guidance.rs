//! From the network's output to the denoised picture, with classifier-free guidance.

use burn::tensor::Tensor;

use crate::engine::diffusion::Prediction;

/// `x₀` from the network's output `m` at noise level σ, for `x = x₀ + σ·ε`.
pub fn denoised(x: Tensor<4>, m: Tensor<4>, sigma: f64, prediction: Prediction) -> Tensor<4> {
    match prediction {
        Prediction::Epsilon => x - m * sigma,
        Prediction::V => x / (sigma * sigma + 1.0) - m * (sigma / (sigma * sigma + 1.0).sqrt()),
    }
}

/// What the network sees of `x = x₀ + σ·ε`: unit variance.
pub fn network_input(x: Tensor<4>, sigma: f64) -> Tensor<4> {
    x / (sigma * sigma + 1.0).sqrt()
}

/// `without + scale · (with − without)` (Ho & Salimans 2022).
pub fn guided(without: Tensor<4>, with: Tensor<4>, scale: f64) -> Tensor<4> {
    without.clone() + (with - without) * scale
}

/// Guided output scaled to the deviation that following the prompt alone has over each image, mixed in by `phi` (Lin et
/// al. 2023, arXiv 2305.08891, eq. 15–16): strong guidance makes pictures glaring.
pub fn rescaled(guided: Tensor<4>, with: &Tensor<4>, phi: f64) -> Tensor<4> {
    let deviation = |x: &Tensor<4>| {
        let mean = x.clone().mean_dims(&[1, 2, 3]);
        (x.clone() - mean).powi_scalar(2).mean_dims(&[1, 2, 3]).sqrt()
    };
    // An even image has no deviation to scale.
    let ratio = deviation(with) / deviation(&guided).clamp_min(1e-12);
    guided * (ratio * phi + (1.0 - phi))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    /// diffusers' `rescale_noise_cfg` on two images.
    #[test]
    fn rescaling_is_that_of_diffusers() {
        let device = crate::engine::device::cpu();
        let tensor = |values: [f32; 8]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [2, 1, 2, 2]), &device);
        let without = tensor([1.0, 2.0, 4.0, -1.0, 0.5, 0.0, -2.0, 3.0]);
        let with = tensor([0.0, 1.0, 1.0, -3.0, 2.0, -1.0, 1.0, 0.5]);
        let guided = guided(without, with.clone(), 5.0);
        let expected =
            tensor([-2.418_651, -1.813_988, -6.651_29, -6.651_29, 3.059_783, -1.912_364, 4.972_147, -3.633_492]);
        let error: f32 = (rescaled(guided.clone(), &with, 0.7) - expected).abs().max().into_scalar();
        assert!(error < 1e-5, "{error}");
        assert_eq!(rescaled(guided.clone(), &with, 0.0).into_data(), guided.into_data());
        let even = with.ones_like();
        let found: f32 = rescaled(even.clone(), &even, 1.0).sum().into_scalar();
        assert!(found.is_finite());
    }
}
