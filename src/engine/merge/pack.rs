//! From a result back to a layer of a file: as many directions as asked for, and what leaving the others out costs.

use std::collections::BTreeMap;

use faer::{Mat, MatRef};

use crate::engine::field::{Field, Kind, Settings};
use crate::engine::io::lora_file::LoraLayer;
use crate::engine::merge::Merged;
use crate::engine::merge::note::shares;
use crate::engine::merge::terms::{Term, file_shapes};
use crate::engine::spectrum::{LowRank, Svd};

/// Directions weaker than this share of the strongest are lost in a file's rounding anyway.
const ROUNDING: f64 = 1e-7;

pub const RANK: Field = Field {
    name: "rank",
    title: "Rank",
    help: "Most directions a layer of the result may have; fewer make a smaller file. 0: as many as the adapters have together",
    unit: "",
    default: "0",
    kind: Kind::Integer { min: 0, max: 4096 },
};

pub const KEEP: Field = Field {
    name: "keep",
    title: "Keep",
    help: "Each layer takes the fewest directions that hold this share of its energy; 1 leaves none out that rank allows",
    unit: "",
    default: "0.99",
    kind: Kind::Number { min: 0.01, max: 1.0 },
};

/// How small a result is to be.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    rank: usize,
    keep: f64,
}

impl Limit {
    /// What has no weight stays out, nothing else.
    pub const NONE: Self = Self { rank: usize::MAX, keep: 1.0 };

    /// Of a method with the fields [`RANK`] and [`KEEP`].
    pub fn of(settings: &Settings) -> Self {
        Self { rank: settings.integer("rank"), keep: settings.number("keep") }
    }

    /// The most directions a layer of these terms may have.
    pub fn most(self, terms: &[Term<'_>]) -> usize {
        if self.rank == 0 { terms.iter().map(|term| term.layer.rank).sum() } else { self.rank }
    }
}

/// A layer of the result, with the energies `‖ΔW‖²` before it was cut and of what was cut off.
#[derive(Clone, Debug)]
pub struct Packed {
    pub layer: LoraLayer,
    pub energy: f64,
    pub dropped: f64,
}

/// The strongest directions of a result whose whole energy is `energy`. `svd` may hold its leading directions only.
pub fn pack(svd: &Svd, energy: f64, limit: Limit, terms: &[Term<'_>]) -> Packed {
    let strongest = svd.s.first().copied().unwrap_or(0.0);
    let mut kept = 0.0;
    let k = svd
        .s
        .iter()
        .take(limit.most(terms))
        .take_while(|&&s| {
            let wanted = s > ROUNDING * strongest && (limit.keep >= 1.0 || kept < limit.keep * energy);
            kept += if wanted { s * s } else { 0.0 };
            wanted
        })
        .count();
    // A layer that nothing is left of stays in the file: readers expect at least one direction.
    let factors = match k {
        0 => LowRank::of(Mat::zeros(svd.u.nrows(), 1), Mat::zeros(1, svd.v.nrows())),
        k => svd.truncated(k),
    };
    let rank = factors.shape().rank;
    let row_major = |matrix: MatRef<'_, f64>| {
        matrix.row_iter().flat_map(|row| row.iter().map(|&x| x as f32).collect::<Vec<_>>()).collect()
    };
    let (down_shape, up_shape) = file_shapes(terms, rank);
    let (down, up) = (row_major(factors.down()), row_major(factors.up()));
    let layer = LoraLayer { down, up, rank, alpha: rank as f32, down_shape, up_shape };
    Packed { layer, energy, dropped: (energy - kept).max(0.0) }
}

/// All layers, with what was dropped in each and in all.
pub fn merged(packed: BTreeMap<String, Packed>) -> Merged {
    let energies = packed.iter().map(|(module, packed)| (module.clone(), [packed.dropped, packed.energy]));
    let notes = shares("dropped", "Energy dropped to keep the file small", energies);
    let layers = packed.into_iter().map(|(module, packed)| (module, packed.layer)).collect();
    Merged { layers, notes, ..Merged::default() }
}
