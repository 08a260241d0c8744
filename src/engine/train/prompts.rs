//! The pictures of a concept as text: what a run remembers of them, and the prompts they are shown under.

use crate::engine::Result;
use crate::engine::concept::{self, Picture, Trigger};
use crate::engine::model::StableDiffusion;
use crate::engine::model::tokenizer::{Encoded, Word};
use crate::engine::train::config::plain_caption;

/// How captions are read.
#[derive(Clone, Copy)]
pub struct Captions<'a> {
    /// How one reads where a picture has none: `a 3d emoji of {token} {class}`.
    pub template: &'a str,
    /// The word that is taught; none where the adapter brings no word.
    pub trigger: Option<&'a Trigger>,
    /// All words that stand for vectors.
    pub words: &'a [Word],
    /// What the pictures show where no trigger says so.
    pub class_word: &'a str,
}

impl Captions<'_> {
    /// The prompt of a picture's own caption, or of the template.
    pub fn prompt(&self, model: &StableDiffusion, caption: Option<&str>) -> Result<Encoded> {
        let text = match (self.trigger, caption) {
            (Some(trigger), caption) => concept::caption(caption, self.template, trigger),
            (None, Some(caption)) => caption.to_owned(),
            (None, None) => plain_caption(self.template, self.class_word),
        };
        model.tokenizer.encode(&text, self.words)
    }

    /// The prompt of every picture.
    pub fn prompts(&self, model: &StableDiffusion, pictures: &[Picture]) -> Result<Vec<Encoded>> {
        pictures.iter().map(|picture| self.prompt(model, picture.caption.as_deref())).collect()
    }
}

/// Each picture by its content, beside itself.
pub fn contents(pictures: &[Picture]) -> Result<Vec<(String, &Picture)>> {
    pictures.iter().map(|picture| Ok((concept::content_hash(&picture.path)?, picture))).collect()
}
