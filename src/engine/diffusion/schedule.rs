//! Noise levels. `alpha_bar[t]` is the share of signal left in `x_t = √ᾱ·x₀ + √(1−ᾱ)·ε`, and `σ(t) = √((1−ᾱ)/ᾱ)`.
//!
//! Spacings and rounding follow diffusers (`scheduling_ddim.py`, `scheduling_euler_discrete.py`,
//! `scheduling_dpmsolver_multistep.py`), so that eight steps here are its eight steps.

use crate::engine::model::sd::ScheduleConfig;
use crate::engine::{Error, Result};

/// A hundred times what any model was trained with.
const MOST_TIMESTEPS: usize = 100_000;
/// `original_inference_steps` of diffusers' `LCMScheduler`.
const DISTILLED: usize = 50;
/// Instead of zero, so that σ stays finite: 4096, as in diffusers' `EulerDiscreteScheduler`.
const LEAST_ALPHA_BAR: f64 = 1.0 / (1 << 24) as f64;

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise ε.
    Epsilon,
    /// `v = √ᾱ·ε − √(1−ᾱ)·x₀` (Salimans & Ho 2022).
    V,
}

#[derive(Clone, Debug)]
pub struct Schedule {
    pub alpha_bar: Vec<f64>,
    pub prediction: Prediction,
    steps_offset: usize,
    set_alpha_to_one: bool,
}

/// How the timesteps of a run are spread over the training range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of a whole stride plus the model's offset.
    Leading,
    /// Counted down from the last timestep in equal strides (Lin et al. 2023, arXiv 2305.08891).
    Trailing,
    /// Evenly spread over `0…T−1`.
    Linspace,
    /// σ^(1/7) evenly spread (Karras et al. 2022).
    Karras,
    /// Some of the fifty timesteps that a consistency model was distilled on.
    Distilled,
}

/// Which timesteps of a spacing a sampler takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Points {
    /// `n`, also between whole timesteps.
    Between,
    /// `n` whole ones.
    Whole,
    /// The upper `n` of `n + 1` whole ones; of trailing ones, which end above 0 anyway, all.
    Upper,
}

/// The noise level that a run ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// σ = 0.
    Zero,
    /// The model's smallest, unless its configuration sets the last ᾱ to one.
    Model,
}

/// Which noise levels a sampler visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub spacing: Spacing,
    pub points: Points,
    pub end: End,
}

impl Spacing {
    /// Those that can be chosen, by their names.
    pub const NAMES: &[(&str, Self)] =
        &[("leading", Self::Leading), ("trailing", Self::Trailing), ("linspace", Self::Linspace)];

    /// `None` for every other word: the sampler's own.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, spacing)| *spacing)
    }
}

/// The noise levels of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// `n + 1` falling values of σ.
    pub sigmas: Vec<f64>,
    /// What the network is told at each of the `n` steps.
    pub timesteps: Vec<f64>,
    /// Whether the first level lies below the schedule's highest, where what a picture adds to the noise counts.
    pub begins_low: bool,
}

