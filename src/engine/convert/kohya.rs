//! One file of low-rank pairs under kohya's flat names.

use std::collections::BTreeMap;
use std::path::Path;

use crate::engine::Result;
use crate::engine::convert::Paths;
use crate::engine::io::lora_file::LoraFile;

/// Every layer with the commonest alpha: diffusers 0.42 mistakes the scale of a layer whose alpha differs from it. What
/// differs goes into the write side.
pub fn write(file: &LoraFile, _: &Paths, out: &Path) -> Result<()> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for layer in file.layers.values() {
        *counts.entry(layer.alpha.to_bits()).or_default() += 1;
    }
    let commonest = counts.into_iter().max_by_key(|&(alpha, count)| (count, alpha));
    let mut file = file.clone();
    if let Some((bits, _)) = commonest {
        let alpha = f32::from_bits(bits);
        for layer in file.layers.values_mut().filter(|layer| layer.alpha.to_bits() != bits) {
            let by = layer.alpha / alpha;
            for x in &mut layer.up {
                *x *= by;
            }
            layer.alpha = alpha;
        }
        file.metadata.insert("ss_network_alpha".into(), alpha.to_string());
    }
    file.save(out)
}
