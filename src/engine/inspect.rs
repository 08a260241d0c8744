//! What is this file or folder?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::engine::adapter::{self, FileKind, target};
use crate::engine::concept::{self, buckets::Buckets};
use crate::engine::io::Checkpoint;
use crate::engine::io::detect::{self, Family, Kind};
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::lora_file::loads::{Fate, loads_in};
use crate::engine::io::{metadata as keys, peft};
use crate::engine::model::{Part, StableDiffusion};
use crate::engine::session::{self, default_block};
use crate::engine::train::config::side_step;
use crate::engine::{Error, Result};

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    Model {
        name: String,
        sha256: String,
        /// Parameters of each part.
        parameters: BTreeMap<&'static str, usize>,
        native_size: [usize; 2],
        prediction: String,
        caption: String,
        /// Layers that each group of targets holds.
        targets: BTreeMap<&'static str, usize>,
        /// Columns of the shared basis a concept owns by default.
        block: usize,
        /// Concepts with disjoint slots that the default layers hold.
        capacity: usize,
    },
    Adapter {
        path: PathBuf,
        method: Option<String>,
        /// Models it was made for, as far as its layers tell.
        family: Option<&'static str>,
        base: Option<String>,
        basis: Option<String>,
        slot: Option<String>,
        /// Vectors of each word.
        tokens: BTreeMap<String, usize>,
        /// Cross-attention layers of each word that has as many vectors for every one of them.
        token_layers: BTreeMap<String, usize>,
        layers: usize,
        /// What the method that wrote it keeps in a file.
        file: Option<FileKind>,
        ranks: Vec<usize>,
        dtype: String,
        parameters: usize,
        bytes: u64,
        /// Layers whose change depends on the model's own weights.
        relative: usize,
        /// Normalisations that it changes.
        norms: usize,
        /// Each tool with what it makes of the file.
        loads_in: Vec<(&'static str, Fate)>,
        metadata: BTreeMap<String, String>,
    },
    Concept {
        name: String,
        class_word: Option<String>,
        pictures: usize,
        captioned: usize,
        /// Pictures with a mask beside them.
        masked: usize,
        /// Side of the pictures that the buckets are for.
        resolution: usize,
        /// Each `[width, height]` that pictures fall into with `fit=bucket`, and how many.
        buckets: Vec<([usize; 2], usize)>,
        skipped: Vec<(PathBuf, String)>,
    },
    /// Something known that cannot be used.
    Other {
        path: PathBuf,
        /// “This is an SDXL checkpoint”
        what: String,
        /// What to do instead.
        advice: String,
        /// 0 for a folder.
        tensors: usize,
        dtype: String,
        bytes: u64,
    },
}

/// Looks at `path`: `starter`, a model folder or file, an adapter file, a folder of pictures, or what else may lie there.
/// The buckets of pictures are those of Stable Diffusion at 512 pixels, or of `model` at its own size.
pub fn inspect(path: &str, for_model: Option<&str>) -> Result<Report> {
    let folder = Path::new(path);
    if path == "starter" {
        return model(path);
    }
    if !folder.exists() {
        return Err(Error::new("There is nothing here", "Check that the path is spelled as on disk").at(folder));
    }
    let found = detect::detect(folder)?;
    let refused = found.must_be_model(folder);
    match (found.kind, refused) {
        (_, Ok(())) => return model(path),
        (Kind::Pickle, Err(refusal)) => return Err(refusal),
        // Those of other families may be readable, and can be looked at and merged.
        (Kind::Adapter(_) | Kind::Embedding, Err(_)) => return adapter(folder),
        (Kind::Unknown, _) => {}
        (_, Err(refusal)) => return other(folder, &refusal),
    }
    if folder.is_dir() {
        let concept = concept::open(folder)?;
        let (resolution, step) = match for_model {
            None => (512, 64),
            Some(name) => {
                let model = StableDiffusion::open(&StableDiffusion::folder(name), &crate::engine::device::cpu())?;
                (model.native_size()[0], side_step(&model))
            }
        };
        let frames = Buckets { resolution, step, upscale: true };
        let mut buckets = BTreeMap::new();
        for picture in &concept.images {
            *buckets.entry(frames.of(picture.size)).or_insert(0) += 1;
        }
        return Ok(Report::Concept {
            class_word: concept.class_word,
            pictures: concept.images.len(),
            captioned: concept.images.iter().filter(|picture| picture.caption.is_some()).count(),
            masked: concept.images.iter().filter(|picture| picture.mask.is_some()).count(),
            resolution,
            buckets: buckets.into_iter().collect(),
            skipped: concept.skipped.into_iter().map(|skipped| (skipped.path, skipped.why)).collect(),
            name: concept.name,
        });
    }
    adapter(folder)
}

