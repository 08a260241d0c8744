//! TIES on the products: per layer and number trim, elect a sign, average who agrees (Yadav et al. 2023,
//! arXiv 2306.01708). It works on ΔW itself, never on the factors, whose split is arbitrary; the result is no longer of
//! low rank and is brought back to it.

use faer::MatRef;

use crate::engine::Result;
use crate::engine::event::Watch;
use crate::engine::field::Settings;
use crate::engine::merge::elect::{self, Elected, Rules};
use crate::engine::merge::pack::{self, Limit, pack};
use crate::engine::merge::terms::{Term, each_layer};
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise};
use crate::engine::spectrum::leading;

pub const METHOD: Method = Method {
    name: "ties",
    title: "Resolve conflicts by vote",
    paper: "TIES: Yadav et al. 2023, arXiv 2306.01708",
    help: "For each single weight the adapters vote on its direction and the losers are silent there. Helps where the conflict share is high; published on classifiers and language models only",
    fields: &[elect::DENSITY, elect::SIGN, elect::LAMBDA, pack::RANK, pack::KEEP],
    needs: Needs::Nothing,
    promises: &[Promise::AnyOrder, Promise::CopiesCountOnce],
    run,
};

fn run(inputs: &Inputs<'_>, settings: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let (rules, limit) = (Rules::of(settings), Limit::of(settings));
    let layers = each_layer(inputs.sources, watch, |_, terms| {
        let votes = |term: &Term<'_>| Ok((f64::from(term.w), by_columns(term.unit()?.dense().as_ref())));
        let Elected { values, votes, lost } = rules.elect(terms.iter().map(votes).collect::<Result<_>>()?);
        let merged = MatRef::from_column_major_slice(&values, terms[0].layer.out(), terms[0].layer.input());
        let svd = leading(merged, limit.most(terms))?;
        Ok((pack(&svd, merged.squared_norm_l2(), limit, terms), [lost, votes]))
    })?;
    let conflicts = elect::conflicts(layers.iter().map(|(module, (_, votes))| (module.clone(), *votes)));
    let mut merged = pack::merged(layers.into_iter().map(|(module, (packed, _))| (module, packed)).collect());
    merged.notes.extend(conflicts);
    Ok(merged)
}

fn by_columns(delta: MatRef<'_, f64>) -> Vec<f64> {
    delta.col_iter().flat_map(|column| column.iter().copied()).collect()
}
