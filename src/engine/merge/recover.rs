//! One concept back out of a merged adapter: `λᵢ·upᵢ = (Σ λⱼ·ΔWⱼ)·Bᵢ`, because `BᵢᵀBᵢ = I` and `BᵢᵀBⱼ = 0`
//! (Po et al. 2024; exact for disjoint slots).

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::engine::adapter::basis::Basis;
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::{Error, Result};

/// The adapter in `slot` of `basis`, at the strength it was merged with: rank `block`, alpha = rank.
pub fn recover(merged: &LoraFile, basis: &Basis, slot: usize) -> Result<BTreeMap<String, LoraLayer>> {
    let widths: std::collections::BTreeSet<usize> = merged.layers.values().map(LoraLayer::input).collect();
    let rank = basis.block;
    let rows_of = widths
        .into_par_iter()
        .map(|width| Ok((width, basis.rows(width, slot, rank)?)))
        .collect::<Result<BTreeMap<_, _>>>()
        .map_err(|e: Error| e.at(&merged.path))?;
    Ok(merged
        .layers
        .par_iter()
        .map(|(module, layer)| {
            let rows = &rows_of[&layer.input()];
            let (mut down_shape, mut up_shape) = (layer.down_shape.clone(), layer.up_shape.clone());
            (down_shape[0], up_shape[1]) = (rank, rank);
            let up = read_through(layer, rows, rank);
            (module.clone(), LoraLayer { down: rows.clone(), up, rank, alpha: rank as f32, down_shape, up_shape })
        })
        .collect())
}

/// `scale · up · (down · rowsᵀ)`, `[out, rank]`: the small product first.
fn read_through(layer: &LoraLayer, rows: &[f32], rank: usize) -> Vec<f32> {
    let width = layer.input();
    let core: Vec<f64> = layer
        .down
        .chunks_exact(width)
        .flat_map(|down| {
            rows.chunks_exact(width)
                .map(move |row| down.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
        })
        .collect();
    let scale = f64::from(layer.scale());
    layer
        .up
        .chunks_exact(layer.rank)
        .flat_map(|up| {
            let core = &core;
            (0..rank).map(move |k| {
                (scale * up.iter().enumerate().map(|(j, &x)| f64::from(x) * core[j * rank + k]).sum::<f64>()) as f32
            })
        })
        .collect()
}
