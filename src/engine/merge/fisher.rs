//! Fisher merging: each weight follows the adapter it matters most to (Matena & Raffel 2022, arXiv 2111.09832).
//!
//! `ΔW = Σ F̂ₜ ∘ wₜΔWₜ / Σ F̂ₜ` with `F̂ₜ = Fₜ/rms(Fₜ) + floor` and `Fₜ = E[(∂L/∂W)²]` over the numbers of ΔW itself, so
//! the split into factors does not matter. A denoiser has no class posterior: L is its training loss, the usual stand-in.

use std::collections::BTreeMap;

use faer::Mat;

use crate::engine::event::Watch;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::merge::pack::{self, Limit, pack};
use crate::engine::merge::terms::each_layer;
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise, Question};
use crate::engine::spectrum::leading;
use crate::engine::{Error, Result};

pub const METHOD: Method = Method {
    name: "fisher",
    title: "Weigh by pictures",
    paper: "Fisher merging: Matena & Raffel 2022, arXiv 2111.09832",
    help: "Looks at pictures of each concept to find the weights it depends on, and lets each weight follow the adapter that needs it. Measured by the squared gradient of the denoising loss; untried in print on image models",
    fields: &[
        Field {
            name: "draws",
            title: "Noises",
            help: "How many noises each picture is looked at under; more measure better and take longer",
            unit: "noises",
            default: "4",
            kind: Kind::Integer { min: 1, max: 1000 },
        },
        Field {
            name: "seed",
            title: "Seed",
            help: "Which noises these are",
            unit: "",
            default: "0",
            kind: Kind::Integer { min: 0, max: i64::MAX },
        },
        pack::RANK,
        pack::KEEP,
    ],
    needs: Needs::ModelAndPictures,
    promises: &[Promise::AnyOrder, Promise::CopiesCountOnce, Promise::AloneUnchanged],
    run,
};

/// Added to `F/rms(F)`, so that a weight nobody depends on is averaged instead of 0/0.
const FLOOR: f64 = 1e-6;

fn run(inputs: &Inputs<'_>, settings: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let limit = Limit::of(settings);
    let evidence = inputs.evidence.ok_or_else(|| {
        Error::usage(
            "This merge looks at pictures, and none were given",
            "Give the model and a folder for each adapter",
        )
    })?;
    let (draws, seed) = (settings.integer("draws"), settings.integer("seed") as u64);
    // Pictures take minutes: what cannot be merged is told before.
    each_layer(inputs.sources, watch, |_, terms| terms.iter().try_for_each(|term| term.unit().map(drop)))?;
    let mut importance: BTreeMap<usize, BTreeMap<String, Vec<f32>>> = BTreeMap::new();
    for (source, of) in inputs.sources.iter().enumerate().filter(|(_, source)| !source.is_silent()) {
        let mut found = (evidence.importance)(Question { source, draws, seed }, watch)?;
        normalise(&mut found).map_err(|e| e.at(&of.file.path))?;
        importance.insert(source, found);
    }
    let packed = each_layer(inputs.sources, watch, |module, terms| {
        let (out, input) = (terms[0].layer.out(), terms[0].layer.input());
        let (mut weighted, mut total) = (Mat::<f64>::zeros(out, input), Mat::<f64>::zeros(out, input));
        for term in terms {
            let f = importance[&term.source].get(module).filter(|f| f.len() == out * input).ok_or_else(|| {
                Error::new("The pictures say nothing about a layer", "Choose the model the adapters were trained on")
            })?;
            let delta = term.delta()?.dense();
            for j in 0..input {
                for i in 0..out {
                    let f = f64::from(f[i * input + j]) + FLOOR;
                    weighted[(i, j)] += f * delta[(i, j)];
                    total[(i, j)] += f;
                }
            }
        }
        let merged = Mat::from_fn(out, input, |i, j| weighted[(i, j)] / total[(i, j)]);
        let svd = leading(merged.as_ref(), limit.most(terms))?;
        Ok(pack(&svd, merged.squared_norm_l2(), limit, terms))
    })?;
    Ok(pack::merged(packed))
}

/// `F/rms(F)` over all layers: how large the loss is must not decide between adapters.
fn normalise(importance: &mut BTreeMap<String, Vec<f32>>) -> Result<()> {
    let values = || importance.values().flatten().map(|&f| f64::from(f));
    let rms = (values().map(|f| f * f).sum::<f64>() / values().count().max(1) as f64).sqrt();
    if !(rms.is_finite() && rms > 0.0) {
        return Err(Error::new(
            format!("The pictures do not say which weights matter (the measure is {rms})"),
            "Use pictures of the concept the adapter was trained on, and the model it was trained on",
        ));
    }
    importance.values_mut().flatten().for_each(|f| *f = (f64::from(*f) / rms) as f32);
    Ok(())
}
