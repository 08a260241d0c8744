//! Which tools load an adapter file, told from its keys alone.
//!
//! Sources: ComfyUI `comfy/lora.py`, `comfy/weight_adapter/*.py`; A1111 `extensions-builtin/Lora/networks.py`; Forge
//! `backend/patcher/lora.py`; diffusers `loaders/lora_conversion_utils.py`, `loaders/lora_base.py`; kohya `networks/lora.py`.

use serde::Serialize;

use crate::engine::io::lora_file::spelling;
use crate::engine::io::peft;
use crate::engine::io::safetensors::Checkpoint;

/// What a tool makes of a file; of several reasons, the gravest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Loads,
    /// With what is amiss.
    Partly(&'static str),
    Fails(&'static str),
}

pub const TOOLS: [&str; 5] = ["ComfyUI", "A1111", "Forge", "diffusers", "kohya's scripts"];

/// Something that a file may hold, and what each of [`TOOLS`] makes of it.
struct Trait {
    holds: fn(&Keys<'_>) -> bool,
    fates: [Fate; TOOLS.len()],
}

/// The file's keys: as stored, and as layers' parts.
struct Keys<'a> {
    file: &'a Checkpoint,
    parts: Vec<(&'a str, &'static str)>,
}

impl Keys<'_> {
    fn has(&self, wanted: &[&str]) -> bool {
        self.parts.iter().any(|(_, part)| wanted.contains(part))
    }

    fn starts(&self, starts: &[&str]) -> bool {
        self.file.entries().keys().any(|key| starts.iter().any(|start| key.starts_with(start)))
    }

    /// Whether a DoRA's magnitude lies on the output side.
    fn output_magnitude(&self) -> bool {
        self.parts.iter().any(|(key, part)| {
            *part == "magnitude"
                || *part == "dora_scale"
                    && self.file.shape(key).is_ok_and(|shape| shape.first().is_some_and(|&n| n > 1))
        })
    }
}

use Fate::{Fails, Loads, Partly};

const UNKNOWN_NAMES: Fate = Fails("it does not know these names");
const UNKNOWN_KIND: Fate = Fails("it does not know this kind of adapter");
const ATTENTION: Fate = Partly("it leaves the attention layers out, without saying so");

