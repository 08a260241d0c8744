//! What a classifier has learnt, as a file: a new head with the names of its classes, and adapters on the layers before.
//!
//! Keys are PEFT's: `base_model.model.….lora_A.weight` for factors, the head as PEFT's `modules_to_save`; so
//! `PeftModel.from_pretrained` loads the folder that is written where the name does not end in `.safetensors`. The scale of
//! the factors is in `lora_B`, because PEFT keeps it in a file of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Map, Value, json};

use crate::engine::convert;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::io::{atomic, metadata, names, peft};
use crate::engine::model::Layer;
use crate::engine::vision::{Classifier, Head};
use crate::engine::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub struct Learnt {
    /// Row-major, `[classes, width]`.
    pub head_weight: Vec<f32>,
    pub head_bias: Vec<f32>,
    pub classes: Vec<String>,
    /// What the layers before the head have learnt, under our names of them; and the file's metadata.
    pub changes: LoraFile,
}

impl Learnt {
    pub fn head(&self, device: &Device) -> Head {
        let (n, width) = (self.head_bias.len(), self.head_weight.len() / self.head_bias.len());
        Head {
            weight_oi: Tensor::from_data(TensorData::new(self.head_weight.clone(), [n, width]), device),
            bias: Tensor::from_data(TensorData::new(self.head_bias.clone(), [1, n]), device),
        }
    }

    /// A file of ours, or the folder that PEFT saves one in. What was made for another classifier is refused.
    pub fn open(path: &Path, model: &Classifier) -> Result<Self> {
        let files = peft::files(path);
        let path = files.first().map_or(path, PathBuf::as_path);
        let file = Checkpoint::open(path)?;
        let other = |why: String| {
            let what = format!("This was not learnt by {}: {why}", model.name);
            Error::new(what, "Choose the classifier it was trained on, after --model").at(path)
        };
        if let Some(hash) = file.metadata().get(metadata::BASE_HASH).filter(|hash| **hash != model.hash) {
            let base = file.metadata().get(metadata::BASE).map_or("another", String::as_str);
            return Err(other(format!("it belongs to {base}, whose weights have the hash {hash:.8}…")));
        }
        let [weight, bias] = head_keys(model);
        if !file.entries().contains_key(&weight) {
            return Err(other(format!("it holds no {weight}")));
        }
        let [head_weight, head_bias] = [&weight, &bias].map(|name| file.numbers(name));
        let (head_weight, head_bias) = (head_weight?, head_bias?);
        let (n, width) = (head_bias.values.len(), model.width());
        if file.shape(&weight)? != [n, width] || n == 0 {
            return Err(other(format!("its head is {:?} where {width} features are read", file.shape(&weight)?)));
        }
        if !head_weight.finite || !head_bias.finite {
            return Err(Error::new("Its head holds NaN or infinite numbers", "Train it again").at(path));
        }
        let told = file.metadata().get(metadata::CLASSES);
        let classes = match told.map(|text| serde_json::from_str::<Vec<String>>(text)) {
            Some(Ok(classes)) if classes.len() == n => classes,
            Some(_) => return Err(Error::new("The names of its classes are damaged", "Train it again").at(path)),
            None if model.classes.len() == n => model.classes.clone(),
            None => (0..n).map(|i| format!("LABEL_{i}")).collect(),
        };
        let changes = changes(&file, model, &[weight, bias])?;
        Ok(Self { head_weight: head_weight.values, head_bias: head_bias.values, classes, changes })
    }

    /// Writes a file, or a folder in PEFT's layout where `path` does not end in `.safetensors`.
    pub fn save(&self, path: &Path, model: &Classifier) -> Result<()> {
        let tensors = self.tensors(model);
        let mut metadata = self.changes.metadata.clone();
        metadata.insert(metadata::CLASSES.into(), json!(self.classes).to_string());
        metadata.insert("format".into(), "pt".into());
        if is_file(path) {
            return self.changes.write(path, &tensors, metadata);
        }
        let config = self.config(model);
        atomic::write_folder(path, |new| convert::peft::save(new, &config, &self.changes, &tensors, metadata))
    }

    /// What stands beside the tensors: a LoRA whose scale is in its factors, with a head of its own.
    fn config(&self, model: &Classifier) -> Map<String, Value> {
        let rank =
            |layer: &Layer| Some((names::peft_vision(&layer.path), self.changes.layers.get(&layer.module())?.rank));
        let ranks: Vec<_> = model.layers.iter().filter_map(rank).collect();
        let mut config = convert::peft::config(ranks.iter().map(|(path, rank)| (path.as_str(), *rank, *rank as f32)));
        let head = model.head_path.split('.').next().unwrap_or(model.head_path);
        config.insert("base_model_name_or_path".into(), json!(model.name));
        config.insert("modules_to_save".into(), json!([head]));
        config
    }

    fn tensors(&self, model: &Classifier) -> BTreeMap<String, safetensors::Tensor> {
        let dtype = self.changes.dtype.unwrap_or(Dtype::F32);
        let paths: BTreeMap<String, &str> = model.layers.iter().map(|l| (l.module(), l.path.as_str())).collect();
        let mut folded = self.changes.clone();
        for layer in folded.layers.values_mut() {
            layer.set_alpha(layer.rank as f32);
        }
        let [weight, bias] = head_keys(model);
        let (n, width) = (self.head_bias.len(), model.width());
        let mut tensors = BTreeMap::from([
            (weight, safetensors::Tensor::new(dtype, &[n, width], &self.head_weight)),
            (bias, safetensors::Tensor::new(dtype, &[n], &self.head_bias)),
        ]);
        for (key, tensor) in folded.tensors() {
            let Some((module, end)) = key.split_once('.') else { continue };
            let end = match end {
                "alpha" => continue,
                "lora_down.weight" => "lora_A.weight",
                "lora_up.weight" => "lora_B.weight",
                own => own,
            };
            let path = paths.get(module).copied().unwrap_or(module);
            tensors.insert(format!("{}{}.{end}", names::PEFT, names::peft_vision(path)), tensor);
        }
        tensors
    }
}

/// Whether what is written under this name is one file.
pub fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "safetensors")
}

/// Weight and bias of the head.
fn head_keys(model: &Classifier) -> [String; 2] {
    ["weight", "bias"].map(|part| format!("{}{}.{part}", names::PEFT, model.head_path))
}

/// What lies before the head, under our names.
fn changes(file: &Checkpoint, model: &Classifier, head: &[String]) -> Result<LoraFile> {
    let modules: BTreeMap<&str, String> = model.layers.iter().map(|l| (l.path.as_str(), l.module())).collect();
    let module = |path: &str| modules.get(names::from_peft_vision(path).as_str()).cloned();
    let is_known = |stored: &str| {
        let path = stored.strip_prefix(names::PEFT).unwrap_or_default();
        path.match_indices('.').any(|(end, _)| module(&path[..end]).is_some())
    };
    let layers = file.renamed(|stored| (!head.iter().any(|name| name == stored)).then(|| stored.to_owned()));
    if let Some(other) = layers.entries().keys().find(|stored| !is_known(stored)) {
        let what = format!("This was not learnt by {}, which has no layer for {other}", model.name);
        return Err(Error::new(what, "Choose the classifier it was trained on, after --model").at(file.path()));
    }
    if layers.entries().is_empty() {
        return Ok(LoraFile { path: file.path().into(), metadata: file.metadata().clone(), ..LoraFile::default() });
    }
    LoraFile::read(&layers, &module)
}
