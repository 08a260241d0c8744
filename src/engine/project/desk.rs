//! The mixing desk: how strongly each adapter is heard, and how they are merged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::adapter::mount::Strength;

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
}
