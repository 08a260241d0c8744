//! The exact weighted sum `ΔW = Σₜ wₜ·ΔWₜ` as one adapter (merging by concatenation; task arithmetic, Ilharco et al.
//! 2023, arXiv 2212.04089). Products are added, never factors: `(Σ up)(Σ down)` would have cross terms.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;

use crate::engine::field::{Field, Kind, Settings};
use crate::engine::io::lora_file::LoraLayer;
use crate::engine::merge::{Method, Source};
use crate::engine::spectrum::{LowRank, Shape};
use crate::engine::{Error, Result};

pub const METHOD: Method = Method {
    name: "sum",
    title: "Exact sum",
    paper: "Task arithmetic: Ilharco et al. 2023, arXiv 2212.04089",
    help: "Adds the adapters exactly; the file's rank is the sum of their ranks. Orthogonal adapters keep apart in it",
    fields: &[Field {
        name: "normalise",
        title: "Keep strength",
        help: "Sums of many adapters overshoot. whole: one factor brings the total to the adapters' mean strength. layer: a factor for each layer. off: the plain sum",
        unit: "",
        default: "off",
        kind: Kind::Choice(&["off", "whole", "layer"]),
    }],
    run,
};

/// Deltas that cancel leave rounding: less than this share of their mean strength is not brought back to it.
const CANCELLED: f64 = 1e-5;

/// One adapter's share of a layer: `c = w·alpha/rank`.
struct Term<'a> {
    layer: &'a LoraLayer,
    w: f32,
    path: &'a Path,
}

fn run(sources: &[Source], settings: &Settings) -> Result<BTreeMap<String, LoraLayer>> {
    let modules: BTreeSet<&String> = sources.iter().flat_map(|source| source.file.layers.keys()).collect();
    let merged: Vec<(String, LoraLayer, f64, f64)> = modules
        .into_par_iter()
        .map(|module| {
            let terms: Vec<Term<'_>> = sources
                .iter()
                .filter_map(|source| {
                    let Source { file, strength } = source;
                    Some(Term { layer: file.layers.get(module)?, w: strength.of(module), path: &file.path })
                })
                .filter(|term| term.w != 0.0)
                .collect();
            let Some(first) = terms.first() else { return Ok(None) };
            let size = |layer: &LoraLayer| (layer.out(), inputs(layer).to_vec());
            if terms.iter().any(|term| size(term.layer) != size(first.layer)) {
                return Err(Error::new(
                    format!("The adapters are for different models: layer {module} has another size in each"),
                    "Merge adapters of one model family only",
                ));
            }
            let layer = concatenated(&terms);
            let (target, norm) =
                norms(&terms, &layer).map_err(|e| Error { what: format!("{} (layer {module})", e.what), ..e })?;
            Ok(Some((module.clone(), layer, target, norm)))
        })
        .filter_map(Result::transpose)
        .collect::<Result<_>>()?;
    if merged.is_empty() {
        return Err(Error::usage("Every strength is 0, so nothing is left to merge", "Raise at least one strength"));
    }
    let ratio = |target: f64, norm: f64| if norm > CANCELLED * target { target / norm } else { 1.0 };
    let whole = {
        let sum = |value: fn(&(String, LoraLayer, f64, f64)) -> f64| {
            merged.iter().map(|row| value(row).powi(2)).sum::<f64>().sqrt()
        };
        ratio(sum(|row| row.2), sum(|row| row.3))
    };
    let normalise = settings.text("normalise").to_owned();
    Ok(merged
        .into_iter()
        .map(|(module, mut layer, target, norm)| {
            let g = match normalise.as_str() {
                "whole" => whole,
                "layer" => ratio(target, norm),
                _ => 1.0,
            };
            if (g - 1.0).abs() > f64::EPSILON {
                layer.up.iter_mut().for_each(|x| *x = (f64::from(*x) * g) as f32);
            }
            (module, layer)
        })
        .collect())
}

/// Shape of the inputs. Tools disagree on whether `proj_in` is a 1×1 convolution or a linear layer: the same here.
fn inputs(layer: &LoraLayer) -> &[usize] {
    match &layer.down_shape[1..] {
        [channels, 1, 1] => std::slice::from_ref(channels),
        shape => shape,
    }
}

/// Rows of all `down`, columns of all `c·up`, alpha = rank. `√|c|` goes to each side, which keeps f16 in range.
fn concatenated(terms: &[Term<'_>]) -> LoraLayer {
    let (out, rank) = (terms[0].layer.out(), terms.iter().map(|term| term.layer.rank).sum::<usize>());
    let mut down = Vec::with_capacity(rank * terms[0].layer.input());
    let mut up = vec![0.0; out * rank];
    let mut column = 0;
    for Term { layer, w, .. } in terms {
        let c = w * layer.scale();
        let (read, write) = (c.abs().sqrt(), c.abs().sqrt() * c.signum());
        down.extend(layer.down.iter().map(|x| x * read));
        for (row, values) in layer.up.chunks_exact(layer.rank).enumerate() {
            for (k, x) in values.iter().enumerate() {
                up[row * rank + column + k] = x * write;
            }
        }
        column += layer.rank;
    }
    // The convolution's shape where there is one: every reader takes it.
    let like = terms.iter().map(|term| term.layer).find(|layer| layer.down_shape.len() == 4).unwrap_or(terms[0].layer);
    let (mut down_shape, mut up_shape) = (like.down_shape.clone(), like.up_shape.clone());
    (down_shape[0], up_shape[1]) = (rank, rank);
    LoraLayer { down, up, rank, alpha: rank as f32, down_shape, up_shape }
}

/// `(Σ w²‖ΔWₜ‖ / Σ|w|, ‖Σ wΔWₜ‖)` of one layer: what the sum's norm should be to keep strength, and what it is. The
/// reference follows the faders, so one adapter alone at `w` stays at `w`.
fn norms(terms: &[Term<'_>], merged: &LoraLayer) -> Result<(f64, f64)> {
    let norm = |layer: &LoraLayer| -> Result<f64> {
        let shape = Shape { out: layer.out(), rank: layer.rank, input: layer.input() };
        Ok(LowRank::new(&layer.up, &layer.down, shape, f64::from(layer.scale()))?.energy().sqrt())
    };
    let (mut weighted, mut total) = (0.0, 0.0);
    for Term { layer, w, path } in terms {
        let w = f64::from(*w);
        weighted += w * w * norm(layer).map_err(|e| e.at(path))?;
        total += w.abs();
    }
    Ok((weighted / total, norm(merged)?))
}
