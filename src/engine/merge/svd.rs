//! The exact sum brought back to few directions: `Σₜ wₜ·ΔWₜ ≈ U_k S_k V_kᵀ`, the nearest of that rank (Eckart & Young,
//! *Psychometrika* 1, 1936). One adapter alone is shrunk.

use crate::engine::Result;
use crate::engine::event::Watch;
use crate::engine::field::Settings;
use crate::engine::merge::pack::{self, Limit, pack};
use crate::engine::merge::terms::{Term, each_layer};
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise};
use crate::engine::spectrum::LowRank;

pub const METHOD: Method = Method {
    name: "svd",
    title: "Small sum",
    paper: "Eckart & Young 1936, Psychometrika 1; task arithmetic: Ilharco et al. 2023, arXiv 2212.04089",
    help: "Adds the adapters, then keeps only the strongest directions of each layer: a smaller file at a stated loss. One adapter alone is shrunk",
    fields: &[pack::RANK, pack::KEEP],
    needs: Needs::Nothing,
    promises: &[
        Promise::Linear,
        Promise::AnyOrder,
        Promise::AloneUnchanged,
        Promise::Rotates,
        Promise::AddsTheUnrelated,
        Promise::ReadsWithin,
    ],
    run,
};

fn run(inputs: &Inputs<'_>, settings: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let limit = Limit::of(settings);
    let packed = each_layer(inputs.sources, watch, |_, terms| {
        let sum = LowRank::stack(&terms.iter().map(Term::delta).collect::<Result<Vec<_>>>()?);
        let svd = sum.svd()?;
        Ok(pack(&svd, svd.s.iter().map(|s| s * s).sum(), limit, terms))
    })?;
    Ok(pack::merged(packed))
}
