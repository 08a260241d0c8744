//! How much two adapters get in each other's way, per layer and in all, and the words for it.
//!
//! Cosine and energy see whether two deltas push the same way; the subspace overlaps see collisions the cosine cannot
//! (same room, other direction); `‖ΔWᵢ ΔWⱼᵀ‖ = 0` is the condition of Orthogonal Adaptation (Po et al., CVPR 2024).
//! All of it speaks of weights: real inputs still excite every adapter. The bands are heuristics taken over from
//! `anima_lora`'s `merge_analysis.py`.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::{LowRank, Overlap};
use crate::engine::{Error, Result};

/// Rows stored in f16 leave up to 5e-5 of two orthogonal reads; unrelated reads leave more than 1e-2.
const READS_MEET: f64 = 1e-4;
const SAME_WAY: f64 = 0.35;
const OPPOSED: f64 = -0.15;
const ALIGNED: f64 = 0.15;
const ELEVATED_TIMES_CHANCE: f64 = 3.0;
const CROWDED_TIMES_CHANCE: f64 = 8.0;
/// In narrow layers eight times chance is more than everything; four fifths of the room is crowded at any width.
const CROWDED_SHARE: f64 = 0.8;

/// One layer that both adapters change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerOverlap {
    pub layer: String,
    /// `⟨ΔWᵢ, ΔWⱼ⟩ / (‖ΔWᵢ‖ ‖ΔWⱼ‖)`: 1 the same push, −1 the opposite one.
    pub cosine: f64,
    pub read: Overlap,
    pub write: Overlap,
    /// `‖ΔWᵢ ΔWⱼᵀ‖ / (‖ΔWᵢ‖ ‖ΔWⱼ‖)`.
    pub product: f64,
    /// `‖ΔWᵢ‖ ‖ΔWⱼ‖`: how much the layer counts in the totals.
    pub weight: f64,
}

/// Two adapters at strength 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairOverlap {
    pub verdict: Verdict,
    pub sentence: String,
    /// Over all layers, those of only one adapter included.
    pub cosine: f64,
    /// `‖ΔWᵢ + ΔWⱼ‖² / (‖ΔWᵢ‖² + ‖ΔWⱼ‖²)`: 1 unrelated, 2 the same, 0 cancelled.
    pub energy_ratio: f64,
    pub read: Overlap,
    pub write: Overlap,
    pub product_max: f64,
    /// Mean over the shared layers, weighted like the overlaps.
    pub product_mean: f64,
    pub layers: Vec<LayerOverlap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The read sides do not meet in any layer.
    LoadsExactly,
    Independent,
    /// Between independent and the three below.
    Touching,
    Crowded,
    DoublingUp,
    Cancelling,
}

