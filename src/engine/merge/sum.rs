//! The exact weighted sum `ΔW = Σₜ wₜ·ΔWₜ` as one adapter (merging by concatenation; task arithmetic, Ilharco et al.
//! 2023, arXiv 2212.04089). Products are added, never factors: `(Σ up)(Σ down)` would have cross terms.

use crate::engine::Result;
use crate::engine::event::Watch;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::io::lora_file::LoraLayer;
use crate::engine::merge::terms::{Term, each_layer, file_shapes};
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise};
use crate::engine::spectrum::{LowRank, Shape};

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

/// Deltas that cancel leave rounding: less than this share of their mean strength is not brought back to it.
const CANCELLED: f64 = 1e-5;

fn run(inputs: &Inputs<'_>, settings: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let summed = each_layer(inputs.sources, watch, |_, terms| {
        let layer = concatenated(terms);
        let (target, norm) = norms(terms, &layer)?;
        Ok((layer, target, norm))
    })?;
    let ratio = |target: f64, norm: f64| if norm > CANCELLED * target { target / norm } else { 1.0 };
    let whole = {
        let sum = |value: fn(&(LoraLayer, f64, f64)) -> f64| {
            summed.values().map(|row| value(row).powi(2)).sum::<f64>().sqrt()
        };
        ratio(sum(|row| row.1), sum(|row| row.2))
    };
    let normalise = settings.text("normalise");
    let layers = summed
        .into_iter()
        .map(|(module, (mut layer, target, norm))| {
            let g = match normalise {
                "whole" => whole,
                "layer" => ratio(target, norm),
                _ => 1.0,
            };
            if (g - 1.0).abs() > f64::EPSILON {
                layer.up.iter_mut().for_each(|x| *x = (f64::from(*x) * g) as f32);
            }
            (module, layer)
        })
        .collect();
    Ok(Merged { layers, ..Merged::default() })
}

/// Rows of all `down`, columns of all `c·up`, alpha = rank. `√|c|` goes to each side, which keeps f16 in range.
fn concatenated(terms: &[Term<'_>]) -> LoraLayer {
    let (out, rank) = (terms[0].layer.out(), terms.iter().map(|term| term.layer.rank).sum::<usize>());
    let mut down = Vec::with_capacity(rank * terms[0].layer.input());
    let mut up = vec![0.0; out * rank];
    let mut column = 0;
    for Term { layer, w, .. } in terms {
        let c = *w * layer.scale();
        let (read, write) = (c.abs().sqrt(), c.abs().sqrt() * c.signum());
        down.extend(layer.down.iter().map(|x| x * read));
        for (row, values) in layer.up.chunks_exact(layer.rank).enumerate() {
            for (k, x) in values.iter().enumerate() {
                up[row * rank + column + k] = x * write;
            }
        }
        column += layer.rank;
    }
    let (down_shape, up_shape) = file_shapes(terms, rank);
    LoraLayer { down, up, rank, alpha: rank as f32, down_shape, up_shape }
}

/// `(Σ w²‖ΔWₜ‖ / Σ|w|, ‖Σ wΔWₜ‖)` of one layer: what the sum's norm should be to keep strength, and what it is. The
/// reference follows the faders, so one adapter alone at `w` stays at `w`.
fn norms(terms: &[Term<'_>], merged: &LoraLayer) -> Result<(f64, f64)> {
    let (mut weighted, mut total) = (0.0, 0.0);
    for term in terms {
        let w = f64::from(term.w);
        weighted += w * w * term.unit()?.energy().sqrt();
        total += w.abs();
    }
    let shape = Shape { out: merged.out(), rank: merged.rank, input: merged.input() };
    let norm = LowRank::new(&merged.up, &merged.down, shape, f64::from(merged.scale()))?.energy().sqrt();
    Ok((weighted / total, norm))
}
