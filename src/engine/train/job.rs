//! Everything a training run depends on.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::engine::Result;
use crate::engine::adapter::{self, Method};
use crate::engine::concept::{self, Concept, Picture, Trigger};
use crate::engine::field::Settings;
use crate::engine::io::safetensors;
use crate::engine::model::StableDiffusion;
use crate::engine::model::tokenizer::Word;
use crate::engine::train::config;
use crate::engine::train::prompts::{self, Captions};
use crate::engine::train::wishes::Wishes;

pub struct Job<'a> {
    pub model: &'a StableDiffusion,
    /// What is taught, at least one; several share the adapter and its slot, each with a word of its own.
    pub subjects: Vec<Subject<'a>>,
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

/// One of the concepts that a run teaches.
pub struct Subject<'a> {
    pub concept: &'a Concept,
    pub trigger: Trigger,
    /// How often each picture is shown for once of another concept's.
    pub repeats: usize,
    /// Of its loss.
    pub weight: f32,
}

impl Subject<'_> {
    /// How its pictures' captions are read; `words` are those of the whole run.
    pub fn captions<'c>(&'c self, template: &'c str, words: &'c [Word]) -> Captions<'c> {
        Captions { template, trigger: Some(&self.trigger), words, class_word: &self.trigger.class_word }
    }
}

impl Job<'_> {
    /// The words that are taught, each of so many vectors.
    pub fn words(&self, vectors: usize) -> Vec<Word> {
        self.subjects.iter().map(|subject| Word { text: subject.trigger.token.clone(), vectors }).collect()
    }

    /// Changes whenever anything changes that the trained numbers depend on.
    pub fn fingerprint(&self) -> Result<String> {
        let masked = self.settings.text("mask") == "file";
        let pictures = |concept: &Concept| -> Result<Vec<serde_json::Value>> {
            let contents = prompts::contents(&concept.images)?.into_iter();
            let about = |(hash, picture): (String, &Picture)| {
                let mask = picture.mask.as_deref().filter(|_| masked).map(concept::content_hash).transpose()?;
                Ok(match mask {
                    Some(mask) => json!([hash, picture.caption, picture.repeats, mask]),
                    None => json!([hash, picture.caption, picture.repeats]),
                })
            };
            contents.map(about).collect()
        };
        let of_each = self.subjects.iter().map(|subject| pictures(subject.concept)).collect::<Result<Vec<_>>>()?;
        let first = &self.subjects[0];
        let mut inputs = json!({
            "base": [&self.model.hash, &self.model.vae_hash, &self.model.text_hash],
            "prediction": self.model.schedule.prediction_type,
            "method": self.method.name,
            "method_settings": self.method_settings,
            "settings": config::decisive(&self.settings),
            "seed": self.context.seed,
            "slot": self.context.slot,
            "block": self.context.block,
            "token": first.trigger.token,
            "class": first.trigger.class_word,
            "template": self.template,
            "pictures": of_each[0],
        });
        // One concept alone has no share: its runs are what they were before there could be several.
        if self.subjects.len() > 1 {
            let about = |(subject, pictures): (&Subject<'_>, &Vec<serde_json::Value>)| {
                let Subject { trigger, repeats, weight, .. } = subject;
                json!([trigger.token, trigger.class_word, repeats, weight, pictures])
            };
            inputs["together"] = self.subjects.iter().zip(&of_each).map(about).collect();
        }
        Ok(safetensors::hex(&Sha256::digest(inputs.to_string().as_bytes())))
    }
}
