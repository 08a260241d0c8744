//! What a model is made of, whichever way its files hold it: a folder in diffusers layout, or one file.

use std::thread::{self, ScopedJoinHandle};

use crate::engine::io::{Checkpoint, Folder, detect};
use crate::engine::model::sd::{ScheduleConfig, TEXT_WEIGHTS, WEIGHTS};
use crate::engine::model::tokenizer::{self, Tokenizer};
use crate::engine::model::{clip, single_file, unet, vae};
use crate::engine::{Error, Result};

/// Networks that can be loaded, their tensors under our names.
pub struct Parts {
    pub text: (clip::Config, Checkpoint),
    pub unet: (unet::Config, Checkpoint),
    pub vae: (vae::Config, Checkpoint),
    /// In SDXL.
    pub second: Option<SecondText>,
    pub schedule: ScheduleConfig,
    /// Where tokenizer and README may lie.
    pub beside: Folder,
    /// The word that fills prompts up, where no tokenizer beside it says so.
    pub pad: Option<&'static str>,
    /// Whether they came in one file. Its vocabulary, where none lies beside it, is CLIP's, cut to what the text encoder knows.
    pub is_single: bool,
}

/// SDXL's second text encoder.
pub struct SecondText {
    pub config: clip::Config,
    pub file: Checkpoint,
    /// The word that fills its prompts up, where that is told.
    pub pad: Option<String>,
}

/// SHA-256 of each network's tensors, computed on threads of their own while the networks are loaded.
pub struct Hashes<'scope>(Vec<ScopedJoinHandle<'scope, String>>);

impl Parts {
    /// What is no model of the families of SD 1.x, SD 2.x and SDXL is refused by the name of what it is.
    pub fn open(folder: &Folder) -> Result<Self> {
        if let Folder::Disk(path) = folder {
            detect::detect(path)?.must_be_model(path)?;
            if path.is_file() {
                return single_file::open(path);
            }
        }
        let schedule = "scheduler/scheduler_config.json";
        let second = || -> Result<SecondText> {
            Ok(SecondText {
                config: folder.json("text_encoder_2/config.json")?,
                file: folder.checkpoint("text_encoder_2", TEXT_WEIGHTS)?,
                pad: tokenizer::pad_token(folder, "tokenizer_2"),
            })
        };
        Ok(Self {
            text: (folder.json("text_encoder/config.json")?, folder.checkpoint("text_encoder", TEXT_WEIGHTS)?),
            unet: (folder.json("unet/config.json")?, folder.checkpoint("unet", WEIGHTS)?),
            vae: (folder.json("vae/config.json")?, folder.checkpoint("vae", WEIGHTS)?),
            second: folder.has("text_encoder_2/config.json").then(second).transpose()?,
            schedule: if folder.has(schedule) { folder.json(schedule)? } else { ScheduleConfig::default() },
            beside: folder.clone(),
            pad: None,
            is_single: false,
        })
    }

    /// The tokenizer beside it, or CLIP's, for prompts of `length` ids and a text encoder that knows `vectors` of them.
    pub fn tokenizer(&self, length: usize, vectors: usize) -> Result<Tokenizer> {
        let mut tokenizer = match self.beside.has("tokenizer/vocab.json") {
            true => Tokenizer::open(&self.beside, length)?,
            // CLIP's merges are sorted: who knows fewer words knows its first ones.
            false if self.is_single => Tokenizer::clip_cut(length, vectors)?,
            false => Tokenizer::clip(length)?,
        };
        if tokenizer::pad_token(&self.beside, "tokenizer").is_none() {
            tokenizer.fill_with(self.pad);
        }
        let words = tokenizer.words();
        if words > vectors {
            return Err(Error::new(
                format!("The vocabulary has {words} entries, the text encoder knows {vectors}"),
                "Put the model's own tokenizer (vocab.json and merges.txt) into its folder",
            )
            .at(self.beside.path().join("tokenizer")));
        }
        Ok(tokenizer)
    }
}

impl<'scope> Hashes<'scope> {
    /// Reading gigabytes a second time costs seconds; beside the loading it costs a core that would idle.
    pub fn begin<'env>(
        scope: &'scope thread::Scope<'scope, 'env>,
        files: impl Iterator<Item = &'env Checkpoint>,
    ) -> Self {
        Self(files.map(|file| scope.spawn(|| file.tensor_hash())).collect())
    }

    /// In the order of the files.
    pub fn finish(self) -> Vec<String> {
        self.0.into_iter().map(|thread| thread.join().expect("a hash cannot fail")).collect()
    }
}
