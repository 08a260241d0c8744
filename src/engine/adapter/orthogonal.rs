//! Orthogonal Adaptation: each concept reads its own columns of one shared orthonormal basis and trains only the write
//! side (Po et al. 2024, arXiv 2312.02432). Two concepts in different slots have `ΔWᵢ·ΔWⱼᵀ = 0` exactly.

use crate::engine::Result;
use crate::engine::adapter::basis::{self, Basis};
use crate::engine::adapter::{Adapter, Context, Factors, Method};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::Layer;
use crate::engine::random::Philox;

pub const METHOD: Method = Method {
    name: "orthogonal",
    title: "Orthogonal Adaptation",
    paper: "Po et al., CVPR 2024, arXiv 2312.02432",
    help: "Each concept gets a subspace of its own, so that concepts trained apart can be summed",
    fields: &[
        Field {
            name: "rank",
            title: "Rank",
            help: "How many directions each layer may change; at most the project's block. 0 means the whole block",
            unit: "",
            default: "0",
            kind: Kind::Integer { min: 0, max: 1024 },
        },
        Field {
            name: "alpha",
            title: "Alpha",
            help: "Strength of the change: the factors' product is scaled by alpha / rank; 0 means the rank itself",
            unit: "",
            default: "0",
            kind: Kind::Number { min: 0.0, max: 4096.0 },
        },
        Field {
            name: "basis",
            title: "Basis",
            help: "slots: disjoint columns, exactly orthogonal. random: random columns, as in the paper. gaussian: orthogonal only on average",
            unit: "",
            default: "slots",
            kind: Kind::Choice(&["slots", "random", "gaussian"]),
        },
        Field {
            name: "basis_seed",
            title: "Basis seed",
            help: "People who share adapters must share this number",
            unit: "",
            default: "0",
            kind: Kind::Integer { min: 0, max: i64::MAX },
        },
    ],
    takes_slot: true,
    build,
};

struct Orthogonal {
    basis: Basis,
    slot: usize,
    rank: usize,
    alpha: f32,
}

fn build(settings: &Settings, context: &Context) -> Result<Box<dyn Adapter>> {
    let rank = match settings.integer("rank") {
        0 => context.block,
        rank => rank,
    };
    let alpha = match settings.number("alpha") as f32 {
        0.0 => rank as f32,
        alpha => alpha,
    };
    let basis = Basis {
        kind: settings.text("basis").parse()?,
        version: basis::VERSION,
        seed: settings.integer("basis_seed") as u64,
        block: context.block,
    };
    Ok(Box::new(Orthogonal { basis, slot: context.slot, rank, alpha }))
}

impl Adapter for Orthogonal {
    /// `down` = the slot's rows of the basis of this width, frozen; `up = 0`.
    fn init(&self, layer: &Layer, _: &Philox) -> Result<Factors> {
        let down = self.basis.rows(layer.input(), self.slot, self.rank)?;
        Ok(Factors {
            down,
            up: vec![0.0; layer.out * self.rank],
            rank: self.rank,
            alpha: self.alpha,
            train_down: false,
        })
    }

    fn basis(&self) -> Option<(Basis, usize)> {
        Some((self.basis, self.slot))
    }
}
