//! Everything a training is asked, as one readable TOML file: `triptych train --config F.toml` needs no other word.
//!
//! ```toml
//! model = "starter"
//! concept = "pictures/robot"
//! token = "<sks>"
//! class = "robot"
//! method = "orthogonal"
//! seed = 3
//! out = "robot.safetensors"
//! rank = 4
//! steps = 400
//!
//! # Taught in the same run, into the same file:
//! [[together]]
//! concept = "pictures/house"
//! token = "<house>"
//! ```

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::io::atomic;
use crate::engine::{Error, Result, field};

/// What is left open is chosen, or told on the command line. Paths are as they would be typed there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// `starter`, a folder in diffusers layout, or a single file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Folder of pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concept: Option<PathBuf>,
    /// Folder with a folder of pictures for each class, where a classifier is taught.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The adapter file to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stamp: bool,
    /// Changed fields of the method and of training.
    #[serde(flatten)]
    pub fields: toml::Table,
    /// Further concepts of the same adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Together>,
}

/// A further concept that is taught in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// Folder of pictures.
    pub concept: PathBuf,
    pub token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repeats: usize,
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub weight: f32,
}

pub fn one() -> usize {
    1
}

pub fn whole() -> f32 {
    1.0
}

pub fn is_one(repeats: &usize) -> bool {
    *repeats == 1
}

pub fn is_whole(weight: &f32) -> bool {
    weight.total_cmp(&whole()).is_eq()
}

impl Configuration {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
        let configuration: Self = toml::from_str(&text).map_err(|e| {
            Error::new(format!("The configuration cannot be read: {}", e.message()), "Write lines such as rank = 4")
                .at(path)
        })?;
        configuration.changes().map_err(|e| e.at(path))?;
        Ok(configuration)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.text()?;
        atomic::write(path, |out| out.write_all(text.as_bytes()))
    }

    /// As the file has it.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| {
            Error::new(
                format!("The configuration cannot be written ({e})"),
                "Choose a seed below 9 223 372 036 854 775 808, and folders whose names are plain text",
            )
        })
    }

    /// Each field as the user would type it.
    pub fn changes(&self) -> Result<Vec<(String, String)>> {
        field::changes(&self.fields)
    }

    /// Says a field anew, as the user would type it.
    pub fn set(&mut self, name: &str, text: &str) {
        self.fields.insert(name.into(), field::plain(text));
    }

    /// What `over` says counts; the rest stays.
    #[must_use]
    pub fn overridden_by(mut self, over: Self) -> Self {
        self.fields.extend(over.fields);
        Self {
            model: over.model.or(self.model),
            concept: over.concept.or(self.concept),
            data: over.data.or(self.data),
            token: over.token.or(self.token),
            class: over.class.or(self.class),
            repeats: over.repeats.or(self.repeats),
            weight: over.weight.or(self.weight),
            together: if over.together.is_empty() { self.together } else { over.together },
            method: over.method.or(self.method),
            slot: over.slot.or(self.slot),
            project: over.project.or(self.project),
            seed: over.seed.or(self.seed),
            out: over.out.or(self.out),
            stamp: over.stamp || self.stamp,
            fields: self.fields,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter::METHODS;
    use crate::engine::train::config::FIELDS;

    #[test]
    fn a_file_reads_back_and_the_later_word_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let mut first = Configuration {
            concept: Some("a robot".into()),
            seed: Some(7),
            method: Some("lora".into()),
            ..Configuration::default()
        };
        for (name, text) in [("lr", "1e-3"), ("rank", "4"), ("flip", "false"), ("background", "000000")] {
            first.set(name, text);
        }
        first.write(&path).unwrap();
        let read = Configuration::read(&path).unwrap();
        assert_eq!(read, first);
        let changes = read.changes().unwrap();
        assert!(changes.contains(&("lr".into(), "1e-3".into())) && changes.contains(&("rank".into(), "4".into())));
        let mut over = Configuration { seed: Some(8), ..Configuration::default() };
        over.set("rank", "2");
        let both = read.overridden_by(over);
        assert_eq!(
            (both.seed, both.method.as_deref(), both.fields["rank"].as_integer()),
            (Some(8), Some("lora"), Some(2))
        );
        std::fs::write(&path, "[rank]\nof = 4").unwrap();
        assert!(Configuration::read(&path).unwrap_err().what.contains("not a plain value"));
    }

    /// Or a file could not say both.
    #[test]
    fn no_field_is_called_like_a_flag() {
        let flags = [
            "model", "concept", "data", "token", "class", "repeats", "weight", "method", "slot", "project", "seed",
            "out", "stamp", "together",
        ];
        let of_methods = METHODS.iter().flat_map(|row| row.fields);
        for field in FIELDS.iter().chain(of_methods) {
            assert!(!flags.contains(&field.name), "{}", field.name);
        }
    }
}
