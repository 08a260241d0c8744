//! Configurations of other programs: sd-scripts and its window `kohya_ss`, OneTrainer. What maps is taken over; what does
//! not is named, one line each.

mod kohya;
mod onetrainer;

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};

use crate::engine::concept;
use crate::engine::train::configuration::Configuration;
use crate::engine::{Error, Result};

/// A configuration in our words.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The program it was made by.
    pub from: &'static str,
    pub configuration: Configuration,
    /// What could not be taken over, in sentences.
    pub left_out: Vec<String>,
}

/// Reads a configuration, whoever wrote it: the file's ending and its keys tell.
pub fn open(path: &Path) -> Result<Imported> {
    let is_json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    let unreadable = |e: &dyn Display| {
        let advice = "Choose a configuration of sd-scripts (TOML), kohya_ss or OneTrainer (JSON), or one of Triptych";
        Error::new(format!("The configuration cannot be read: {e}"), advice).at(path)
    };
    let object: Map<String, Value> = match is_json {
        true => serde_json::from_str(&text).map_err(|e| unreadable(&e))?,
        false => toml::from_str(&text).map_err(|e: toml::de::Error| unreadable(&e.message()))?,
    };
    let object = flat(object, is_json);
    let has = |names: &[&str]| names.iter().any(|name| object.contains_key(*name));
    match () {
        () if has(&["base_model_name", "output_model_destination", "training_method"]) => {
            Ok(onetrainer::import(Foreign::new("OneTrainer", object)))
        }
        () if has(&["network_module", "network_dim", "pretrained_model_name_or_path", "LoRA_type"]) => {
            let from = if is_json { "kohya_ss" } else { "sd-scripts" };
            Ok(kohya::import(Foreign::new(from, object)))
        }
        () if !is_json => {
            Ok(Imported { from: "Triptych", configuration: Configuration::read(path)?, left_out: Vec::new() })
        }
        () => Err(unreadable(&"its keys are those of no trainer that is known here")),
    }
}

/// sd-scripts passes over the sections of its TOML files.
fn flat(object: Map<String, Value>, is_json: bool) -> Map<String, Value> {
    if is_json {
        return object;
    }
    let mut flat = Map::new();
    for (name, value) in object {
        match value {
            Value::Object(section) => flat.extend(section),
            value => {
                flat.insert(name, value);
            }
        }
    }
    flat
}

/// A configuration that is being taken over, key by key.
struct Foreign {
    rest: Map<String, Value>,
    imported: Imported,
}

impl Foreign {
    fn new(from: &'static str, rest: Map<String, Value>) -> Self {
        Self { rest, imported: Imported { from, configuration: Configuration::default(), left_out: Vec::new() } }
    }

