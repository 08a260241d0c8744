//! OPCM: adapters join an album one by one (Tang et al. 2025, arXiv 2501.09522, as `fusion_bench` runs it).
//!
//! Each arrival gives up what the album says already, `clean = τ − U_r(mask ∘ U_rᵀ τ V_r)V_rᵀ` with `τ_m = U S Vᵀ`, then
//! `τ_m ← (λ τ_m + clean)/λ'` where λ' brings the album back to the arrivals' mean norm. The mask is the diagonal up to
//! the numerical rank r and the block of the strongest directions that hold at most `alpha` of ΣS. Removing the *whole*
//! diagonal, as the dense code does, would depend on arbitrary null vectors.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::engine::event::{Event, Watch};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::io::metadata::ALBUM;
use crate::engine::merge::note::{About, Note};
use crate::engine::merge::pack::{Limit, pack};
use crate::engine::merge::terms::each_layer;
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise, Source};
use crate::engine::spectrum::{LowRank, Svd};
use crate::engine::{Error, Result};

pub const METHOD: Method = Method {
    name: "opcm",
    title: "Album",
    paper: "OPCM: Tang et al. 2025, arXiv 2501.09522",
    help: "Adapters join one by one, each without what the album says already; the strength stays that of one adapter. A finished album, given first, takes further adapters. The order counts; published on classifiers only",
    fields: &[Field {
        name: "alpha",
        title: "Protected share",
        help: "Share of the album's strength, from its strongest directions on, that later adapters may not change",
        unit: "",
        default: "0.5",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    }],
    needs: Needs::Nothing,
    promises: &[
        Promise::CopiesCountOnce,
        Promise::AloneUnchanged,
        Promise::Rotates,
        Promise::AddsTheUnrelated,
        Promise::ReadsWithin,
    ],
    run,
};

/// What must be known to go on, beside the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Album {
    lambda: f64,
    /// `‖τ‖` of every arrival.
    norms: Vec<f64>,
}

fn run(inputs: &Inputs<'_>, settings: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let alpha = settings.number("alpha");
    let deltas = each_layer(inputs.sources, watch, |_, terms| {
        terms.iter().map(|term| Ok((term.source, term.delta()?))).collect::<Result<BTreeMap<_, _>>>()
    })?;
    if let Some(late) = inputs.sources.iter().skip(1).find(|source| source.file.metadata.contains_key(ALBUM)) {
        let advice = "Give the album first, or merge it with the method sum";
        return Err(Error::usage("An album can take adapters, but cannot join another", advice).at(&late.file.path));
    }
    let mut album: Option<Album> = None;
    let mut weights: BTreeMap<&String, Svd> = BTreeMap::new();
    let mut notes = Vec::new();
    for (t, source) in inputs.sources.iter().enumerate() {
        let arrival: BTreeMap<&String, &LowRank> =
            deltas.iter().filter_map(|(module, of)| Some((module, of.get(&t)?))).collect();
        let norm = arrival.values().map(|delta| delta.energy()).sum::<f64>().sqrt();
        // Who says nothing has not arrived, and must not weaken the mean.
        if norm == 0.0 {
            continue;
        }
        let state = match album.take() {
            None => {
                weights = arrival.par_iter().map(|(m, delta)| Ok((*m, delta.svd()?))).collect::<Result<_>>()?;
                finished(source)?.unwrap_or(Album { lambda: 1.0, norms: vec![norm] })
            }
            Some(Album { lambda, mut norms }) => {
                norms.push(norm);
                let kept;
                (weights, kept) = join(&weights, lambda, &arrival, alpha)?;
                notes.push(Note { name: "kept", what: "Kept on joining", about: About::Source(t), share: kept / norm });
                let mean = norms.iter().sum::<f64>() / norms.len() as f64;
                let lambda = weights.values().flat_map(|svd| &svd.s).map(|s| s * s).sum::<f64>().sqrt() / mean;
                weights.values_mut().flat_map(|svd| &mut svd.s).for_each(|s| *s /= lambda);
                Album { lambda, norms }
            }
        };
        album = Some(state);
        watch(Event::note(match t {
            0 => "The album is open".into(),
            t => format!("Adapter {} has joined", t + 1),
        }))?;
    }
    let layers = each_layer(inputs.sources, watch, |module, terms| match weights.get(&module.to_owned()) {
        Some(svd) => Ok(pack(svd, 0.0, Limit::NONE, terms).layer),
        // Nobody said anything here.
        None => Ok(pack(&terms[0].unit()?.svd()?, 0.0, Limit::NONE, terms).layer),
    })?;
    let state = album.map(|album| (ALBUM.to_owned(), json!(album).to_string()));
    Ok(Merged { layers, notes, metadata: state.into_iter().collect() })
}

