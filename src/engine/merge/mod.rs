//! Several adapters into one.

pub mod certificate;
pub mod recipe;
pub mod recover;
mod sum;

use std::collections::BTreeMap;

use half::f16;
use serde::Serialize;

use crate::engine::adapter::mount::Strength;
use crate::engine::field::{Field, Settings};
use crate::engine::io::Dtype;
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::{Error, Result};

/// A merge method's row: what forms, help, README and errors read.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    pub name: &'static str,
    pub title: &'static str,
    pub paper: &'static str,
    pub help: &'static str,
    pub fields: &'static [Field],
    #[serde(skip)]
    pub run: Run,
}

pub const METHODS: &[Method] = &[sum::METHOD];

/// Sources and settings → the merged layers, by kohya's module name.
pub type Run = fn(&[Source], &Settings) -> Result<BTreeMap<String, LoraLayer>>;

/// An adapter and how strongly it goes in.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: LoraFile,
    pub strength: Strength,
}

impl Source {
    /// Whether every layer's strength is 0.
    pub fn is_silent(&self) -> bool {
        self.file.layers.keys().all(|module| self.strength.of(module) == 0.0)
    }
}

/// The row of a name.
pub fn method(name: &str) -> Result<&'static Method> {
    METHODS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = METHODS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no merge method “{name}”"), format!("Choose one of {known}"))
    })
}

/// Merges `sources` into one file that carries every token and the recipe.
pub fn merge(sources: &[Source], method: &Method, settings: &Settings) -> Result<LoraFile> {
    if sources.is_empty() {
        return Err(Error::usage("No adapter was given to merge", "Name at least one adapter file"));
    }
    let tokens = recipe::tokens(sources)?;
    let layers = (method.run)(sources, settings)?;
    let metadata = recipe::metadata(sources, method, settings)?;
    let format = |source: &Source| source.file.dtype.unwrap_or(Dtype::F32);
    // Neither f16 nor bf16 holds the other: where formats differ, only f32 rounds nothing.
    let same = sources.iter().all(|source| format(source) == format(&sources[0]));
    // f16 ends at 65504: what strengths drive beyond it is kept in f32 rather than lost.
    let largest =
        layers.values().flat_map(|layer| layer.down.iter().chain(&layer.up)).fold(0.0, |m: f32, x| m.max(x.abs()));
    let fits = format(&sources[0]) != Dtype::F16 || largest < f16::MAX.to_f32();
    let dtype = Some(if same && fits { format(&sources[0]) } else { Dtype::F32 });
    Ok(LoraFile { layers, tokens, metadata, dtype, ..LoraFile::default() })
}
