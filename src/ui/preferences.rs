//! What belongs to the person, not to a project: looks, recent projects, hints already read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::io::atomic;
use crate::engine::model::Precision;
use crate::engine::{Error, Result};

const MOST_RECENT: usize = 8;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preferences {
    /// `dark`, `light`, or `system`.
    pub theme: String,
    pub zoom: f32,
    pub recent: Vec<PathBuf>,
    pub hints_read: BTreeSet<String>,
    /// What models are held as.
    pub precision: Precision,
    /// Measured, by device, model, method and shape of a step.
    pub step_seconds: BTreeMap<String, f64>,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            theme: "dark".into(),
            zoom: 1.0,
            recent: Vec::new(),
            hints_read: BTreeSet::new(),
            precision: Precision::default(),
            step_seconds: BTreeMap::new(),
        }
    }
}

impl Preferences {
    /// What cannot be read is taken for the default: looks are not worth a refusal.
    pub fn open(path: &Path) -> Self {
        std::fs::read_to_string(path).ok().and_then(|text| toml::from_str(&text).ok()).unwrap_or_default()
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self)
            .map_err(|e| Error::new(format!("The preferences cannot be written ({e})"), "Report this").at(path))?;
        atomic::write(path, |out| out.write_all(text.as_bytes()))
    }

    pub fn opened(&mut self, project: &Path) {
        self.recent.retain(|path| path != project);
        self.recent.insert(0, project.to_path_buf());
        self.recent.truncate(MOST_RECENT);
    }
}