impl Schedule {
    pub fn new(config: &ScheduleConfig) -> Result<Self> {
        let n = config.num_train_timesteps;
        if !(2..=MOST_TIMESTEPS).contains(&n) || config.steps_offset >= n {
            return Err(Error::new(
                format!("A schedule of {n} timesteps is not possible"),
                "Check scheduler_config.json",
            ));
        }
        let (start, end) = (config.beta_start, config.beta_end);
        let at = |i: usize| i as f64 / (n.max(2) - 1) as f64;
        let betas: Vec<f64> = match config.beta_schedule.as_str() {
            "scaled_linear" => (0..n).map(|i| (start.sqrt() + at(i) * (end.sqrt() - start.sqrt())).powi(2)).collect(),
            "linear" => (0..n).map(|i| start + at(i) * (end - start)).collect(),
            other => return Err(unknown("noise schedule", other, "scaled_linear, linear")),
        };
        let prediction = match config.prediction_type.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::V,
            other => return Err(unknown("prediction type", other, "epsilon, v_prediction")),
        };
        if !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return Err(Error::new("The noise schedule leaves its range 0…1", "Check scheduler_config.json"));
        }
        let mut alpha_bar: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        if config.rescale_betas_zero_snr {
            if prediction == Prediction::Epsilon {
                return Err(Error::usage(
                    "Zero terminal SNR cannot work with a model that predicts noise: its first step sees noise alone, and would learn nothing of the picture",
                    "Set zero_snr to off for a picture, or rescale_betas_zero_snr to false in the model's scheduler_config.json",
                ));
            }
            rescale_to_zero_snr(&mut alpha_bar);
        }
        Ok(Self { alpha_bar, prediction, steps_offset: config.steps_offset, set_alpha_to_one: config.set_alpha_to_one })
    }

    /// Timesteps the model was trained with, T.
    pub fn len(&self) -> usize {
        self.alpha_bar.len()
    }

    pub fn is_empty(&self) -> bool {
        self.alpha_bar.is_empty()
    }

    /// σ at a timestep, linear between whole ones.
    pub fn sigma(&self, t: f64) -> f64 {
        let sigma = |i: usize| ((1.0 - self.alpha_bar[i]) / self.alpha_bar[i]).sqrt();
        let low = (t.max(0.0) as usize).min(self.len() - 1);
        let high = (low + 1).min(self.len() - 1);
        let share = (t - low as f64).clamp(0.0, 1.0);
        sigma(low) * (1.0 - share) + sigma(high) * share
    }

    /// The timestep of a σ: linear in log σ between whole timesteps.
    fn timestep(&self, sigma: f64) -> f64 {
        let log = |t: usize| self.sigma(t as f64).ln();
        let above = (0..self.len()).find(|&t| log(t) >= sigma.ln()).unwrap_or(self.len() - 1).max(1);
        let (low, high) = (log(above - 1), log(above));
        (above - 1) as f64 + ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// Noise levels for a run of `n` steps, 1 ≤ n ≤ T.
    pub fn steps(&self, grid: Grid, n: usize) -> Result<Steps> {
        let train = self.len();
        let most = match (grid.spacing, grid.points) {
            (Spacing::Distilled, _) => DISTILLED.min(train),
            (_, Points::Upper) => train - 1,
            _ => train,
        };
        if n == 0 || n > most {
            let what = format!("{n} sampling steps cannot be taken");
            return Err(Error::usage(what, format!("Choose 1 to {most} steps")));
        }
        let last = (train - 1) as f64;
        let timesteps: Vec<f64> = match grid.spacing {
            Spacing::Leading => {
                let (first, points) = if grid.points == Points::Upper { (1, n + 1) } else { (0, n) };
                let at = |i: usize| (i * (train / points) + self.steps_offset).min(train - 1) as f64;
                (first..first + n).rev().map(at).collect()
            }
            Spacing::Trailing => {
                (0..n).map(|i| (train as f64 * (1.0 - i as f64 / n as f64)).round_ties_even() - 1.0).collect()
            }
            Spacing::Linspace => {
                let (first, gaps) = match grid.points {
                    Points::Upper => (1, n),
                    // A single step begins at the top: diffusers' would begin, and end, at the bottom.
                    _ if n == 1 => (1, 1),
                    _ => (0, n - 1),
                };
                let at = (first..first + n).rev().map(|i| last * i as f64 / gaps as f64);
                if grid.points == Points::Between { at.collect() } else { at.map(f64::round_ties_even).collect() }
            }
            Spacing::Karras => return Ok(self.karras(n, grid.end)),
            Spacing::Distilled => {
                let origin = DISTILLED.min(train);
                (0..n).map(|i| ((origin - i * origin / n) * (train / origin) - 1) as f64).collect()
            }
        };
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| self.sigma(t)).collect();
        sigmas.push(self.end(grid.end));
        Ok(Steps { sigmas, timesteps, begins_low: grid.spacing == Spacing::Leading })
    }

    fn karras(&self, n: usize, end: End) -> Steps {
        const RHO: f64 = 7.0;
        let (high, low) = (self.sigma((self.len() - 1) as f64).powf(1.0 / RHO), self.sigma(0.0).powf(1.0 / RHO));
        let share = |i: usize| if n == 1 { 0.0 } else { i as f64 / (n - 1) as f64 };
        let mut sigmas: Vec<f64> = (0..n).map(|i| (high + share(i) * (low - high)).powf(RHO)).collect();
        let timesteps = sigmas.iter().map(|&s| self.timestep(s).round_ties_even()).collect();
        sigmas.push(self.end(end));
        Steps { sigmas, timesteps, begins_low: false }
    }

    fn end(&self, end: End) -> f64 {
        if end == End::Model && !self.set_alpha_to_one { self.sigma(0.0) } else { 0.0 }
    }
}

impl Steps {
    /// The last `n` of them.
    #[must_use]
    pub fn last(&self, n: usize) -> Self {
        let from = self.timesteps.len().saturating_sub(n);
        let (sigmas, timesteps) = (self.sigmas[from..].to_vec(), self.timesteps[from..].to_vec());
        Self { sigmas, timesteps, begins_low: self.begins_low }
    }
}

/// Shifts and scales √ᾱ so that the last is zero and the first stays (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
fn rescale_to_zero_snr(alpha_bar: &mut [f64]) {
    let (Some(first), Some(last)) = (alpha_bar.first(), alpha_bar.last()) else { return };
    let (first, last) = (first.sqrt(), last.sqrt());
    for alpha_bar in alpha_bar {
        *alpha_bar = ((alpha_bar.sqrt() - last) * first / (first - last)).powi(2).max(LEAST_ALPHA_BAR);
    }
}