/// `λ τ_m + clean` of every layer, and `‖clean‖`.
fn join<'a>(
    weights: &BTreeMap<&'a String, Svd>,
    lambda: f64,
    arrival: &BTreeMap<&'a String, &LowRank>,
    alpha: f64,
) -> Result<(BTreeMap<&'a String, Svd>, f64)> {
    let modules: BTreeSet<&String> = weights.keys().chain(arrival.keys()).copied().collect();
    let joined = modules
        .into_par_iter()
        .map(|module| {
            let clean = match (weights.get(module), arrival.get(module)) {
                (Some(album), Some(tau)) => Some(clean(tau, album, alpha)),
                (_, tau) => tau.map(|tau| (*tau).clone()),
            };
            let energy = clean.as_ref().map_or(0.0, LowRank::energy);
            let album = weights.get(module).map(|svd| svd.truncated(svd.s.len()).scaled(lambda));
            let sum = LowRank::stack(&album.into_iter().chain(clean).collect::<Vec<_>>());
            Ok((module, sum.svd()?, energy))
        })
        .collect::<Result<Vec<_>>>()?;
    let kept = joined.iter().map(|(.., energy)| energy).sum::<f64>().sqrt();
    Ok((joined.into_iter().map(|(module, svd, _)| (module, svd)).collect(), kept))
}

/// The arrival without what the album protects.
fn clean(tau: &LowRank, album: &Svd, alpha: f64) -> LowRank {
    let r = album.rank();
    let (u, v) = (album.write_basis(), album.read_basis());
    let total: f64 = album.s.iter().sum();
    // The first index at which the strength so far exceeds alpha; where none does, nothing is protected.
    let mut so_far = 0.0;
    let split = album.s[..r].iter().position(|s| {
        so_far += s;
        so_far > alpha * total
    });
    let split = split.unwrap_or(0);
    let seen = u.transpose() * tau.up() * (tau.down() * v);
    let known =
        Mat::from_fn(r, r, |i, j| if i == j || (i < split && j < split) { -tau.scale() * seen[(i, j)] } else { 0.0 });
    LowRank::stack(&[tau.clone(), LowRank::of(u * known, v.transpose().to_owned())])
}

/// The state of an album that is given first, at the strength it is given.
fn finished(source: &Source) -> Result<Option<Album>> {
    let Some(text) = source.file.metadata.get(ALBUM) else { return Ok(None) };
    let mut album: Album = serde_json::from_str(text).map_err(|e| {
        Error::new(format!("The album's state cannot be read ({e})"), "Merge its adapters again").at(&source.file.path)
    })?;
    let mut strengths = source.file.modules().into_iter().map(|module| source.strength.of(module));
    let w = strengths.next().unwrap_or(1.0);
    if strengths.any(|other| (other - w).abs() > f32::EPSILON * w.abs()) {
        return Err(Error::usage(
            "An album can go on only at one strength for all of it",
            "Give it one strength, or merge it with the method sum",
        )
        .at(&source.file.path));
    }
    album.norms.iter_mut().for_each(|norm| *norm *= f64::from(w.abs()));
    Ok(Some(album))
}
