//! Low-rank pairs as kohya's scripts write them.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Result;
use crate::engine::convert::low_rank;
use crate::engine::event::Watch;
use crate::engine::io::lora_file::LoraFile;

/// Every layer with the commonest alpha: diffusers 0.42 mistakes the scale of a layer whose alpha differs from it. What
/// differs goes into the write side.
pub fn layers(file: &mut LoraFile, rank: usize, watch: &mut Watch<'_>) -> Result<BTreeSet<String>> {
    let cut = low_rank::cut(file, rank, watch)?;
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for layer in file.layers.values() {
        *counts.entry(layer.alpha.to_bits()).or_default() += 1;
    }
    let commonest = counts.into_iter().max_by_key(|&(alpha, count)| (count, alpha));
    let Some((bits, _)) = commonest else { return Ok(cut) };
    for layer in file.layers.values_mut().filter(|layer| layer.alpha.to_bits() != bits) {
        layer.set_alpha(f32::from_bits(bits));
    }
    Ok(cut)
}
