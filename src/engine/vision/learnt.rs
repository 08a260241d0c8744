//! What a classifier has learnt, as a file: a new head with the names of its classes, and adapters on the layers before.
//!
//! Keys are PEFT's: `base_model.model.….lora_A.weight` for factors, the head as PEFT's `modules_to_save`; so
//! `PeftModel.from_pretrained` loads the folder that is written where the name does not end in `.safetensors`. The scale of
//! the factors is in `lora_B`, because PEFT keeps it in a file of its own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::json;

use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::io::{atomic, detect, metadata, names};
use crate::engine::vision::{Classifier, Head, peft};
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
        let (tensors, metadata) = self.tensors(path, model)?;
        if is_file(path) {
            return safetensors::save(path, &tensors, &metadata);
        }
        let config = serde_json::to_string_pretty(&peft::settings(&self.changes, model)).map_err(|e| {
            Error::new(format!("The settings cannot be written ({e})"), "Name a .safetensors file").at(path)
        })?;
        atomic::write_folder(path, |new| {
            safetensors::save(&new.join(detect::PEFT_FILE), &tensors, &metadata)?;
            atomic::write(&new.join(peft::CONFIG), |out| out.write_all(config.as_bytes()))
        })
    }

    fn tensors(
        &self,
        path: &Path,
        model: &Classifier,
    ) -> Result<(BTreeMap<String, safetensors::Tensor>, BTreeMap<String, String>)> {
        let dtype = self.changes.dtype.unwrap_or(Dtype::F32);
        let paths: BTreeMap<String, &str> = model.layers.iter().map(|l| (l.module(), l.path.as_str())).collect();
        let mut folded = self.changes.clone();
        for layer in folded.layers.values_mut() {
            let scale = layer.scale();
            layer.up.iter_mut().for_each(|x| *x *= scale);
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
        if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !tensor.is_finite()) {
            return Err(Error::new(
                format!("{name} has grown beyond what {:?} can hold", tensor.dtype),
                "Lower the learning rate, or choose dtype=f32; nothing was overwritten",
            )
            .at(path));
        }
        let mut metadata = self.changes.metadata.clone();
        metadata.insert(metadata::CLASSES.into(), json!(self.classes).to_string());
        metadata.insert("format".into(), "pt".into());
        if let Some(parts) = self.changes.own.values().next() {
            metadata.insert(metadata::OWN.into(), parts.keys().cloned().collect::<Vec<_>>().join(","));
        }
        Ok((tensors, metadata))
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
    let ours = |stored: &str| {
        let path = names::from_peft_vision(stored.strip_prefix(names::PEFT)?);
        let mut cuts = path.match_indices('.').map(|(at, _)| path.split_at(at));
        cuts.find_map(|(path, end)| Some(format!("{}{end}", modules.get(path)?)))
    };
    let before = |stored: &&String| !head.contains(stored);
    if let Some(other) = file.entries().keys().filter(before).find(|stored| ours(stored).is_none()) {
        let what = format!("This was not learnt by {}, which has no layer for {other}", model.name);
        return Err(Error::new(what, "Choose the classifier it was trained on, after --model").at(file.path()));
    }
    let layers = file.renamed(ours);
    if layers.entries().is_empty() {
        return Ok(LoraFile { path: file.path().into(), metadata: file.metadata().clone(), ..LoraFile::default() });
    }
    let mut changes = LoraFile::read(&layers)?;
    if file.path().file_name().is_some_and(|name| name == detect::PEFT_FILE) {
        peft::strengthen(&mut changes, file.path(), model)?;
    }
    Ok(changes)
}
