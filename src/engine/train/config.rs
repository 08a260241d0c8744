//! Settings of a training run, beside those of its method.

use crate::engine::adapter::{Method, target};
use crate::engine::concept::Fit;
use crate::engine::concept::latents::Preparation;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::io::Dtype;
use crate::engine::model::StableDiffusion;
use crate::engine::model::unet::MOST_PIXELS;
use crate::engine::{Error, Result};

pub const FIELDS: &[Field] = &[
    Field {
        name: "steps",
        title: "Steps",
        help: "How often the adapter is corrected",
        unit: "steps",
        default: "150",
        kind: Kind::Integer { min: 1, max: 10_000_000 },
    },
    Field {
        name: "batch",
        title: "Batch",
        help: "Pictures looked at in each step",
        unit: "pictures",
        default: "4",
        kind: Kind::Integer { min: 1, max: 1024 },
    },
    Field {
        name: "lr",
        title: "Learning rate",
        help: "How far each step moves the adapter; 0 chooses by the method and the model's size",
        unit: "",
        default: "0",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
    Field {
        name: "token_lr",
        title: "Token rate",
        help: "How far each step moves the trigger token; 0 chooses by the model's size",
        unit: "",
        default: "0",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
    Field {
        name: "decay",
        title: "Weight decay",
        help: "Pull of the adapter towards zero",
        unit: "",
        default: "0.01",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
    Field {
        name: "schedule",
        title: "Rate schedule",
        help: "linear: full rate for the first half, then down to nothing. cosine: down along a cosine. constant: never down",
        unit: "",
        default: "linear",
        kind: Kind::Choice(&["linear", "cosine", "constant"]),
    },
    Field {
        name: "warmup",
        title: "Warm-up",
        help: "Steps over which the rates rise from zero",
        unit: "steps",
        default: "10",
        kind: Kind::Integer { min: 0, max: 1_000_000 },
    },
    Field {
        name: "clip",
        title: "Gradient clipping",
        help: "Largest joint length of all gradients; 0 does not clip",
        unit: "",
        default: "1",
        kind: Kind::Number { min: 0.0, max: 1e6 },
    },
    Field {
        name: "min_snr",
        title: "Min-SNR γ",
        help: "Evens out the pull of clean and noisy steps (5 is usual); 0 does not",
        unit: "",
        default: "0",
        kind: Kind::Number { min: 0.0, max: 100.0 },
    },
    Field {
        name: "prior",
        title: "Prior preservation",
        help: "Weight of keeping the model's answers to other prompts; 0 lets the concept leak into every prompt, and merging then fails",
        unit: "",
        default: "2",
        kind: Kind::Number { min: 0.0, max: 100.0 },
    },
    Field {
        name: "prior_batch",
        title: "Prior pictures",
        help: "Pictures per step on which other prompts are kept; 0 takes as many as the batch",
        unit: "pictures",
        default: "0",
        kind: Kind::Integer { min: 0, max: 1024 },
    },
    Field {
        name: "prior_prompts",
        title: "Prior prompts",
        help: "What else must stay as it is, separated by semicolons; empty takes the class word and everyday things",
        unit: "",
        default: "",
        kind: Kind::Text,
    },
    Field {
        name: "strangers",
        title: "Strange words",
        help: "Share of the prior pictures whose prompt has a made-up word in the token's place: the concept learns to answer to its own token alone, which is what keeps merged concepts apart",
        unit: "",
        default: "0.5",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
    Field {
        name: "targets",
        title: "Layers",
        help: "Which layers change: groups or patterns, separated by commas (`triptych methods` lists the groups)",
        unit: "",
        default: target::DEFAULT,
        kind: Kind::Text,
    },
    Field {
        name: "vectors",
        title: "Token vectors",
        help: "How many vectors the trigger token stands for",
        unit: "vectors",
        default: "1",
        kind: Kind::Integer { min: 1, max: 16 },
    },
    Field {
        name: "flip",
        title: "Mirror",
        help: "Adds each picture's mirror image; turn off for lettering and one-sided subjects",
        unit: "",
        default: "true",
        kind: Kind::Flag,
    },
    Field {
        name: "fit",
        title: "Fit",
        help: "pad: the whole picture with background beside it. crop: the middle of the picture, filling the frame",
        unit: "",
        default: "pad",
        kind: Kind::Choice(&["pad", "crop"]),
    },
    Field {
        name: "background",
        title: "Background",
        help: "Colour behind transparency, as RRGGBB",
        unit: "",
        default: "ffffff",
        kind: Kind::Text,
    },
    Field {
        name: "resolution",
        title: "Resolution",
        help: "Side of the training pictures; 0 takes the model's own",
        unit: "pixels",
        default: "0",
        kind: Kind::Integer { min: 0, max: 4096 },
    },
    Field {
        name: "save_every",
        title: "Save every",
        help: "Steps between saved states; 0 saves by time alone",
        unit: "steps",
        default: "0",
        kind: Kind::Integer { min: 0, max: 1_000_000 },
    },
    Field {
        name: "save_minutes",
        title: "Save after",
        help: "Time between saved states: what a crash costs at most",
        unit: "minutes",
        default: "2",
        kind: Kind::Number { min: 0.0, max: 1440.0 },
    },
    Field {
        name: "dtype",
        title: "Number format",
        help: "How exactly the file keeps its numbers; f16 halves the size",
        unit: "",
        default: "f32",
        kind: Kind::Choice(&["f32", "f16", "bf16"]),
    },
];

/// Everyday prompts for prior preservation; the class word takes half of all draws.
const PRIOR_WORDS: [&str; 8] =
    ["man walking", "woman", "grinning face", "boy", "girl", "old man", "robot", "automobile"];

#[derive(Clone, Debug)]
pub struct Config {
    pub steps: usize,
    pub batch: usize,
    pub lr: f64,
    pub token_lr: f64,
    pub decay: f64,
    schedule: Decay,
    warmup: usize,
    pub clip: f64,
    pub min_snr: Option<f64>,
    pub prior: f64,
    pub prior_batch: usize,
    /// How many of the prior's pictures are shown under a made-up word.
    pub strangers: usize,
    prior_prompts: String,
    pub targets: String,
    pub vectors: usize,
    pub preparation: Preparation,
    pub save_every: usize,
    pub save_minutes: f64,
    pub dtype: Dtype,
}

#[derive(Clone, Copy, Debug)]
enum Decay {
    Linear,
    Cosine,
    Constant,
}

impl Config {
    /// Checked settings; what they leave open is chosen for `method` and `model`.
    pub fn new(settings: &Settings, method: &Method, model: &StableDiffusion) -> Result<Self> {
        let small = is_small(model);
        let or = |name: &str, for_small: f64, for_large: f64| match settings.number(name) {
            0.0 if small => for_small,
            0.0 => for_large,
            rate => rate,
        };
        let factor = model.vae.factor() << (model.unet.config.block_out_channels.len() - 1);
        let size = match settings.integer("resolution") {
            0 => model.native_size(),
            side if (side / model.vae.factor()).pow(2) > MOST_PIXELS => {
                return Err(Error::usage(
                    format!("resolution cannot be “{side}”"),
                    format!(
                        "It can be at most {} for this model",
                        MOST_PIXELS.isqrt() * model.vae.factor() / factor * factor
                    ),
                ));
            }
            side if side.is_multiple_of(factor) => [side; 2],
            side => {
                return Err(Error::usage(
                    format!("resolution cannot be “{side}”"),
                    format!("It must be a multiple of {factor} for this model"),
                ));
            }
        };
        let batch = settings.integer("batch");
        let prior_batch = match settings.integer("prior_batch") {
            0 => batch,
            n => n.min(batch),
        };
        Ok(Self {
            steps: settings.integer("steps"),
            batch,
            lr: or("lr", 5e-3 * method.rate, 1e-4 * method.rate),
            token_lr: or("token_lr", 2e-2, 1e-3),
            decay: settings.number("decay"),
            schedule: match settings.text("schedule") {
                "cosine" => Decay::Cosine,
                "constant" => Decay::Constant,
                _ => Decay::Linear,
            },
            warmup: settings.integer("warmup"),
            clip: settings.number("clip"),
            min_snr: Some(settings.number("min_snr")).filter(|&gamma| gamma > 0.0),
            prior: settings.number("prior"),
            strangers: (settings.number("strangers") * prior_batch as f64) as usize,
            prior_batch,
            prior_prompts: settings.text("prior_prompts").to_owned(),
            targets: settings.text("targets").to_owned(),
            vectors: settings.integer("vectors"),
            preparation: Preparation {
                size,
                background: colour(settings.text("background"))?,
                fit: if settings.text("fit") == "crop" { Fit::Crop } else { Fit::Pad },
                flip: settings.flag("flip"),
            },
            save_every: settings.integer("save_every"),
            save_minutes: settings.number("save_minutes"),
            dtype: match settings.text("dtype") {
                "f16" => Dtype::F16,
                "bf16" => Dtype::BF16,
                _ => Dtype::F32,
            },
        })
    }

    /// What the rates are multiplied by at `step`, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        let warm = if self.warmup == 0 { 1.0 } else { ((step + 1) as f64 / self.warmup as f64).min(1.0) };
        let (step, total) = (step as f64, self.steps as f64);
        let rest = match self.schedule {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * step / total).cos()),
            // A twentieth at the end: the last steps still do something.
            Decay::Linear if step >= total / 2.0 => ((total - step) / (total / 2.0)).max(0.05),
            Decay::Linear | Decay::Constant => 1.0,
        };
        warm * rest
    }

    /// Prompts whose answers are kept, in the shape of the model's captions, with how often each is drawn.
    pub fn prior_prompts(&self, template: &str, class_word: &str) -> Vec<String> {
        let words: Vec<&str> = match self.prior_prompts.trim() {
            "" if class_word.is_empty() => PRIOR_WORDS.to_vec(),
            "" => [&[class_word; PRIOR_WORDS.len()][..], &PRIOR_WORDS].concat(),
            list => list.split(';').map(str::trim).filter(|word| !word.is_empty()).collect(),
        };
        words.into_iter().map(|word| plain_caption(template, word)).collect()
    }
}

/// The model's caption template without the token: `a 3d emoji of robot`.
pub fn plain_caption(template: &str, class_word: &str) -> String {
    let text = template.replace("{token}", "").replace("{class}", class_word);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Models narrower than Stable Diffusion learn at higher rates and share narrower slots.
pub fn is_small(model: &StableDiffusion) -> bool {
    model.unet.config.block_out_channels[0] < 320
}

fn colour(text: &str) -> Result<[u8; 3]> {
    let digits = text.trim_start_matches('#');
    let byte = |i: usize| digits.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    match (digits.len(), byte(0), byte(1), byte(2)) {
        (6, Some(r), Some(g), Some(b)) => Ok([r, g, b]),
        _ => Err(Error::usage(
            format!("background cannot be “{text}”"),
            "It must be six hexadecimal digits, such as ffffff",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_parse() {
        assert_eq!(colour("#0080ff").unwrap(), [0, 128, 255]);
        for wrong in ["", "fff", "gggggg", "ééé"] {
            assert!(colour(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn plain_captions_lose_the_token() {
        assert_eq!(plain_caption("a 3d emoji of {token} {class}", "robot"), "a 3d emoji of robot");
    }

    #[test]
    fn defaults_of_every_field_are_valid() {
        Settings::new(FIELDS, []).unwrap();
    }
}
