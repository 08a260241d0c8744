//! UniPC (Zhao et al. 2023, arXiv 2302.04867): order 2, `B(h) = eʰ − 1`, predicting `x₀`, as diffusers'
//! `UniPCMultistepScheduler` does by default.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::diffusion::sampler::Denoiser;
use crate::engine::diffusion::schedule::Steps;

/// Each pass of the network first corrects the step that led to it, then predicts the next. The first step and the last
/// are of first order.
pub(super) fn unipc(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    let n = steps.timesteps.len();
    let order = |i: usize| if i == 0 || i + 1 == n { 1 } else { 2 };
    // Where the step before began, and x₀ of the two steps before, the latest first.
    let mut from: Option<Tensor<4>> = None;
    let mut seen: Vec<Tensor<4>> = Vec::new();
    for i in 0..n {
        let x0 = denoiser.denoise(&x, i)?;
        if let (Some(from), Some(m0)) = (from.take(), seen.first()) {
            let step = Step::new(steps, i - 1);
            let ahead = x0.clone() - m0.clone();
            let d = match seen.get(1).filter(|_| order(i - 1) == 2) {
                Some(m1) => {
                    let (r, [rho_1, rho_2]) = (step.r(steps, i - 1), step.rho(steps, i - 1));
                    (m1.clone() - m0.clone()) * (rho_1 / r) + ahead * rho_2
                }
                None => ahead * 0.5,
            };
            x = step.take(from, m0.clone() + d);
        }
        let step = Step::new(steps, i);
        let d = match seen.first().filter(|_| order(i) == 2) {
            Some(m1) => (m1.clone() - x0.clone()) * (0.5 / step.r(steps, i)),
            None => x0.zeros_like(),
        };
        let ahead = step.take(x.clone(), x0.clone() + d);
        from = Some(x);
        seen.insert(0, x0);
        seen.truncate(2);
        x = denoiser.done(i + 1, ahead)?;
    }
    Ok(x)
}

/// One step from σ to σ'.
struct Step {
    ratio: f64,
    /// `λ' − λ` with `λ = −ln σ`.
    h: f64,
}

impl Step {
    fn new(steps: &Steps, i: usize) -> Self {
        let ratio = steps.sigmas[i + 1] / steps.sigmas[i];
        Self { ratio, h: -ratio.ln() }
    }

    /// `x·σ'/σ − (e⁻ʰ − 1)·m`: with `B(h) = e⁻ʰ − 1`, higher orders only move `m`.
    fn take(&self, x: Tensor<4>, m: Tensor<4>) -> Tensor<4> {
        x * self.ratio + m * (1.0 - self.ratio)
    }

    /// Where the step before began, in lengths of this one: below 0.
    fn r(&self, steps: &Steps, i: usize) -> f64 {
        (steps.sigmas[i] / steps.sigmas[i - 1]).ln() / self.h
    }

    /// The corrector's weights: `ρ₁ + ρ₂ = 1!·φ₂/B` and `r·ρ₁ + ρ₂ = 2!·φ₃/B` at `−h`.
    fn rho(&self, steps: &Steps, i: usize) -> [f64; 2] {
        let phi_1 = (-self.h).exp_m1();
        let phi_2 = phi_1 / -self.h - 1.0;
        let phi_3 = phi_2 / -self.h - 0.5;
        let (b_1, b_2) = (phi_2 / phi_1, 2.0 * phi_3 / phi_1);
        let rho_1 = (b_1 - b_2) / (1.0 - self.r(steps, i));
        [rho_1, b_1 - rho_1]
    }
}