/// In the order of [`TOOLS`].
const TRAITS: &[Trait] = &[
    // diffusers' and PEFT's names.
    Trait {
        holds: |keys| keys.starts(&["unet.", "text_encoder."]),
        fates: [Loads, UNKNOWN_NAMES, Loads, Loads, UNKNOWN_NAMES],
    },
    // Since diffusers 0.20; ComfyUI knows those that hang on the attention processor.
    Trait {
        holds: |keys| {
            let bare = |key: &str| key.starts_with("unet.") && key.contains(".to_") && !key.contains(".processor.");
            keys.parts.iter().any(|(key, _)| bare(key))
        },
        fates: [ATTENTION, UNKNOWN_NAMES, ATTENTION, Loads, UNKNOWN_NAMES],
    },
    // kohya's own OFT.
    Trait {
        holds: |keys| keys.starts(&["oft_unet_"]),
        fates: [UNKNOWN_NAMES, Loads, UNKNOWN_NAMES, UNKNOWN_NAMES, Loads],
    },
    Trait {
        holds: |keys| keys.has(&["alpha"]) && keys.file.metadata().contains_key("lora_adapter_metadata"),
        fates: [Loads, Loads, Loads, Fails("it refuses alphas beside its own header"), Loads],
    },
    Trait {
        holds: |keys| keys.starts(&["diffusion_model.", "text_encoders."]),
        fates: [Loads, UNKNOWN_NAMES, Loads, UNKNOWN_NAMES, UNKNOWN_NAMES],
    },
    Trait {
        holds: |keys| peft::is_weights(keys.file.path()),
        fates: [
            UNKNOWN_NAMES,
            UNKNOWN_NAMES,
            UNKNOWN_NAMES,
            Partly("through PEFT: PeftModel.from_pretrained"),
            UNKNOWN_NAMES,
        ],
    },
    Trait { holds: |keys| keys.has(&["lora_mid"]), fates: [Loads, Loads, Loads, UNKNOWN_KIND, UNKNOWN_KIND] },
    Trait {
        holds: |keys| keys.has(&["hada_w1_a", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a", "diff", "diff_b"]),
        fates: [Loads, Loads, Loads, UNKNOWN_KIND, UNKNOWN_KIND],
    },
    Trait { holds: |keys| keys.has(&["w_norm", "b_norm"]), fates: [Loads, Loads, Loads, UNKNOWN_KIND, UNKNOWN_KIND] },
    Trait {
        holds: |keys| keys.has(&["oft_blocks", "oft_diag"]) && !keys.starts(&["oft_unet_"]),
        fates: [Partly("right at strength 1 only"), Loads, UNKNOWN_KIND, UNKNOWN_KIND, UNKNOWN_KIND],
    },
    Trait {
        holds: |keys| keys.has(&["oft_R", "boft_R", "ia3_l"]),
        fates: [UNKNOWN_KIND, UNKNOWN_KIND, UNKNOWN_KIND, Loads, UNKNOWN_KIND],
    },
    Trait {
        holds: |keys| keys.has(&["on_input"]),
        fates: [UNKNOWN_KIND, Loads, UNKNOWN_KIND, UNKNOWN_KIND, UNKNOWN_KIND],
    },
    Trait {
        holds: |keys| keys.has(&["a1", "b1"]),
        fates: [
            Loads,
            Partly("it reads the older order of the factors only, and no alpha"),
            Loads,
            UNKNOWN_KIND,
            UNKNOWN_KIND,
        ],
    },
    Trait {
        holds: |keys| keys.output_magnitude(),
        fates: [
            Partly("it divides by the norm of the untouched weight"),
            Fails("it takes the magnitude for one of the input side, and says nothing"),
            Partly("it divides by the norm of the untouched weight"),
            Loads,
            UNKNOWN_KIND,
        ],
    },
    Trait {
        holds: |keys| keys.has(&["dora_scale"]),
        fates: [Loads, Loads, Loads, Fails("it leaves the magnitude out"), UNKNOWN_KIND],
    },
    // One such key sends diffusers down another path, which refuses the rest.
    Trait {
        holds: |keys| keys.starts(&["bundle_emb.", "layer_emb."]),
        fates: [Loads, Loads, Loads, Fails("it takes no words inside an adapter: convert it to diffusers"), Loads],
    },
    Trait {
        holds: |keys| keys.starts(&["layer_emb."]),
        fates: [Partly("a word has one vector for all layers there"); TOOLS.len()],
    },
];

/// Each tool with what it makes of an adapter's files.
pub fn loads_in(files: &[Checkpoint]) -> Vec<(&'static str, Fate)> {
    let fates: Vec<_> = files.iter().map(fates).collect();
    let gravest = |tool: usize| fates.iter().map(|of| of[tool]).max().unwrap_or(Loads);
    TOOLS.iter().enumerate().map(|(i, tool)| (*tool, gravest(i))).collect()
}

/// In the order of [`TOOLS`].
fn fates(file: &Checkpoint) -> [Fate; TOOLS.len()] {
    let parts = file.entries().keys().filter_map(|stored| Some((stored.as_str(), spelling::key(stored)?.part)));
    let keys = Keys { file, parts: parts.collect() };
    let held: Vec<&Trait> = TRAITS.iter().filter(|of| (of.holds)(&keys)).collect();
    // Tensors of a method that no other program has.
    let strange = file.entries().keys().any(|stored| spelling::key(stored).is_none() && !stored.contains("_emb."));
    let fate = |tool: usize| {
        let fates = held.iter().map(|of| of.fates[tool]);
        fates.chain(strange.then_some(UNKNOWN_KIND)).max().unwrap_or(Loads)
    };
    std::array::from_fn(fate)
}

impl Fate {
    /// As the end of a line.
    pub fn words(self) -> String {
        match self {
            Self::Loads => "yes".into(),
            Self::Partly(why) => format!("partly: {why}"),
            Self::Fails(why) => format!("no: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::io::safetensors::{Dtype, Tensor, save};

    fn of_keys(keys: &[(&str, &[usize])]) -> [Fate; TOOLS.len()] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let zeros = |shape: &[usize]| Tensor::new(Dtype::F32, shape, &vec![0.0; shape.iter().product()]);
        let tensors: BTreeMap<_, _> = keys.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        fates(&Checkpoint::open(&path).unwrap())
    }

    #[test]
    fn the_gravest_reason_counts() {
        const PAIR: [(&str, &[usize]); 2] =
            [("lora_unet_x.lora_down.weight", &[1, 2]), ("lora_unet_x.lora_up.weight", &[2, 1])];
        assert_eq!(of_keys(&PAIR), [Loads; 5]);
        let with = |more: (&'static str, &'static [usize])| of_keys(&[PAIR[0], PAIR[1], more]);
        assert!(matches!(with(("bundle_emb.<a>.clip_l", &[1, 4])), [Loads, Loads, Loads, Fails(_), Loads]));
        assert!(matches!(with(("lora_unet_y.hada_w1_a", &[1, 1])), [Loads, Loads, Loads, Fails(_), Fails(_)]));
        assert!(matches!(with(("lora_unet_x.dora_scale", &[1, 2])), [Loads, Loads, Loads, Fails(_), Fails(_)]));
        assert!(matches!(
            with(("lora_unet_x.dora_scale", &[2, 1])),
            [Partly(_), Fails(_), Partly(_), Fails(_), Fails(_)]
        ));
        assert!(matches!(with(("lora_unet_y.mola_router", &[1, 1])), [Fails(_), ..]));
        let diffusers = [("unet.a.to_q.lora_A.weight", &[1, 2][..]), ("unet.a.to_q.lora_B.weight", &[2, 1])];
        assert!(matches!(of_keys(&diffusers), [Partly(_), Fails(_), Partly(_), Loads, Fails(_)]));
        let old = [("unet.a.processor.to_q_lora.down.weight", &[1, 2][..])];
        assert!(matches!(of_keys(&old), [Loads, Fails(_), Loads, Loads, Fails(_)]));
        assert!(matches!(
            of_keys(&[("oft_unet_x.oft_blocks", &[1, 2, 2])]),
            [Fails(_), Loads, Fails(_), Fails(_), Loads]
        ));
        let comfy = [("diffusion_model.x.lora_A.weight", &[1, 2][..])];
        assert!(matches!(of_keys(&comfy), [Loads, Fails(_), Loads, Fails(_), Fails(_)]));
    }
}
