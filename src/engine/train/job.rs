//! Everything a training run depends on.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::engine::Result;
use crate::engine::adapter::{self, Method};
use crate::engine::concept::{Concept, Trigger};
use crate::engine::field::Settings;
use crate::engine::io::safetensors;
use crate::engine::model::StableDiffusion;
use crate::engine::train::config;
use crate::engine::train::prompts::{self, Captions};
use crate::engine::train::wishes::Wishes;

pub struct Job<'a> {
    pub model: &'a StableDiffusion,
    pub concept: &'a Concept,
    pub trigger: Trigger,
    /// How captions read: `a 3d emoji of {token} {class}`.
    pub template: String,
    pub method: &'static Method,
    pub method_settings: Settings,
    pub settings: Settings,
    pub context: adapter::Context,
    pub out: PathBuf,
    pub resume: bool,
    /// Writes when and by what version the file was made.
    pub stamp: bool,
    /// Folder in which latents are kept.
    pub cache: Option<PathBuf>,
    /// What may be asked for from outside while it runs.
    pub wishes: Option<Arc<Wishes>>,
}

impl Job<'_> {
    /// How its pictures' captions are read, for a token of so many vectors.
    pub fn captions(&self, vectors: usize) -> Captions<'_> {
        let class_word = &self.trigger.class_word;
        Captions { template: &self.template, trigger: Some((&self.trigger, vectors)), class_word }
    }

    /// Changes whenever anything changes that the trained numbers depend on.
    pub fn fingerprint(&self) -> Result<String> {
        let pictures: Vec<_> = prompts::contents(&self.concept.images)?
            .into_iter()
            .map(|(hash, picture)| json!([hash, picture.caption, picture.repeats]))
            .collect();
        let inputs = json!({
            "base": [&self.model.hash, &self.model.vae_hash, &self.model.text_hash],
            "prediction": self.model.schedule.prediction_type,
            "method": self.method.name,
            "method_settings": self.method_settings,
            "settings": config::decisive(&self.settings),
            "seed": self.context.seed,
            "slot": self.context.slot,
            "block": self.context.block,
            "token": self.trigger.token,
            "class": self.trigger.class_word,
            "template": self.template,
            "pictures": pictures,
        });
        Ok(safetensors::hex(&Sha256::digest(inputs.to_string().as_bytes())))
    }
}
