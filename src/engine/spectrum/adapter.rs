//! An adapter file as deltas to measure.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::engine::io::lora_file::LoraFile;
use crate::engine::spectrum::{self, LowRank, Shape};
use crate::engine::{Error, Result};

/// Every layer's `ΔW` at strength 1, by kohya's module name.
pub fn deltas(file: &LoraFile) -> Result<BTreeMap<String, LowRank>> {
    if let Some(module) = file.own.keys().next() {
        return Err(Error::new(
            format!("What this adapter does depends on the picture (layer {module}): it has no fixed weights"),
            "Mount it beside the others when sampling (sample --adapter A --adapter B); `triptych methods` says which methods can be merged and measured",
        )
        .at(&file.path));
    }
    if let Some(module) = file.relatives.keys().next() {
        return Err(Error::new(
            format!("What this adapter does depends on the model's own weights (layer {module})"),
            "Convert it with the model it was made for: triptych convert F --to full --model M --out G",
        )
        .at(&file.path));
    }
    file.modules()
        .into_iter()
        .filter_map(|module| Some((module, file.pair(module)?)))
        .map(|(module, layer)| {
            let shape = Shape { out: layer.out(), rank: layer.rank, input: layer.input() };
            let delta = LowRank::new(&layer.up, &layer.down, shape, f64::from(layer.scale()))
                .map_err(|e| Error { what: format!("{} (layer {module})", e.what), ..e }.at(&file.path))?;
            Ok((module.clone(), delta))
        })
        .collect()
}

/// What the singular values of one layer say.
#[derive(Clone, Debug, Serialize)]
pub struct LayerSpectrum {
    pub layer: String,
    pub rank: usize,
    pub singular_values: Vec<f64>,
    /// `exp` of the entropy of the normalised singular values.
    pub effective_rank: f64,
    /// `Σσ² / σ₁²`.
    pub stable_rank: f64,
    /// `Σσ²`.
    pub energy: f64,
    /// Directions that hold 99 % of the energy.
    pub rank_for_99: usize,
}

/// The spectrum of every layer, in name order.
pub fn spectra(file: &LoraFile) -> Result<Vec<LayerSpectrum>> {
    let deltas: Vec<(String, LowRank)> = deltas(file)?.into_iter().collect();
    deltas
        .into_par_iter()
        .map(|(layer, delta)| {
            let values = delta.singular_values().map_err(|e| e.at(&file.path))?;
            Ok(LayerSpectrum {
                layer,
                rank: delta.shape().rank,
                effective_rank: spectrum::effective_rank(&values),
                stable_rank: spectrum::stable_rank(&values),
                energy: values.iter().map(|s| s * s).sum(),
                rank_for_99: spectrum::rank_for_energy(&values, 0.99),
                singular_values: values,
            })
        })
        .collect()
}