fn unknown(what: &str, found: &str, known: &str) -> Error {
    Error::new(format!("The model's {what} “{found}” is not known"), format!("It must be one of {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        Schedule::new(&ScheduleConfig { steps_offset: 1, ..ScheduleConfig::default() }).unwrap()
    }

    /// Values of diffusers' `alphas_cumprod` for SD 1.5.
    #[test]
    fn table_is_stable_diffusions() {
        let schedule = schedule();
        for (t, expected) in [(0, 0.999_15), (500, 0.276_337), (999, 0.004_66)] {
            assert!((schedule.alpha_bar[t] - expected).abs() < 2e-4, "{t}: {}", schedule.alpha_bar[t]);
        }
        assert!((schedule.sigma(999.0) - 14.6146).abs() < 1e-3);
    }

    fn grid(spacing: Spacing, points: Points) -> Grid {
        Grid { spacing, points, end: End::Model }
    }

    #[test]
    fn every_grid_falls() {
        let names = [Spacing::Karras, Spacing::Distilled].into_iter().chain(Spacing::NAMES.iter().map(|(_, s)| *s));
        for spacing in names {
            for points in [Points::Between, Points::Whole, Points::Upper] {
                for n in [1, 2, 7, 20, 50] {
                    let steps = schedule().steps(grid(spacing, points), n).unwrap();
                    assert_eq!((steps.sigmas.len(), steps.timesteps.len()), (n + 1, n));
                    let falls = steps.sigmas.windows(2).all(|w| w[0] > w[1]);
                    assert!(falls || n == 1, "{spacing:?} {points:?} {n}: {:?}", steps.sigmas);
                }
                assert!(schedule().steps(grid(spacing, points), 0).is_err());
                assert!(schedule().steps(grid(spacing, points), 1001).is_err());
            }
        }
        let error = schedule().steps(grid(Spacing::Distilled, Points::Whole), 51).unwrap_err();
        assert!(error.advice.contains("1 to 50"), "{error}");
    }

    /// `timesteps` of diffusers 0.42 with a `steps_offset` of 1: DDIM, Euler, `DPMSolverMultistep`, LCM.
    #[test]
    fn timesteps_are_those_of_diffusers() {
        use Points::{Between, Upper, Whole};
        let cases: [(Spacing, Points, &[f64]); 8] = [
            (Spacing::Leading, Whole, &[853.0, 711.0, 569.0, 427.0, 285.0, 143.0, 1.0]),
            (Spacing::Leading, Upper, &[876.0, 751.0, 626.0, 501.0, 376.0, 251.0, 126.0]),
            (Spacing::Trailing, Whole, &[999.0, 856.0, 713.0, 570.0, 428.0, 285.0, 142.0]),
            (Spacing::Trailing, Upper, &[999.0, 856.0, 713.0, 570.0, 428.0, 285.0, 142.0]),
            (Spacing::Linspace, Whole, &[999.0, 832.0, 666.0, 500.0, 333.0, 166.0, 0.0]),
            (Spacing::Linspace, Between, &[999.0, 832.5, 666.0, 499.5, 333.0, 166.5, 0.0]),
            (Spacing::Linspace, Upper, &[999.0, 856.0, 714.0, 571.0, 428.0, 285.0, 143.0]),
            (Spacing::Distilled, Whole, &[999.0, 859.0, 719.0, 579.0, 439.0, 299.0, 159.0]),
        ];
        for (spacing, points, expected) in cases {
            assert_eq!(
                schedule().steps(grid(spacing, points), 7).unwrap().timesteps,
                expected,
                "{spacing:?} {points:?}"
            );
        }
    }

    /// Values of diffusers' `rescale_zero_terminal_snr` for SD 1.5.
    #[test]
    fn zero_terminal_snr_reaches_zero_and_needs_v() {
        let config = ScheduleConfig { rescale_betas_zero_snr: true, ..ScheduleConfig::default() };
        assert!(Schedule::new(&config).unwrap_err().what.contains("Zero terminal SNR"));
        let schedule = Schedule::new(&ScheduleConfig { prediction_type: "v_prediction".into(), ..config }).unwrap();
        for (t, expected) in [(0, 0.999_15), (500, 0.241_018_5), (998, 1.967_963e-7)] {
            assert!((schedule.alpha_bar[t] / expected - 1.0).abs() < 1e-4, "{t}: {}", schedule.alpha_bar[t]);
        }
        assert!((schedule.sigma(999.0) - 4096.0).abs() < 1e-3);
    }

    #[test]
    fn the_last_steps_end_where_all_do() {
        let steps = schedule().steps(grid(Spacing::Leading, Points::Whole), 7).unwrap();
        assert_eq!(steps.last(2).timesteps, [143.0, 1.0]);
        assert_eq!(steps.last(2).sigmas, steps.sigmas[5..]);
        assert_eq!((steps.last(0).sigmas, steps.last(9)), (steps.sigmas[7..].to_vec(), steps.clone()));
    }

    #[test]
    fn timestep_inverts_sigma() {
        for t in [1.0, 250.5, 998.0] {
            assert!((schedule().timestep(schedule().sigma(t)) - t).abs() < 0.01);
        }
    }
}
