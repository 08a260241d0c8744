//! One file under names with dots: diffusers' (`loaders/lora_base.py`), and ComfyUI's generic ones (`comfy/lora.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use crate::engine::Result;
use crate::engine::convert::{Paths, low_rank, peft};
use crate::engine::event::Watch;
use crate::engine::io::lora_file::paths::Adaptable;
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::io::{Dtype, safetensors};

/// Every layer at a scale of 1: the format has no place for another.
pub fn layers(file: &mut LoraFile, rank: usize, watch: &mut Watch<'_>) -> Result<BTreeSet<String>> {
    let cut = low_rank::cut(file, rank, watch)?;
    for layer in file.layers.values_mut() {
        layer.set_alpha(layer.rank as f32);
    }
    Ok(cut)
}

/// `unet.….lora_A.weight`, `text_encoder.….lora_B.weight`; no alpha, which beside the header would be refused.
pub fn write(file: &LoraFile, paths: &Paths, out: &Path) -> Result<()> {
    let dtype = file.dtype.unwrap_or(Dtype::F32);
    let mut tensors = BTreeMap::new();
    let mut networks: BTreeMap<Adaptable, BTreeMap<String, &LoraLayer>> = BTreeMap::new();
    for (module, layer) in &file.layers {
        let (network, path) = paths.ours(module);
        let key = format!("{}.{path}", network.in_diffusers());
        tensors.insert(format!("{key}.lora_A.weight"), safetensors::Tensor::new(dtype, &layer.down_shape, &layer.down));
        tensors.insert(format!("{key}.lora_B.weight"), safetensors::Tensor::new(dtype, &layer.up_shape, &layer.up));
        networks.entry(network).or_default().insert(path, layer);
    }
    let mut header = Map::new();
    for (network, layers) in networks {
        // A text encoder's modules begin with `text_model.` up to transformers 5.5 and without it since; PEFT finds the end
        // of a path in both.
        let end = |path: &'_ str| path.strip_prefix("text_model.").unwrap_or(path).to_owned();
        let layers: Vec<_> = layers.iter().map(|(path, layer)| (end(path), layer.rank)).collect();
        let config = peft::config(layers.iter().map(|(path, rank)| (path.as_str(), *rank, *rank as f32)));
        header.extend(config.into_iter().map(|(key, value)| (format!("{}.{key}", network.in_diffusers()), value)));
    }
    let mut metadata = file.metadata.clone();
    metadata.insert("format".into(), "pt".into());
    metadata.insert("lora_adapter_metadata".into(), Value::Object(header).to_string());
    file.write(out, &tensors, metadata)
}

/// `diffusion_model.<LDM's path>.lora_A.weight`, `text_encoders.clip_l.transformer.….alpha`.
pub fn write_comfy(file: &LoraFile, paths: &Paths, out: &Path) -> Result<()> {
    let dtype = file.dtype.unwrap_or(Dtype::F32);
    let words = LoraFile {
        tokens: file.tokens.clone(),
        layer_tokens: file.layer_tokens.clone(),
        second_width: file.second_width,
        dtype: file.dtype,
        ..LoraFile::default()
    };
    let mut tensors = words.tensors();
    for (module, layer) in &file.layers {
        let (network, path) = paths.ldm(module);
        let key = format!("{}.{path}", in_comfy(network));
        tensors.insert(format!("{key}.lora_A.weight"), safetensors::Tensor::new(dtype, &layer.down_shape, &layer.down));
        tensors.insert(format!("{key}.lora_B.weight"), safetensors::Tensor::new(dtype, &layer.up_shape, &layer.up));
        tensors.insert(format!("{key}.alpha"), safetensors::Tensor::new(Dtype::F32, &[], &[layer.alpha]));
    }
    file.write(out, &tensors, file.metadata.clone())
}

/// Before the keys in ComfyUI's generic names.
fn in_comfy(network: Adaptable) -> &'static str {
    match network {
        Adaptable::Unet => "diffusion_model",
        Adaptable::Text => "text_encoders.clip_l.transformer",
        Adaptable::SecondText => "text_encoders.clip_g.transformer",
    }
}
