//! The singular values of all trained layers while training goes on.
//!
//! Only low-rank pairs are looked at: at the usual ranks all of a model's take milliseconds. The spectrum of a full
//! difference (`dora`, `oft`, `lisa`) takes longer than the steps it would watch, and `triptych spectrum` measures it when
//! the file is there; a method whose change depends on the picture (`mola`) has none.

use std::time::{Duration, Instant};

use crate::engine::Result;
use crate::engine::event::{SingularValues, Spectrum};
use crate::engine::model::StableDiffusion;
use crate::engine::spectrum::singular_values;
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

fn spectrum(step: usize, trainee: &Trainee, model: &StableDiffusion) -> Result<Option<Spectrum>> {
    let values = trainee.values();
    let pair = |layer| {
        let pair = trainee.adapter.pair(&Trainee::tensors(layer, &values), model.weight(layer.id))?;
        Some((model.layer(layer.id).module(), pair))
    };
    let (names, pairs): (Vec<_>, Vec<_>) = trainee.layers.iter().filter_map(pair).unzip();
    let layers: Vec<_> = names
        .into_iter()
        .zip(singular_values(pairs)?)
        .filter(|(_, values)| !values.is_empty())
        .map(|(layer, values)| SingularValues { layer, values })
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
