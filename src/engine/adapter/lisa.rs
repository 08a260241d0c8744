//! LISA: no adapter. Whole layers train, a few at a time, drawn anew every K steps; the file is the difference
//! (Pan et al. 2024, arXiv 2403.17919; for diffusion as in LMFlow's `experimental/LISA-diffusion`: single tensors are
//! drawn, the first and the last are always on, and a tensor that leaves drops its optimiser state).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Change, Layer, Site, Weight};
use crate::engine::random::Philox;

pub const METHOD: Method = Method {
    name: "lisa",
    title: "LISA",
    paper: "Pan et al. 2024, arXiv 2403.17919",
    help: "Trains whole layers, a few at a time: as free as full training with a fraction of its optimiser's memory; the file is as large as the layers",
    fields: &[
        Field {
            name: "awake",
            title: "Layers at a time",
            help: "Drawn anew each time; the first and the last layer always train besides",
            unit: "layers",
            default: "8",
            kind: Kind::Integer { min: 1, max: 10_000 },
        },
        Field {
            name: "period",
            title: "Period",
            help: "Steps until others are drawn",
            unit: "steps",
            default: "20",
            kind: Kind::Integer { min: 1, max: 1_000_000 },
        },
    ],
    count: "i·o where it is drawn",
    file: FileKind::Difference,
    gradient: None,
    rate: 0.5,
    takes_slot: false,
    build,
};

/// Its own numbers among those of a run.
const DRAW: u32 = u32::from_be_bytes(*b"lisa");

struct Lisa {
    awake: usize,
    period: usize,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Lisa { awake: settings.integer("awake"), period: settings.integer("period") }))
}

impl Adapter for Lisa {
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        Ok(vec![Start::zeros("diff", [spot.layer.out, spot.layer.input()])])
    }

    fn change(&self, t: &[Tensor<2>], _: &Site<'_>) -> Vec<Change> {
        vec![Change::Weight(t[0].clone())]
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let difference = read(t[0].clone())?;
        Ok(if difference.iter().all(|x| *x == 0.0) { Stored::Nothing } else { Stored::Difference(difference) })
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        layer.out * layer.input()
    }

    fn awake(&self, step: usize, layers: usize, random: &Philox) -> Option<Vec<usize>> {
        let last = layers.saturating_sub(1);
        let window = u32::try_from(step / self.period).unwrap_or(u32::MAX);
        let middle = random.stream(DRAW).permutation(window, last.saturating_sub(1));
        Some([0, last].into_iter().chain(middle.into_iter().take(self.awake).map(|i| i + 1)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_layer_gets_its_turn() {
        let (lisa, random, layers) = (Lisa { awake: 3, period: 5 }, Philox::new(1), 12);
        let drawn = |step| lisa.awake(step, layers, &random).unwrap();
        let mut turns = vec![0; layers];
        for window in 0..400 {
            let now = drawn(5 * window);
            assert_eq!(now, drawn(5 * window + 4), "the same within a period");
            assert_eq!(now.iter().collect::<BTreeSet<_>>().len(), 5, "three, the first and the last");
            for layer in now {
                turns[layer] += 1;
            }
        }
        assert_eq!((turns[0], turns[11]), (400, 400));
        // 3 of 10 in the middle: 120 turns, give or take four deviations of 9.
        assert!(turns[1..11].iter().all(|turns| (84..=156).contains(turns)), "{turns:?}");
        // A model with fewer layers than are to be drawn.
        assert_eq!(lisa.awake(0, 1, &random).unwrap().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([0]));
    }
}
