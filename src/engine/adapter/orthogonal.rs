//! Orthogonal Adaptation: each concept reads its own columns of one shared orthonormal basis and trains only the write
//! side (Po et al. 2024, arXiv 2312.02432). Two concepts in different slots have `ΔWᵢ·ΔWⱼᵀ = 0` exactly.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::basis::{self, Basis};
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "orthogonal",
    title: "Orthogonal Adaptation",
    paper: "Po et al., CVPR 2024, arXiv 2312.02432",
    help: "Each concept gets a subspace of its own, so that concepts trained apart can be summed",
    fields: &[
        Field {
            help: "How many directions each layer may change; at most the project's block. 0 means the whole block",
            default: "0",
            kind: Kind::Integer { min: 0, max: 1024 },
            ..RANK
        },
        ALPHA,
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
    count: "rank·o",
    file: FileKind::Lora,
    gradient: None,
    rate: 1.0,
    takes_slot: true,
    build,
};

struct Orthogonal {
    basis: Basis,
    slot: usize,
    rank: Rank,
    /// The slot's rows for each width met so far: making them takes seconds where layers are wide.
    rows: Mutex<BTreeMap<usize, Vec<f32>>>,
}

fn build(settings: &Settings, context: &Context) -> Result<Box<dyn Adapter>> {
    let rank = match settings.integer("rank") {
        0 => context.block,
        rank => rank,
    };
    let basis = Basis {
        kind: settings.text("basis").parse()?,
        version: basis::VERSION,
        seed: settings.integer("basis_seed") as u64,
        block: context.block,
    };
    let rank = Rank::new(rank, settings.number("alpha") as f32);
    Ok(Box::new(Orthogonal { basis, slot: context.slot, rank, rows: Mutex::default() }))
}

impl Adapter for Orthogonal {
    /// `down` = the slot's rows of the basis of this width, frozen; `up = 0`.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (width, rank) = (spot.layer.input(), self.rank.rank);
        let mut known = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = match known.get(&width) {
            Some(rows) => rows.clone(),
            None => known.entry(width).or_insert(self.basis.rows(width, self.slot, rank)?).clone(),
        };
        Ok(vec![Start::frozen("lora_down", [rank, width], rows), Start::zeros("lora_up", [spot.layer.out, rank])])
    }

    fn change(&self, t: &[Tensor<2>], _: &Site<'_>) -> Vec<Change> {
        let [down, up] = t else { unreachable!("two tensors began") };
        vec![self.rank.change(down, up)]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = t else { unreachable!("two tensors began") };
        Some(self.rank.pair(down, up))
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = t else { unreachable!("two tensors began") };
        self.rank.store(down, up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.rank.rank * layer.out
    }

    fn basis(&self) -> Option<(Basis, usize)> {
        Some((self.basis, self.slot))
    }
}
