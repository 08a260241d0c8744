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
