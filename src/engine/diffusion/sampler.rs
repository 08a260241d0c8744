//! Samplers: one signature, one table; each family of formulas in a file of its own.
//!
//! All work on `x = x₀ + σ·ε` (k-diffusion's coordinates) and see the network only through `denoise(x, step) → x₀`.

mod dpm;
mod euler;
mod lcm;
mod unipc;

use burn::tensor::Tensor;

use crate::engine::diffusion::Schedule;
use crate::engine::diffusion::schedule::{End, Grid, Points, Spacing, Steps};
use crate::engine::{Error, Result};

/// A sampler's row: what forms, help and errors read.
pub struct Sampler {
    pub name: &'static str,
    pub title: &'static str,
    pub paper: &'static str,
    pub help: &'static str,
    pub grid: Grid,
    pub start: Start,
    /// Network passes of every step but the last, which takes one.
    pub passes: usize,
    pub run: Run,
}

/// How far unit noise is scaled to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// To variance `σ² + 1`: noise plus what a picture would add.
    WithSignal,
    /// To `σ`, unless the steps begin low: so do diffusers' Euler and Heun (`init_noise_sigma`).
    NoiseOnly,
}

/// What a sampler may ask for.
pub trait Denoiser {
    /// `x₀` as the network sees it at the noise level of step `i`.
    fn denoise(&mut self, x: &Tensor<4>, i: usize) -> Result<Tensor<4>>;
    /// Fresh unit noise in the shape of `x` for step `i`.
    fn noise(&mut self, x: &Tensor<4>, i: usize) -> Tensor<4>;
    /// After each step, `i` of them done: `x` as the next one is to find it. An error stops the run.
    fn done(&mut self, i: usize, x: Tensor<4>) -> Result<Tensor<4>>;
}

pub type Run = fn(&Steps, Tensor<4>, &mut dyn Denoiser) -> Result<Tensor<4>>;

