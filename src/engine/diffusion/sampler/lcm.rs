//! Latent consistency models (Luo et al. 2023, arXiv 2310.04378), as diffusers' `LCMScheduler`.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::diffusion::guidance::network_input;
use crate::engine::diffusion::sampler::Denoiser;
use crate::engine::diffusion::schedule::Steps;

const TIMESTEP_SCALING: f64 = 10.0;
const SIGMA_DATA: f64 = 0.5;

/// The consistency function `c_out·x₀ + c_skip·x` jumps to the end at every step; all but the last go back up by fresh
/// noise.
pub(super) fn lcm(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    for i in 0..steps.timesteps.len() {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let t = TIMESTEP_SCALING * steps.timesteps[i];
        let c_skip = SIGMA_DATA * SIGMA_DATA / (t * t + SIGMA_DATA * SIGMA_DATA);
        let c_out = t / (t * t + SIGMA_DATA * SIGMA_DATA).sqrt();
        let x0 = denoiser.denoise(&x, i)?;
        x = x0 * c_out + network_input(x, sigma) * c_skip;
        if next > 0.0 {
            x = x.clone() + denoiser.noise(&x, i) * next;
        }
        x = denoiser.done(i + 1, x)?;
    }
    Ok(x)
}