/// Compares two adapters, given as layer name → delta.
pub fn overlap(first: &BTreeMap<String, LowRank>, second: &BTreeMap<String, LowRank>) -> Result<PairOverlap> {
    let shared: Vec<_> = first.iter().filter_map(|(name, a)| Some((name, a, second.get(name)?))).collect();
    let layers = shared
        .par_iter()
        .map(|(name, a, b)| {
            layer_overlap(name, a, b).map_err(|e| Error { what: format!("{} (layer {name})", e.what), ..e })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(PairOverlap::of(layers, [first, second].map(energy)))
}

/// `Σ ‖ΔW‖²` of all layers.
pub(super) fn energy(adapter: &BTreeMap<String, LowRank>) -> f64 {
    adapter.values().map(LowRank::energy).sum()
}

impl PairOverlap {
    /// From the layers that both change, and the energy of each adapter in all.
    pub(super) fn of(layers: Vec<LayerOverlap>, [energy, other_energy]: [f64; 2]) -> Self {
        let total = |value: fn(&LayerOverlap) -> f64| layers.iter().map(|l| l.weight * value(l)).sum::<f64>();
        let weight = total(|_| 1.0);
        let dot = total(|l| l.cosine);
        let cosine = share(dot, energy.sqrt() * other_energy.sqrt());
        let write = Overlap::new(share(total(|l| l.write.observed), weight), share(total(|l| l.write.chance), weight));
        let product_max = layers.iter().map(|l| l.product).fold(0.0, f64::max);

        let verdict = Verdict::of(product_max, cosine, write);
        let sentence = match verdict {
            Verdict::LoadsExactly if energy == 0.0 || other_energy == 0.0 => {
                "Loads exactly: one of the two changes nothing yet.".into()
            }
            Verdict::LoadsExactly if layers.is_empty() => "Loads exactly: they change no layer in common.".into(),
            _ => verdict.sentence(cosine, write),
        };
        Self {
            verdict,
            sentence,
            cosine,
            energy_ratio: if energy + other_energy > 0.0 { 1.0 + 2.0 * dot / (energy + other_energy) } else { 1.0 },
            read: Overlap::new(share(total(|l| l.read.observed), weight), share(total(|l| l.read.chance), weight)),
            write,
            product_max,
            product_mean: share(total(|l| l.product), weight),
            layers,
        }
    }
}

pub(super) fn layer_overlap(layer: &str, first: &LowRank, second: &LowRank) -> Result<LayerOverlap> {
    let weight = first.energy().sqrt() * second.energy().sqrt();
    let dot = first.dot(second)?;
    let (svd, other) = (first.svd()?, second.svd()?);
    Ok(LayerOverlap {
        layer: layer.to_owned(),
        cosine: share(dot, weight),
        read: Overlap::between(svd.read_basis(), other.read_basis()),
        write: Overlap::between(svd.write_basis(), other.write_basis()),
        product: share(first.product_norm(second)?, weight),
        weight,
    })
}

/// An adapter that changes nothing meets nobody: 0, not NaN.
pub(super) fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl Verdict {
    fn of(product_max: f64, cosine: f64, write: Overlap) -> Self {
        if product_max < READS_MEET {
            Self::LoadsExactly
        } else if cosine >= SAME_WAY {
            Self::DoublingUp
        } else if cosine <= OPPOSED {
            Self::Cancelling
        } else if write.times_chance >= CROWDED_TIMES_CHANCE || write.observed >= CROWDED_SHARE {
            Self::Crowded
        } else if write.times_chance >= ELEVATED_TIMES_CHANCE || cosine >= ALIGNED {
            Self::Touching
        } else {
            Self::Independent
        }
    }

    fn sentence(self, cosine: f64, write: Overlap) -> String {
        let times = write.times_chance;
        match self {
            Self::LoadsExactly => {
                "Loads exactly: they listen to directions that do not meet in any layer, so each can \
                be taken back out of the merged weights."
                    .into()
            }
            Self::Independent => format!(
                "Independent: they push in unrelated directions (cosine {cosine:.2}) and share about as much as chance \
                would ({times:.1}×)."
            ),
            Self::Touching => format!(
                "Touching: they share more than chance would ({times:.1}×, cosine {cosine:.2}); compare the merged \
                picture with each one alone."
            ),
            Self::Crowded => format!(
                "Crowded: they write into the same directions ({times:.1}× chance) without agreeing; lower one, or \
                retrain it in a slot of its own."
            ),
            Self::DoublingUp => format!(
                "Doubling up: they push the same way (cosine {cosine:.2}), so together they overshoot; lower their \
                strengths or keep one."
            ),
            Self::Cancelling => format!(
                "Cancelling: they push against each other (cosine {cosine:.2}), so each weakens the other; use one at \
                a time, or retrain one in a slot of its own."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;
    use crate::engine::random::Philox;

    const WIDTH: usize = 96;
    const RANK: usize = 4;

    type Adapter = BTreeMap<String, LowRank>;

    fn normal(seed: u64, n: usize) -> Vec<f32> {
        Philox::new(seed).normal(1, n)
    }

    fn layer(up: &[f32], down: &[f32], scale: f64) -> LowRank {
        LowRank::new(up, down, Shape { out: WIDTH, rank: RANK, input: WIDTH }, scale).unwrap()
    }

    fn random(seed: u64, scale: f64) -> LowRank {
        layer(&normal(seed, WIDTH * RANK), &normal(seed + 1, RANK * WIDTH), scale)
    }

    fn adapter<const N: usize>(layers: [(&str, LowRank); N]) -> Adapter {
        layers.map(|(name, delta)| (name.to_owned(), delta)).into()
    }

    /// Rows `[start, start + RANK)` of one orthogonal matrix, kept to 11 significant bits as an f16 file keeps them.
    fn f16_slot(start: usize) -> Vec<f32> {
        let gaussian = normal(9, WIDTH * WIDTH);
        let q = faer::MatRef::from_row_major_slice(&gaussian, WIDTH, WIDTH).map(|&x| f64::from(x)).qr().compute_Q();
        let f16 = |x: f64| f32::from_bits(((x as f32).to_bits() + 0x1000) & !0x1fff);
        (0..RANK).flat_map(|k| q.col(start + k).iter().map(|&x| f16(x)).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn disjoint_reads_load_exactly() {
        // The same write side on purpose: it must not matter.
        let up = normal(1, WIDTH * RANK);
        let (a, b) = (adapter([("x", layer(&up, &f16_slot(0), 1.0))]), adapter([("x", layer(&up, &f16_slot(4), 1.0))]));
        let pair = overlap(&a, &b).unwrap();
        assert_eq!(pair.verdict, Verdict::LoadsExactly, "{pair:?}");
        assert!(pair.product_max < READS_MEET && pair.read.observed < 1e-7 && pair.cosine.abs() < READS_MEET);
        assert!((pair.write.observed - 1.0).abs() < 1e-9 && (pair.energy_ratio - 1.0).abs() < READS_MEET);
    }

    #[test]
    fn copies_double_up_and_opposites_cancel() {
        let a = adapter([("x", random(1, 1.0)), ("y", random(3, 0.2))]);
        let same = overlap(&a, &a).unwrap();
        assert_eq!(same.verdict, Verdict::DoublingUp);
        assert!((same.cosine - 1.0).abs() < 1e-12 && (same.energy_ratio - 2.0).abs() < 1e-12);
        assert!((same.read.observed - 1.0).abs() < 1e-12 && (same.write.times_chance - 24.0).abs() < 1e-9);

        let negated = adapter([("x", random(1, -1.0)), ("y", random(3, -0.2))]);
        let opposite = overlap(&a, &negated).unwrap();
        assert_eq!(opposite.verdict, Verdict::Cancelling);
        assert!((opposite.cosine + 1.0).abs() < 1e-12 && opposite.energy_ratio.abs() < 1e-12);
    }

    #[test]
    fn strangers_are_independent_and_neighbours_crowded() {
        let [a, b] = [1, 20].map(|seed| adapter([("x", random(seed, 1.0)), ("y", random(seed + 5, 1.0))]));
        let strangers = overlap(&a, &b).unwrap();
        assert_eq!(strangers.verdict, Verdict::Independent, "{strangers:?}");
        assert!(strangers.product_max > 1e-2);

        let up = normal(1, WIDTH * RANK);
        let [a, b] = [2, 30].map(|seed| adapter([("x", layer(&up, &normal(seed, RANK * WIDTH), 1.0))]));
        let neighbours = overlap(&a, &b).unwrap();
        assert_eq!(neighbours.verdict, Verdict::Crowded, "{neighbours:?}");
        assert!(neighbours.cosine.abs() < ALIGNED);
    }

    #[test]
    fn totals_weigh_layers_by_both_norms() {
        let (a, b) = (
            adapter([("x", random(1, 1.0)), ("y", random(3, 3.0))]),
            adapter([("x", random(1, 2.0)), ("y", random(7, 0.1))]),
        );
        let pair = overlap(&a, &b).unwrap();
        let [x, y] = &pair.layers[..] else { panic!("two layers") };
        assert_eq!((x.layer.as_str(), y.layer.as_str()), ("x", "y"));
        let expected = (x.weight * x.write.observed + y.weight * y.write.observed)
            / (x.weight * x.write.chance + y.weight * y.write.chance);
        assert!((pair.write.times_chance - expected).abs() < 1e-12);

        let back = overlap(&b, &a).unwrap();
        assert!((pair.cosine - back.cosine).abs() < 1e-14 && (pair.product_mean - back.product_mean).abs() < 1e-12);
        assert!((pair.read.observed - back.read.observed).abs() < 1e-12 && pair.verdict == back.verdict);
    }

    #[test]
    fn missing_and_untrained_layers_meet_nobody() {
        let (a, b) = (adapter([("x", random(1, 1.0))]), adapter([("x", random(1, 1.0)), ("y", random(3, 1.0))]));
        let half = overlap(&a, &b).unwrap();
        assert!(half.layers.len() == 1 && half.cosine > 0.6 && half.cosine < 0.8);

        let apart = overlap(&a, &adapter([("y", random(3, 1.0))])).unwrap();
        assert_eq!(apart.sentence, "Loads exactly: they change no layer in common.");
        let untrained = overlap(&a, &adapter([("x", random(1, 0.0))])).unwrap();
        assert_eq!(untrained.sentence, "Loads exactly: one of the two changes nothing yet.");
        let empty = overlap(&Adapter::new(), &Adapter::new()).unwrap();
        assert!(empty.cosine == 0.0 && (empty.energy_ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn other_model_is_named_by_layer() {
        let narrow = LowRank::new(&[1.0; 8], &[1.0; 8], Shape { out: 8, rank: 1, input: 8 }, 1.0).unwrap();
        let error = overlap(&adapter([("mid.attn", random(1, 1.0))]), &adapter([("mid.attn", narrow)])).unwrap_err();
        assert_eq!(error.what, "One adapter changes a 96 × 96 weight, the other a 8 × 8 one (layer mid.attn)");
    }

    #[test]
    fn bands_cover_every_value() {
        let of = |cosine, times: f64| Verdict::of(1.0, cosine, Overlap::new(0.05 * times, 0.05));
        assert_eq!([-0.9, -0.15, -0.1, 0.1, 0.2, 0.35].map(|c| of(c, 1.0)), {
            use Verdict::*;
            [Cancelling, Cancelling, Independent, Independent, Touching, DoublingUp]
        });
        assert_eq!([2.9, 3.0, 8.0].map(|t| of(0.0, t)), [Verdict::Independent, Verdict::Touching, Verdict::Crowded]);
        assert_eq!(Verdict::of(1.0, 0.0, Overlap::new(0.9, 0.5)), Verdict::Crowded);
    }
}
