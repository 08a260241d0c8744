//! Along the slope `dx/dσ = (x − x₀)/σ` (Karras et al. 2022): plain, with fresh noise, and averaged over a step.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::diffusion::sampler::Denoiser;
use crate::engine::diffusion::schedule::Steps;

/// One step along the slope, as a mixture: at σ of thousands the difference `σ' − σ` would lose the picture's digits.
fn step(x: Tensor<4>, x0: Tensor<4>, share: f64) -> Tensor<4> {
    x * share + x0 * (1.0 - share)
}

/// On the model's own timesteps this is DDIM.
pub(super) fn euler(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    for i in 0..steps.timesteps.len() {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let x0 = denoiser.denoise(&x, i)?;
        x = denoiser.done(i + 1, step(x, x0, next / sigma))?;
    }
    Ok(x)
}

/// Euler to `σ'²/σ`, then noise of variance `σ'²·(1 − σ'²/σ²)`: the posterior of DDPM (`fixed_small` in diffusers).
pub(super) fn ancestral(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    for i in 0..steps.timesteps.len() {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let share = (next / sigma).powi(2);
        let x0 = denoiser.denoise(&x, i)?;
        x = step(x, x0, share);
        if next > 0.0 {
            x = x.clone() + denoiser.noise(&x, i) * (next * (1.0 - share).sqrt());
        }
        x = denoiser.done(i + 1, x)?;
    }
    Ok(x)
}

/// The mean of the slopes at both ends; to σ = 0, Euler.
pub(super) fn heun(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    let n = steps.timesteps.len();
    for i in 0..n {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let x0 = denoiser.denoise(&x, i)?;
        let ahead = step(x.clone(), x0.clone(), next / sigma);
        x = if i + 1 < n {
            let x0_ahead = denoiser.denoise(&ahead, i + 1)?;
            let (slope, slope_ahead) = ((x.clone() - x0) / sigma, (ahead - x0_ahead) / next);
            x + (slope + slope_ahead) * ((next - sigma) / 2.0)
        } else {
            ahead
        };
        x = denoiser.done(i + 1, x)?;
    }
    Ok(x)
}
