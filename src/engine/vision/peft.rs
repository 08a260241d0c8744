//! The settings that PEFT keeps beside an adapter's tensors: `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::names;
use crate::engine::model::Layer;
use crate::engine::vision::Classifier;
use crate::engine::{Error, Result};

/// The file's name.
pub const CONFIG: &str = "adapter_config.json";

/// What decides how strong the factors are.
#[derive(Deserialize)]
struct Config {
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    /// By the end of a module's path.
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
}

/// For a LoRA with a head of its own whose scale is in its factors; ranks that differ from the largest stand in the pattern.
pub fn settings(changes: &LoraFile, model: &Classifier) -> Value {
    let rank = |layer: &Layer| Some((names::peft_vision(&layer.path), changes.layers.get(&layer.module())?.rank));
    let ranks: BTreeMap<String, usize> = model.layers.iter().filter_map(rank).collect();
    let r = ranks.values().copied().max().unwrap_or(1);
    let odd: BTreeMap<_, _> = ranks.iter().filter(|(_, rank)| **rank != r).collect();
    let head = model.head_path.split('.').next().unwrap_or(model.head_path);
    json!({
        "peft_type": "LORA",
        "base_model_name_or_path": model.name,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": true,
        "target_modules": ranks.keys().collect::<Vec<_>>(),
        "modules_to_save": [head],
    })
}

/// Gives the factors the `alpha` that stands beside the `tensors`, where anything does.
pub fn strengthen(changes: &mut LoraFile, tensors: &Path, model: &Classifier) -> Result<()> {
    let path = tensors.with_file_name(CONFIG);
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let config: Config = serde_json::from_str(&text).map_err(|e| {
        Error::new(format!("PEFT's settings cannot be read: {e}"), "Export the adapter again").at(&path)
    })?;
    if config.use_dora {
        return Err(
            Error::new("This is a DoRA", "Only plain LoRAs of PEFT can be read for classifiers so far").at(path)
        );
    }
    for layer in &model.layers {
        let Some(factors) = changes.layers.get_mut(&layer.module()) else { continue };
        let path = format!(".{}", names::peft_vision(&layer.path));
        let own = config.alpha_pattern.iter().find(|(pattern, _)| path.ends_with(&format!(".{pattern}")));
        let alpha = own.map_or(config.lora_alpha, |(_, alpha)| *alpha);
        factors.alpha = if config.use_rslora { alpha * (factors.rank as f32).sqrt() } else { alpha };
    }
    Ok(())
}