fn other(path: &Path, refusal: &Error) -> Result<Report> {
    let file = if path.is_file() { Some(Checkpoint::open(path)?) } else { None };
    let entries = || file.iter().flat_map(|file| file.entries().values());
    Ok(Report::Other {
        path: path.to_path_buf(),
        what: refusal.what.clone(),
        advice: refusal.advice.clone(),
        tensors: entries().count(),
        dtype: entries().next().map_or_else(String::new, |entry| format!("{:?}", entry.dtype)),
        bytes: if path.is_file() { std::fs::metadata(path).map_or(0, |about| about.len()) } else { 0 },
    })
}

fn model(path: &str) -> Result<Report> {
    let model = StableDiffusion::open(&StableDiffusion::folder(path), &crate::engine::device::cpu())?;
    let count = |is: fn(Part) -> bool| {
        model.layers.iter().filter(|layer| is(layer.part)).map(|layer| layer.out * layer.input()).sum()
    };
    let group = |name: &'static str| (name, target::select(name, &model.layers).map_or(0, |ids| ids.len()));
    let block = default_block(&model);
    let narrowest = target::select(target::DEFAULT, &model.layers)?.iter().map(|&id| model.layer(id).input()).min();
    Ok(Report::Model {
        name: model.name.clone(),
        sha256: model.hash.clone(),
        parameters: BTreeMap::from([
            ("text encoder layers", count(Part::is_text)),
            ("denoiser layers", count(|part| part == Part::Unet)),
        ]),
        native_size: model.native_size(),
        prediction: model.schedule.prediction_type.clone(),
        caption: session::template(&model),
        targets: target::GROUPS.iter().map(|row| group(row.name)).collect(),
        block,
        capacity: narrowest.unwrap_or(0) / block,
    })
}

fn adapter(path: &Path) -> Result<Report> {
    let file = LoraFile::open(path)?;
    let files = peft::files(path);
    let stored = files.iter().map(|file| Checkpoint::open(file)).collect::<Result<Vec<_>>>()?;
    let value = |key: &str| file.metadata.get(key).cloned();
    Ok(Report::Adapter {
        path: path.to_path_buf(),
        method: value(keys::METHOD),
        family: file.family.map(Family::title),
        base: value(keys::BASE),
        basis: value(keys::BASIS),
        slot: value(keys::SLOT),
        tokens: file.tokens.iter().map(|(token, vectors)| (token.clone(), vectors.len())).collect(),
        token_layers: file.layer_tokens.iter().map(|(token, layers)| (token.clone(), layers.len())).collect(),
        layers: file.modules().len(),
        file: adapter::method(file.metadata.get(keys::METHOD).map_or("", String::as_str)).ok().map(|row| row.file),
        ranks: file.ranks().into_iter().collect(),
        dtype: file.dtype.map_or_else(String::new, |dtype| format!("{dtype:?}")),
        parameters: file.numbers(),
        bytes: files.iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum(),
        relative: file.relatives.len(),
        norms: file.norms.len(),
        loads_in: loads_in(&stored),
        metadata: file.metadata,
    })
}
