//! PEFT's folders: `adapter_config.json` and `adapter_model.safetensors` for each network.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::engine::convert::Paths;
use crate::engine::io::lora_file::paths::Adaptable;
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::io::names::PEFT;
use crate::engine::io::safetensors::Tensor;
use crate::engine::io::{Dtype, atomic, metadata, peft};
use crate::engine::{Error, Result};

/// The folder `out`, which must not be there yet, with one inside for each network.
pub fn write(file: &LoraFile, paths: &Paths, out: &Path) -> Result<()> {
    if out.exists() {
        let advice = "Choose a name that is not taken yet: nothing is overwritten";
        return Err(Error::new("There is something of this name already", advice).at(out));
    }
    let mut networks: BTreeMap<Adaptable, BTreeMap<String, &LoraLayer>> = BTreeMap::new();
    for (module, layer) in &file.layers {
        let (network, path) = paths.ours(module);
        networks.entry(network).or_default().insert(path, layer);
    }
    let dtype = file.dtype.unwrap_or(Dtype::F32);
    let base = file.metadata.get(metadata::BASE).map_or(Value::Null, |base| json!(base));
    atomic::write_folder(out, |new| {
        for (network, layers) in &networks {
            let mut config = config(layers.iter().map(|(path, layer)| (path.as_str(), layer.rank, layer.alpha)));
            config.insert("base_model_name_or_path".into(), base.clone());
            let mut tensors = BTreeMap::new();
            for (path, layer) in layers {
                let key = format!("{PEFT}{path}");
                tensors.insert(format!("{key}.lora_A.weight"), Tensor::new(dtype, &layer.down_shape, &layer.down));
                tensors.insert(format!("{key}.lora_B.weight"), Tensor::new(dtype, &layer.up_shape, &layer.up));
            }
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            save(&new.join(network.in_diffusers()), &config, file, &tensors, metadata)?;
        }
        Ok(())
    })
}

/// One folder of PEFT's: tensors of an adapter, and what is said of them beside.
pub fn save(
    folder: &Path,
    config: &Map<String, Value>,
    file: &LoraFile,
    tensors: &BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    atomic::write(&folder.join(peft::CONFIG), |out| write!(out, "{:#}", json!(config)))?;
    file.write(&folder.join(peft::WEIGHTS), tensors, metadata)
}

/// `LoraConfig` of layers by path, rank and alpha: the commonest of the two, and patterns for the others.
pub fn config<'a>(layers: impl Iterator<Item = (&'a str, usize, f32)>) -> Map<String, Value> {
    let layers: Vec<_> = layers.collect();
    let commonest = |of: &dyn Fn(&(&str, usize, f32)) -> u32| {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for layer in &layers {
            *counts.entry(of(layer)).or_default() += 1;
        }
        counts.into_iter().max_by_key(|&(value, count)| (count, value)).map(|(value, _)| value)
    };
    let rank = commonest(&|layer| layer.1 as u32).map_or(1, |rank| rank as usize);
    let alpha = commonest(&|layer| layer.2.to_bits()).map_or(1.0, f32::from_bits);
    let other_ranks =
        layers.iter().filter(|layer| layer.1 != rank).map(|&(path, rank, _)| (path.to_owned(), json!(rank)));
    let other_alphas = layers.iter().filter(|layer| layer.2.to_bits() != alpha.to_bits());
    let other_alphas = other_alphas.map(|&(path, _, alpha)| (path.to_owned(), json!(alpha)));
    let targets: BTreeSet<&str> = layers.iter().map(|layer| layer.0).collect();
    let fields = [
        ("peft_type", json!("LORA")),
        ("r", json!(rank)),
        ("lora_alpha", json!(alpha)),
        ("rank_pattern", Value::Object(other_ranks.collect())),
        ("alpha_pattern", Value::Object(other_alphas.collect())),
        ("target_modules", json!(targets)),
        ("bias", json!("none")),
        ("lora_dropout", json!(0.0)),
        ("fan_in_fan_out", json!(false)),
        ("init_lora_weights", json!(true)),
        ("use_rslora", json!(false)),
        ("use_dora", json!(false)),
        ("inference_mode", json!(true)),
        ("task_type", Value::Null),
        ("base_model_name_or_path", Value::Null),
        ("modules_to_save", Value::Null),
        ("layers_to_transform", Value::Null),
        ("layers_pattern", Value::Null),
        ("exclude_modules", Value::Null),
    ];
    fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}
