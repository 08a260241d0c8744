//! The singular values of all trained layers while training goes on.
//!
//! Only low-rank pairs are looked at: the QR of both factors is milliseconds for a whole model. The spectrum of a full
//! difference (`dora`, `oft`, `lisa`) takes longer than the steps it would watch, and `triptych spectrum` measures it
//! when the file is there; a method whose change depends on the picture (`mola`) has none.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::engine::Result;
use crate::engine::device::read;
use crate::engine::event::{SingularValues, Spectrum};
use crate::engine::model::StableDiffusion;
use crate::engine::spectrum::{LowRank, Shape};
use crate::engine::train::step::Trainee;

/// Training takes at least this many times as long as all looks together, but for the first and the last.
const TIMES: u32 = 100;

/// When to look: every so many steps, once what the last look cost has been earned. The last step is always shown.
#[derive(Debug)]
pub struct Live {
    every: usize,
    /// All looks so far.
    pub spent: Duration,
    /// The latest of them.
    latest: Duration,
}

impl Live {
    /// `every` 0 never looks.
    pub fn new(every: usize) -> Self {
        Self { every, spent: Duration::ZERO, latest: Duration::ZERO }
    }

    /// Whether to look after step `done` of `total`, when training has taken `worked`.
    pub fn due(&self, done: usize, total: usize, worked: Duration) -> bool {
        let earned = (self.spent + self.latest).saturating_mul(TIMES) <= worked;
        self.every > 0 && (done == total || done.is_multiple_of(self.every) && earned)
    }

    /// The spectrum after a step, and what it cost; none where no layer has one, and where the numbers ran away, which
    /// the next step reports.
    pub fn look(&mut self, step: usize, trainee: &Trainee, model: &StableDiffusion) -> Result<Option<Spectrum>> {
        let start = Instant::now();
        let spectrum = spectrum(step, trainee, model);
        self.latest = start.elapsed();
        self.spent += self.latest;
        spectrum
    }
}

/// A pair on its way to the host: its numbers are the next in line.
struct Pair {
    layer: String,
    shape: Shape,
    scale: f32,
}

fn spectrum(step: usize, trainee: &Trainee, model: &StableDiffusion) -> Result<Option<Spectrum>> {
    let values = trainee.values();
    let mut pairs = Vec::new();
    let mut flat: Vec<Tensor<1>> = Vec::new();
    for layer in &trainee.layers {
        let tensors = Trainee::tensors(layer, &values);
        let Some(branch) = trainee.adapter.pair(&tensors, model.weight(layer.id)) else { continue };
        let ([out, rank], [_, input]) = (branch.up.dims(), branch.down.dims());
        let layer = model.layer(layer.id).module();
        pairs.push(Pair { layer, shape: Shape { out, rank, input }, scale: branch.scale });
        flat.extend([branch.up, branch.down].map(|factor| factor.flatten(0, 1)));
    }
    if pairs.is_empty() {
        return Ok(None);
    }
    // One wait for the device, not one for each tensor.
    let numbers = read(Tensor::cat(flat, 0))?;
    let mut rest = &numbers[..];
    let mut take = |n: usize| {
        let (taken, left) = rest.split_at(n);
        rest = left;
        taken
    };
    let deltas: Vec<(String, LowRank)> = pairs
        .into_iter()
        .filter_map(|Pair { layer, shape, scale }| {
            let (up, down) = (take(shape.out * shape.rank), take(shape.rank * shape.input));
            Some((layer, LowRank::new(up, down, shape, f64::from(scale)).ok()?))
        })
        .collect();
    let layers: Vec<SingularValues> = deltas
        .into_par_iter()
        .filter_map(|(layer, delta)| {
            let values = delta.singular_values().ok()?.into_iter().map(|s| s as f32).collect();
            Some(SingularValues { layer, values })
        })
        .collect();
    Ok((!layers.is_empty()).then_some(Spectrum { step, layers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_paid_for_before_the_next() {
        let second = Duration::from_secs(1);
        let mut live = Live::new(5);
        assert!(live.due(5, 1000, Duration::ZERO) && !live.due(6, 1000, second));
        (live.spent, live.latest) = (second, second);
        assert!(!live.due(10, 1000, 199 * second) && live.due(10, 1000, 200 * second));
        assert!(live.due(1000, 1000, second), "the last step is shown");
        assert!(!Live::new(0).due(1000, 1000, Duration::MAX));
    }
}
