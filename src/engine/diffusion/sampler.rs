//! Samplers: one signature, one table.
//!
//! All work on `x = x₀ + σ·ε` (k-diffusion's coordinates) and see the network only through `denoise(x, step) → x₀`.

use burn::tensor::Tensor;

use crate::engine::diffusion::schedule::{Spacing, Steps};
use crate::engine::{Error, Result};

/// A sampler's row: what forms, help and errors read.
pub struct Sampler {
    pub name: &'static str,
    pub title: &'static str,
    pub paper: &'static str,
    pub help: &'static str,
    pub spacing: Spacing,
    pub start: Start,
    pub run: Run,
}

/// How far unit noise is scaled to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// To variance `σ² + 1`: noise plus what a picture would add.
    WithSignal,
    /// To `σ`.
    NoiseOnly,
}

/// What a sampler may ask for.
pub trait Denoiser {
    /// `x₀` as the network sees it at step `i`.
    fn denoise(&mut self, x: &Tensor<4>, i: usize) -> Result<Tensor<4>>;
    /// Fresh unit noise in the shape of `x` for step `i`.
    fn noise(&mut self, x: &Tensor<4>, i: usize) -> Tensor<4>;
    /// After each step: `i` of them done, `x` so far. An error stops the run.
    fn done(&mut self, i: usize, x: &Tensor<4>) -> Result<()>;
}

pub type Run = fn(&Steps, Tensor<4>, &mut dyn Denoiser) -> Result<Tensor<4>>;

pub const SAMPLERS: &[Sampler] = &[
    Sampler {
        name: "dpmpp_2m_karras",
        title: "DPM++ 2M Karras",
        paper: "Lu et al. 2022, arXiv 2211.01095; Karras et al. 2022, arXiv 2206.00364",
        help: "Second order, few steps suffice: the usual choice",
        spacing: Spacing::Karras,
        start: Start::WithSignal,
        run: dpmpp_2m,
    },
    Sampler {
        name: "dpmpp_2m",
        title: "DPM++ 2M",
        paper: "Lu et al. 2022, arXiv 2211.01095",
        help: "Second order on evenly spread timesteps",
        spacing: Spacing::LinspaceWhole,
        start: Start::WithSignal,
        run: dpmpp_2m,
    },
    Sampler {
        name: "ddim",
        title: "DDIM",
        paper: "Song et al. 2021, arXiv 2010.02502",
        help: "First order, deterministic, on the model's own timesteps",
        spacing: Spacing::Leading,
        start: Start::WithSignal,
        run: euler,
    },
    Sampler {
        name: "euler",
        title: "Euler",
        paper: "Karras et al. 2022, arXiv 2206.00364",
        help: "First order, deterministic",
        spacing: Spacing::Linspace,
        start: Start::NoiseOnly,
        run: euler,
    },
    Sampler {
        name: "euler_ancestral",
        title: "Euler ancestral",
        paper: "Karras et al. 2022, arXiv 2206.00364; k-diffusion",
        help: "Adds fresh noise at every step: never settles, softer detail",
        spacing: Spacing::Linspace,
        start: Start::NoiseOnly,
        run: euler_ancestral,
    },
];

/// The row of a name.
pub fn sampler(name: &str) -> Result<&'static Sampler> {
    SAMPLERS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = SAMPLERS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no sampler “{name}”"), format!("Choose one of {known}"))
    })
}

impl Sampler {
    /// From unit noise to latents of unit scale.
    pub fn sample(&self, steps: &Steps, noise: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
        let (first, last) = (steps.sigmas[0], steps.sigmas[steps.sigmas.len() - 1]);
        let scale = match self.start {
            Start::WithSignal => (first * first + 1.0).sqrt(),
            Start::NoiseOnly => first,
        };
        let x = (self.run)(steps, noise * scale, denoiser)?;
        Ok(x / (last * last + 1.0).sqrt())
    }
}

/// `dx/dσ = (x − x₀)/σ`. On the model's own timesteps this is DDIM.
fn euler(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    for i in 0..steps.timesteps.len() {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let x0 = denoiser.denoise(&x, i)?;
        let slope = (x.clone() - x0) / sigma;
        x = x + slope * (next - sigma);
        denoiser.done(i + 1, &x)?;
    }
    Ok(x)
}

/// Euler to a lower level than asked, then noise back up to it.
fn euler_ancestral(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
    for i in 0..steps.timesteps.len() {
        let (sigma, next) = (steps.sigmas[i], steps.sigmas[i + 1]);
        let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
        let down = (next * next - up * up).sqrt();
        let x0 = denoiser.denoise(&x, i)?;
        let slope = (x.clone() - x0) / sigma;
        x = x + slope * (down - sigma);
        if next > 0.0 {
            x = x.clone() + denoiser.noise(&x, i) * up;
        }
        denoiser.done(i + 1, &x)?;
    }
    Ok(x)
}

/// Multistep second order in `λ = −ln σ`; the first and last steps are of first order.
fn dpmpp_2m(steps: &Steps, mut x: Tensor<4>, denoiser: &mut dyn Denoiser) -> Result<Tensor<4>> {
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
        denoiser.done(i + 1, &x)?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::diffusion::Schedule;
    use crate::engine::model::sd::ScheduleConfig;

    /// A network that always sees the same picture: every sampler must arrive there.
    struct Constant(Tensor<4>, usize);

    impl Denoiser for Constant {
        fn denoise(&mut self, _: &Tensor<4>, _: usize) -> Result<Tensor<4>> {
            Ok(self.0.clone())
        }
        fn noise(&mut self, x: &Tensor<4>, _: usize) -> Tensor<4> {
            x.ones_like()
        }
        fn done(&mut self, i: usize, _: &Tensor<4>) -> Result<()> {
            self.1 += 1;
            assert_eq!(self.1, i);
            Ok(())
        }
    }

    #[test]
    fn every_sampler_reaches_a_constant_picture() {
        let device = crate::engine::device::cpu();
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        let picture = Tensor::<4>::ones([1, 4, 2, 2], &device) * 0.3;
        for row in SAMPLERS {
            let steps = schedule.steps(row.spacing, 9).unwrap();
            let mut denoiser = Constant(picture.clone(), 0);
            let out = row.sample(&steps, Tensor::ones([1, 4, 2, 2], &device), &mut denoiser).unwrap();
            let error: f32 = (out - picture.clone()).abs().max().into_scalar();
            assert!(error < 1e-4 && denoiser.1 == 9, "{}: {error}", row.name);
        }
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_refused() {
        let mut names: Vec<_> = SAMPLERS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SAMPLERS.len());
        assert!(sampler("heun3000").is_err_and(|e| e.advice.contains("euler_ancestral")));
    }
}
