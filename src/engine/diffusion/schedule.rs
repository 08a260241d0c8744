//! Noise levels. `alpha_bar[t]` is the share of signal left in `x_t = √ᾱ·x₀ + √(1−ᾱ)·ε`, and `σ(t) = √((1−ᾱ)/ᾱ)`.
//!
//! Spacings and rounding follow diffusers (`scheduling_ddim.py`, `scheduling_euler_discrete.py`,
//! `scheduling_dpmsolver_multistep.py`), so that eight steps here are its eight steps.

use crate::engine::model::sd::ScheduleConfig;
use crate::engine::{Error, Result};

/// A hundred times what any model was trained with.
const MOST_TIMESTEPS: usize = 100_000;

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
    /// Multiples of `⌊T/n⌋` plus the model's offset; ends at the model's smallest noise level.
    Leading,
    /// `n` evenly spread over `0…T−1`, ends at σ = 0.
    Linspace,
    /// As `n + 1` whole timesteps over `0…T−1` without the last, ends at σ = 0.
    LinspaceWhole,
    /// σ^(1/7) evenly spread (Karras et al. 2022), ends at σ = 0.
    Karras,
}

/// The noise levels of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// `n + 1` falling values of σ.
    pub sigmas: Vec<f64>,
    /// What the network is told at each of the `n` steps.
    pub timesteps: Vec<f64>,
}

impl Schedule {
    pub fn new(config: &ScheduleConfig) -> Result<Self> {
        let n = config.num_train_timesteps;
        if config.rescale_betas_zero_snr {
            return Err(Error::new("The model needs a zero-terminal-SNR schedule", "Such models cannot be used yet"));
        }
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
        let alpha_bar = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
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
    pub fn steps(&self, spacing: Spacing, n: usize) -> Result<Steps> {
        let train = self.len();
        if n == 0 || n > train {
            return Err(Error::usage(
                format!("{n} sampling steps cannot be taken"),
                format!("Choose 1 to {train} steps"),
            ));
        }
        let last = (train - 1) as f64;
        let mut steps = match spacing {
            Spacing::Leading => {
                let timesteps: Vec<f64> =
                    (0..n).rev().map(|i| (i * (train / n) + self.steps_offset).min(train - 1) as f64).collect();
                Steps { sigmas: timesteps.iter().map(|&t| self.sigma(t)).collect(), timesteps }
            }
            Spacing::Linspace => {
                let timesteps: Vec<f64> =
                    (0..n).rev().map(|i| if n == 1 { 0.0 } else { last * i as f64 / (n - 1) as f64 }).collect();
                Steps { sigmas: timesteps.iter().map(|&t| self.sigma(t)).collect(), timesteps }
            }
            Spacing::LinspaceWhole => {
                let timesteps: Vec<f64> =
                    (1..=n).rev().map(|i| (last * i as f64 / n as f64).round_ties_even()).collect();
                Steps { sigmas: timesteps.iter().map(|&t| self.sigma(t)).collect(), timesteps }
            }
            Spacing::Karras => {
                const RHO: f64 = 7.0;
                let (high, low) = (self.sigma(last).powf(1.0 / RHO), self.sigma(0.0).powf(1.0 / RHO));
                let sigmas: Vec<f64> = (0..n)
                    .map(|i| (high + if n == 1 { 0.0 } else { i as f64 / (n - 1) as f64 } * (low - high)).powf(RHO))
                    .collect();
                Steps { timesteps: sigmas.iter().map(|&s| self.timestep(s).round_ties_even()).collect(), sigmas }
            }
        };
        steps.sigmas.push(if spacing == Spacing::Leading && !self.set_alpha_to_one { self.sigma(0.0) } else { 0.0 });
        Ok(steps)
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

    #[test]
    fn every_spacing_falls() {
        for spacing in [Spacing::Leading, Spacing::Linspace, Spacing::LinspaceWhole, Spacing::Karras] {
            for n in [1, 2, 7, 20, 50] {
                let steps = schedule().steps(spacing, n).unwrap();
                assert_eq!((steps.sigmas.len(), steps.timesteps.len()), (n + 1, n));
                assert!(steps.sigmas.windows(2).all(|w| w[0] > w[1]) || n == 1, "{spacing:?} {n}: {:?}", steps.sigmas);
            }
        }
        assert!(schedule().steps(Spacing::Leading, 0).is_err());
        assert!(schedule().steps(Spacing::Leading, 1001).is_err());
    }

    #[test]
    fn timestep_inverts_sigma() {
        for t in [1.0, 250.5, 998.0] {
            assert!((schedule().timestep(schedule().sigma(t)) - t).abs() < 0.01);
        }
    }
}
