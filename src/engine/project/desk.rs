//! The mixing desk: how strongly each adapter is heard, and how they are merged.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{named, placed};
use crate::engine::adapter::mount::Strength;
use crate::engine::io::atomic;
use crate::engine::{Error, Result};

/// Furthest a fader goes either way.
pub const FURTHEST: f32 = 2.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Desk {
    /// Merge method.
    pub method: String,
    /// Its fields that differ from their defaults.
    pub changes: BTreeMap<String, String>,
    #[serde(rename = "fader")]
    pub faders: Vec<Fader>,
}

/// One adapter on the desk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fader {
    /// As the project names it.
    pub file: PathBuf,
    #[serde(default = "one")]
    pub strength: f32,
    #[serde(default)]
    pub muted: bool,
    #[serde(default)]
    pub solo: bool,
    /// Multipliers of single blocks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<String, f32>,
}

impl Default for Desk {
    fn default() -> Self {
        Self { method: "sum".into(), changes: BTreeMap::new(), faders: Vec::new() }
    }
}

impl Fader {
    pub fn new(file: PathBuf) -> Self {
        Self { file, strength: 1.0, muted: false, solo: false, blocks: BTreeMap::new() }
    }
}

impl Desk {
    /// The strength that `fader` has in the mix: nothing while it is muted, or another plays solo and it does not.
    pub fn heard(&self, fader: &Fader) -> Strength {
        let others_solo = self.faders.iter().any(|fader| fader.solo);
        let silent = fader.muted || (others_solo && !fader.solo);
        let strength = if silent { 0.0 } else { fader.strength };
        Strength { blocks: fader.blocks.clone(), ..Strength::uniform(strength) }
    }

    /// The first fader that stands nowhere: TOML can write nan and inf.
    pub(super) fn off_the_scale(&self) -> Option<&Fader> {
        self.faders.iter().find(|fader| !fader.blocks.values().chain([&fader.strength]).all(|by| by.is_finite()))
    }
}

impl Desk {
    /// Writes the desk as a recipe: faders and method, with files named relative to it where they lie beneath it. The
    /// faders' files are absolute.
    pub fn save_recipe(&self, path: &Path) -> Result<()> {
        let mut desk = self.clone();
        desk.faders.iter_mut().for_each(|fader| fader.file = named(&fader.file, path));
        let text = toml::to_string(&desk)
            .map_err(|e| Error::new(format!("The recipe cannot be written ({e})"), "Report this").at(path))?;
        atomic::write(path, |out| out.write_all(text.as_bytes()))
    }

    /// The desk of a recipe, its files absolute.
    pub fn open_recipe(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
        let mut desk: Self = toml::from_str(&text).map_err(|e| {
            Error::new(format!("This is not a recipe ({})", e.message()), "Choose one that “Save recipe” wrote")
                .at(path)
        })?;
        if desk.faders.is_empty() {
            return Err(Error::new("The recipe names no adapter", "Choose one that “Save recipe” wrote").at(path));
        }
        if let Some(fader) = desk.off_the_scale() {
            let what = format!("The strength of {} in this recipe is not a number", fader.file.display());
            return Err(Error::new(what, "Write one such as 0.8").at(path));
        }
        desk.faders.iter_mut().for_each(|fader| fader.file = placed(&fader.file, path));
        Ok(desk)
    }
}

fn one() -> f32 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solo_silences_the_others_and_mute_wins() {
        let mut desk = Desk { faders: ["a", "b", "c"].map(|file| Fader::new(file.into())).to_vec(), ..Desk::default() };
        let heard = |desk: &Desk| desk.faders.iter().map(|fader| desk.heard(fader).unet).collect::<Vec<_>>();
        assert_eq!(heard(&desk), [1.0; 3]);
        desk.faders[1].muted = true;
        assert_eq!(heard(&desk), [1.0, 0.0, 1.0]);
        desk.faders[2].solo = true;
        assert_eq!(heard(&desk), [0.0, 0.0, 1.0]);
        desk.faders[2].muted = true;
        assert_eq!(heard(&desk), [0.0; 3]);
    }

    #[test]
    fn a_recipe_travels_with_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        let mut fader = Fader::new(folder.path().join("a.safetensors"));
        (fader.strength, fader.muted) = (-0.25, true);
        let desk = Desk { method: "ties".into(), faders: vec![fader], ..Desk::default() };
        desk.save_recipe(&path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("file = \"a.safetensors\""));
        assert_eq!(Desk::open_recipe(&path).unwrap(), desk);
        std::fs::write(&path, "block = 8").unwrap();
        assert!(Desk::open_recipe(&path).unwrap_err().what.contains("no adapter"));
    }
}
