//! Settings that go together, by what is wanted and by the memory of the GPU.

use crate::engine::{Error, Result};

#[derive(Clone, Copy, Debug)]
pub struct Preset {
    pub name: &'static str,
    pub title: &'static str,
    pub help: &'static str,
    /// Whether it is about memory: a model smaller than Stable Diffusion fits everywhere and is offered none.
    pub saves_memory: bool,
    /// Changed fields of training.
    pub changes: &'static [(&'static str, &'static str)],
}

/// Those by memory keep a step's four pictures of 512 pixels, and take as many at a time as
/// [`estimate`](super::estimate) lets Stable Diffusion 1.5 in f16 take with attention, feed-forward and projections in well
/// under the card's memory: 3.5, 4.1, 5.6 and 14.6 GB, weights included.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "quick",
        title: "Quick look",
        help: "50 steps: enough to see whether the pictures are understood",
        saves_memory: false,
        changes: &[("steps", "50")],
    },
    Preset {
        name: "usual",
        title: "Usual",
        help: "The defaults: a concept in a few minutes on the starter model",
        saves_memory: false,
        changes: &[],
    },
    Preset {
        name: "thorough",
        title: "Thorough",
        help: "400 steps, falling along a cosine, for concepts with much detail",
        saves_memory: false,
        changes: &[("steps", "400"), ("schedule", "cosine")],
    },
    by_memory("6gb", "6 GB", "For a GPU of 6 GB: 512 pixels, one picture at a time", &AT_ONCE[0]),
    by_memory("8gb", "8 GB", "For a GPU of 8 GB: 512 pixels, two pictures at a time", &AT_ONCE[1]),
    by_memory("12gb", "12 GB", "For a GPU of 12 GB: 512 pixels, four pictures at a time", &AT_ONCE[2]),
    by_memory("24gb", "24 GB", "For a GPU of 24 GB: 512 pixels, two at a time and nothing computed twice", &AT_ONCE[3]),
];

const AT_ONCE: [[(&str, &str); 5]; 4] =
    [changes("1", "4", "on"), changes("2", "2", "on"), changes("4", "1", "on"), changes("2", "2", "off")];

const fn changes(
    batch: &'static str,
    accumulate: &'static str,
    recompute: &'static str,
) -> [(&'static str, &'static str); 5] {
    [
        ("resolution", "512"),
        ("batch", batch),
        ("accumulate", accumulate),
        ("prior_batch", batch),
        ("recompute", recompute),
    ]
}

const fn by_memory(
    name: &'static str,
    title: &'static str,
    help: &'static str,
    changes: &'static [(&'static str, &'static str)],
) -> Preset {
    Preset { name, title, help, saves_memory: true, changes }
}

/// Those of use with a model.
pub fn offered(is_small: bool) -> impl Iterator<Item = &'static Preset> {
    PRESETS.iter().filter(move |preset| !(preset.saves_memory && is_small))
}

/// The row of a name.
pub fn preset(name: &str) -> Result<&'static Preset> {
    PRESETS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = PRESETS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no preset “{name}”"), format!("Choose one of {known}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::field::Settings;
    use crate::engine::train::config::FIELDS;

    #[test]
    fn every_preset_is_valid_and_small_models_are_offered_none_by_memory() {
        for row in PRESETS {
            Settings::new(FIELDS, row.changes.iter().copied()).unwrap();
            assert_eq!(preset(row.name).unwrap().title, row.title);
        }
        assert_eq!(offered(true).map(|row| row.name).collect::<Vec<_>>(), ["quick", "usual", "thorough"]);
        assert_eq!(offered(false).count(), PRESETS.len());
        assert!(preset("5gb").unwrap_err().advice.contains("6gb, 8gb, 12gb, 24gb"));
    }
}