pub const SAMPLERS: &[Sampler] = &[
    Sampler {
        name: "dpmpp_2m_karras",
        title: "DPM++ 2M Karras",
        paper: "Lu et al. 2022, arXiv 2211.01095; Karras et al. 2022, arXiv 2206.00364",
        help: "Second order, few steps suffice: the usual choice",
        grid: Grid { spacing: Spacing::Karras, points: Points::Upper, end: End::Zero },
        start: Start::WithSignal,
        passes: 1,
        run: dpm::dpmpp_2m,
    },
    Sampler {
        name: "dpmpp_2m",
        title: "DPM++ 2M",
        paper: "Lu et al. 2022, arXiv 2211.01095",
        help: "Second order on evenly spread timesteps",
        grid: Grid { spacing: Spacing::Linspace, points: Points::Upper, end: End::Zero },
        start: Start::WithSignal,
        passes: 1,
        run: dpm::dpmpp_2m,
    },
    Sampler {
        name: "unipc",
        title: "UniPC",
        paper: "Zhao et al. 2023, arXiv 2302.04867",
        help: "Second order, each step corrected by the next one's pass: good with ten steps or fewer",
        grid: Grid { spacing: Spacing::Linspace, points: Points::Upper, end: End::Zero },
        start: Start::WithSignal,
        passes: 1,
        run: unipc::unipc,
    },
    Sampler {
        name: "ddim",
        title: "DDIM",
        paper: "Song et al. 2021, arXiv 2010.02502",
        help: "First order, deterministic, on the model's own timesteps",
        grid: Grid { spacing: Spacing::Leading, points: Points::Whole, end: End::Model },
        start: Start::WithSignal,
        passes: 1,
        run: euler::euler,
    },
    Sampler {
        name: "ddpm",
        title: "DDPM",
        paper: "Ho et al. 2020, arXiv 2006.11239",
        help: "The model's own random process: fresh noise at every step, best with many",
        grid: Grid { spacing: Spacing::Leading, points: Points::Whole, end: End::Zero },
        start: Start::WithSignal,
        passes: 1,
        run: euler::ancestral,
    },
    Sampler {
        name: "euler",
        title: "Euler",
        paper: "Karras et al. 2022, arXiv 2206.00364",
        help: "First order, deterministic",
        grid: Grid { spacing: Spacing::Linspace, points: Points::Between, end: End::Zero },
        start: Start::NoiseOnly,
        passes: 1,
        run: euler::euler,
    },
    Sampler {
        name: "euler_ancestral",
        title: "Euler ancestral",
        paper: "Karras et al. 2022, arXiv 2206.00364; k-diffusion",
        help: "Adds fresh noise at every step: never settles, softer detail",
        grid: Grid { spacing: Spacing::Linspace, points: Points::Between, end: End::Zero },
        start: Start::NoiseOnly,
        passes: 1,
        run: euler::ancestral,
    },
    Sampler {
        name: "heun",
        title: "Heun",
        paper: "Karras et al. 2022, arXiv 2206.00364",
        help: "Second order, deterministic, two network passes a step",
        grid: Grid { spacing: Spacing::Linspace, points: Points::Between, end: End::Zero },
        start: Start::NoiseOnly,
        passes: 2,
        run: euler::heun,
    },
    Sampler {
        name: "lcm",
        title: "LCM",
        paper: "Luo et al. 2023, arXiv 2310.04378",
        help: "For models or adapters distilled to consistency: four to eight steps at a guidance of 1 to 2",
        grid: Grid { spacing: Spacing::Distilled, points: Points::Whole, end: End::Zero },
        start: Start::WithSignal,
        passes: 1,
        run: lcm::lcm,
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
    /// Whether its noise levels belong to it, so that no other spacing can be chosen.
    pub fn keeps_spacing(&self) -> bool {
        matches!(self.grid.spacing, Spacing::Karras | Spacing::Distilled)
    }

    /// Noise levels of `n` steps, spread as `chosen` or as is its own way.
    pub fn steps(&self, schedule: &Schedule, chosen: Option<Spacing>, n: usize) -> Result<Steps> {
        let spacing = chosen.filter(|_| !self.keeps_spacing()).unwrap_or(self.grid.spacing);
        schedule.steps(Grid { spacing, ..self.grid }, n)
    }

    /// Network passes of `n` steps.
    pub fn passes(&self, n: usize) -> usize {
        n.min(1) + n.saturating_sub(1) * self.passes
    }

    /// From unit noise to latents of unit scale; with a `picture`, from its latents under as much noise as the first step
    /// expects. Without any step, that picture.
    pub fn sample(
        &self,
        steps: &Steps,
        noise: Tensor<4>,
        picture: Option<Tensor<4>>,
        denoiser: &mut dyn Denoiser,
    ) -> Result<Tensor<4>> {
        let (first, last) = (steps.sigmas[0], steps.sigmas[steps.sigmas.len() - 1]);
        let x = match (picture, self.start) {
            (Some(picture), _) if steps.timesteps.is_empty() => return Ok(picture),
            (Some(picture), _) => picture + noise * first,
            (None, Start::NoiseOnly) if !steps.begins_low => noise * first,
            (None, _) => noise * (first * first + 1.0).sqrt(),
        };
        let x = (self.run)(steps, x, denoiser)?;
        Ok(x / (last * last + 1.0).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::diffusion::{Prediction, guidance};
    use crate::engine::model::sd::ScheduleConfig;

    fn schedule(prediction_type: &str, rescale_betas_zero_snr: bool) -> Schedule {
        let prediction_type = prediction_type.into();
        let config =
            ScheduleConfig { steps_offset: 1, prediction_type, rescale_betas_zero_snr, ..ScheduleConfig::default() };
        Schedule::new(&config).unwrap()
    }

    fn ones(size: [usize; 4]) -> Tensor<4> {
        Tensor::ones(size, &crate::engine::device::cpu())
    }

    /// What a network says of `x = x₀ + σ·ε`, and what was asked of it.
    struct Network<F: Fn(Tensor<4>, f64) -> Tensor<4>> {
        x0: F,
        sigmas: Vec<f64>,
        passes: usize,
        steps: usize,
    }

    impl<F: Fn(Tensor<4>, f64) -> Tensor<4>> Denoiser for Network<F> {
        fn denoise(&mut self, x: &Tensor<4>, i: usize) -> Result<Tensor<4>> {
            self.passes += 1;
            Ok((self.x0)(x.clone(), self.sigmas[i]))
        }
        fn noise(&mut self, x: &Tensor<4>, _: usize) -> Tensor<4> {
            x.ones_like() * 0.7
        }
        fn done(&mut self, i: usize, x: Tensor<4>) -> Result<Tensor<4>> {
            self.steps += 1;
            assert_eq!(self.steps, i);
            Ok(x)
        }
    }

    fn run(row: &Sampler, steps: &Steps, x0: impl Fn(Tensor<4>, f64) -> Tensor<4>) -> f32 {
        let mut network = Network { x0, sigmas: steps.sigmas.clone(), passes: 0, steps: 0 };
        let out = row.sample(steps, ones([1, 4, 2, 2]), None, &mut network).unwrap();
        let n = steps.timesteps.len();
        assert_eq!((network.steps, network.passes), (n, row.passes(n)), "{}", row.name);
        out.slice([0..1, 0..1, 0..1, 0..1]).into_scalar()
    }

    /// A network that always sees the same picture: every sampler must arrive there, on every spacing.
    #[test]
    fn every_sampler_reaches_a_constant_picture() {
        for row in SAMPLERS {
            for zero_snr in [false, true] {
                for chosen in [None].into_iter().chain(Spacing::NAMES.iter().map(|(_, spacing)| Some(*spacing))) {
                    let schedule = schedule("v_prediction", zero_snr);
                    let steps = row.steps(&schedule, chosen, 9).unwrap();
                    let found = run(row, &steps, |x, _| x.ones_like() * 0.3);
                    assert!((found - 0.3).abs() < 1e-4, "{} {chosen:?} {zero_snr}: {found}", row.name);
                }
            }
        }
    }

    /// Pictures drawn from N(0, s²) have the ideal denoiser `x·s²/(s² + σ²)`, whose flow keeps `x/√(s² + σ²)`.
    #[test]
    fn deterministic_samplers_follow_the_flow_of_a_gaussian() {
        const S: f64 = 0.5;
        let schedule = schedule("epsilon", false);
        let first_order = ["euler", "ddim"].map(|name| (name, 0.02));
        let second_order = ["heun", "dpmpp_2m", "unipc"].map(|name| (name, 0.01));
        for (name, tolerance) in first_order.into_iter().chain(second_order) {
            let row = sampler(name).unwrap();
            let steps = row.steps(&schedule, Some(Spacing::Trailing), 200).unwrap();
            let found = run(row, &steps, |x, sigma| x * (S * S / (S * S + sigma * sigma)));
            let first = steps.sigmas[0];
            let start = if row.start == Start::NoiseOnly { first } else { (first * first + 1.0).sqrt() };
            let expected = start * S / (S * S + first * first).sqrt();
            assert!((f64::from(found) / expected - 1.0).abs() < tolerance, "{name}: {found} instead of {expected}");
        }
    }

    /// The last value of diffusers 0.42's schedulers after four steps from 1 (UniPC: five) with a network that says
    /// `0.3·x + 0.1`, where noise is drawn as 0.7.
    #[test]
    fn samplers_are_those_of_diffusers() {
        for (name, n, zero_snr, chosen, expected) in [
            ("ddpm", 4, false, None, 2.730_133_7),
            ("lcm", 4, false, None, 5.769_356_5),
            ("lcm", 7, false, None, 4.461_153_6),
            ("heun", 4, false, None, 3.248_904_6),
            ("unipc", 5, false, None, 4.775_253),
            ("euler", 4, true, Some(Spacing::Trailing), 0.282_403_5),
            ("dpmpp_2m", 4, true, Some(Spacing::Trailing), 0.319_475_7),
            ("unipc", 4, true, Some(Spacing::Trailing), 0.348_893_7),
            ("ddpm", 4, true, Some(Spacing::Trailing), 0.327_877_7),
        ] {
            let row = sampler(name).unwrap();
            let prediction = if zero_snr { "v_prediction" } else { "epsilon" };
            let steps = row.steps(&schedule(prediction, zero_snr), chosen, n).unwrap();
            let kind = if zero_snr { Prediction::V } else { Prediction::Epsilon };
            let found = run(row, &steps, |x, sigma| {
                let said = guidance::network_input(x.clone(), sigma) * 0.3 + 0.1;
                guidance::denoised(x, said, sigma, kind)
            });
            assert!((found / expected - 1.0).abs() < 1e-3, "{name} {n} {zero_snr}: {found} instead of {expected}");
        }
    }

    #[test]
    fn a_picture_is_noised_to_the_first_step_and_stays_without_any() {
        let row = sampler("euler").unwrap();
        let steps = row.steps(&schedule("epsilon", false), None, 9).unwrap();
        let begin = |steps: &Steps| {
            let mut network = Network { x0: |x, _| x, sigmas: steps.sigmas.clone(), passes: 0, steps: 0 };
            let out = row.sample(steps, ones([1, 4, 2, 2]), Some(ones([1, 4, 2, 2]) * 0.2), &mut network).unwrap();
            f64::from(out.mean().into_scalar::<f32>())
        };
        // A network that changes nothing leaves what it was given.
        assert!((begin(&steps.last(3)) - (0.2 + steps.sigmas[6])).abs() < 1e-5);
        assert!((begin(&steps.last(0)) - 0.2).abs() < 1e-6);
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
