//! DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::diffusion::sampler::Denoiser;
use crate::engine::diffusion::schedule::Steps;

/// Multistep second order in `λ = −ln σ`; the first and last steps are of first order.
pub(super) fn dpmpp_2m(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    let mut before: Option<Tensor<4>> = None;
    for i in 0..steps.timesteps.len() {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let x0 = denoiser.denoise(&x, i)?;
        let extrapolated = match before {
            Some(x0_before) if next > 0.0 => {
                let h = (sigma / next).ln();
                let r = (steps.sigmas[i - 1] / sigma).ln() / h;
                x0.clone() + (x0.clone() - x0_before) / (2.0 * r)
            }
            _ => x0.clone(),
        };
        // With y = x/σ the exact step is y·σ' + (1 − σ'/σ)·x₀.
        x = x * (next / sigma) + extrapolated * (1.0 - next / sigma);
        before = Some(x0);
        x = denoiser.done(i + 1, x)?;
    }
    Ok(x)
}