    /// Takes a key that says something: not nothing, zero, no or an empty text.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.rest.remove(key).filter(says_something)
    }

    /// A number, also one in quotes, as forms write them.
    fn number(&mut self, key: &str) -> Option<f64> {
        number(&self.take(key)?)
    }

    /// A whole number of at least 1.
    fn count(&mut self, key: &str) -> Option<usize> {
        self.number(key).filter(|x| *x >= 1.0).map(|x| x as usize)
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.take(key)?.as_str().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn flag(&mut self, key: &str) -> bool {
        self.take(key).is_some()
    }

    /// Takes a number over as it is.
    fn copy(&mut self, key: &str, field: &str) {
        if let Some(x) = self.number(key) {
            self.set(field, x);
        }
    }

    /// The same where nothing, or 0, is itself an answer.
    fn copy_with_zero(&mut self, key: &str, field: &str) {
        if let Some(value) = self.rest.remove(key) {
            self.set(field, number(&value).unwrap_or(0.0));
        }
    }

    fn set(&mut self, field: &str, value: impl Display) {
        self.imported.configuration.set(field, &value.to_string());
    }

    fn miss(&mut self, sentence: impl Into<String>) {
        self.imported.left_out.push(sentence.into());
    }

    /// Passes over what changes no result here: where files lie, how fast it goes, what is logged.
    fn ignore(&mut self, keys: &[&str]) {
        self.rest.retain(|key, _| !keys.contains(&key.as_str()));
    }

    /// Takes the schedule of learning rates over.
    fn schedule(&mut self, key: &str) {
        let said = self.text(key);
        match said.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("constant" | "constant_with_warmup") => self.set("schedule", "constant"),
            Some("cosine") => self.set("schedule", "cosine"),
            Some("linear") => {
                self.set("schedule", "linear");
                self.miss(format!("{key} = linear stays full for the first half of the steps here"));
            }
            Some(other) => {
                self.set("schedule", "cosine");
                self.miss(format!("{key} = {other}: cosine is used"));
            }
        }
    }

    /// Takes learning rates over, where they are those of an AdamW. Others, such as Prodigy's of 1, would tear it apart.
    fn rates(&mut self, optimizer: &str, unet: Option<f64>, text: Option<f64>) {
        let name = optimizer.to_lowercase().replace('_', "");
        if !["", "adamw", "adamw8bit", "adamwadv", "pagedadamw", "pagedadamw8bit"].contains(&&*name) {
            return self.miss(format!("The optimiser {optimizer}: AdamW is used, at rates chosen by the method"));
        }
        for (field, rate) in [("lr", unet), ("text_lr", text)] {
            if let Some(rate) = rate {
                self.set(field, rate);
            }
        }
    }

    /// Steps of so many epochs at `at_once` pictures a step; where the pictures cannot be counted, that is said.
    fn epochs(&mut self, epochs: usize, at_once: usize) -> Option<usize> {
        let Configuration { concept, repeats, together, .. } = &self.imported.configuration;
        let first = concept.iter().map(|folder| (folder, repeats.unwrap_or(1)));
        let folders = first.chain(together.iter().map(|other| (&other.concept, other.repeats)));
        let shown = folders
            .map(|(folder, repeats)| {
                let images = concept::open(folder).ok()?.images;
                let once: usize = images.iter().map(|picture| picture.repeats).sum();
                once.checked_mul(repeats)
            })
            .try_fold(0_usize, |sum, shown| sum.checked_add(shown?))
            .filter(|shown| *shown > 0);
        if shown.is_none() {
            self.miss(format!("{epochs} epochs: the pictures cannot be counted here; set steps by hand"));
        }
        Some(epochs.saturating_mul(shown?.div_ceil(at_once.max(1))))
    }

    /// Names everything that is left and says something.
    fn finish(mut self) -> Imported {
        for (key, value) in std::mem::take(&mut self.rest) {
            if says_something(&value) && !matches!(value, Value::Object(_) | Value::Array(_)) {
                self.miss(format!("{key} = {value} has no counterpart"));
            } else if says_something(&value) {
                self.miss(format!("{key} has no counterpart"));
            }
        }
        self.imported
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !["", "0", "None", "none", "false", "False"].contains(&text.trim()),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(true) => true,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// `512`, `"512,768"`, `[512, 512]`: its whole numbers; none where it is written otherwise.
fn sides(value: &Value) -> Vec<usize> {
    let numbers: Option<Vec<f64>> = match value {
        Value::Array(list) => list.iter().map(number).collect(),
        Value::String(text) => text.split(',').map(|part| part.trim().parse().ok()).collect(),
        value => number(value).map(|side| vec![side]),
    };
    numbers.unwrap_or_default().into_iter().map(|side| side as usize).collect()
}

/// A word for a concept, from what another program calls it.
fn token(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_whitespace() { '-' } else { c }).collect();
    if name.starts_with('<') && name.ends_with('>') { name } else { format!("<{name}>") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter;
    use crate::engine::field::Settings;
    use crate::engine::train::config::FIELDS;

    /// Every field is one of the method's or of training's, and takes its value.
    pub(super) fn assert_valid(method: &str, changes: &[(String, String)]) {
        let row = adapter::method(method).unwrap();
        for (name, text) in changes {
            let fields = if row.fields.iter().any(|field| field.name == name) { row.fields } else { FIELDS };
            Settings::new(fields, [(name.as_str(), text.as_str())]).unwrap();
        }
    }

    #[test]
    fn numbers_come_as_forms_write_them() {
        assert_eq!(number(&"1e-4".into()), Some(1e-4));
        assert_eq!(sides(&"512,768".into()), [512, 768]);
        assert_eq!(sides(&serde_json::json!([640, 640])), [640, 640]);
        assert!(sides(&"512x768".into()).is_empty());
        assert!(!says_something(&"None".into()) && says_something(&"adamw".into()));
    }

    #[test]
    fn what_nobody_wrote_is_refused_and_our_own_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        assert!(open(&write("a.json", "{\"colour\": 3}")).unwrap_err().what.contains("no trainer"));
        assert!(open(&write("b.json", "{")).unwrap_err().what.contains("cannot be read"));
        let ours = open(&write("c.toml", "rank = 4\nseed = 3")).unwrap();
        assert_eq!((ours.from, ours.configuration.seed), ("Triptych", Some(3)));
    }
}
