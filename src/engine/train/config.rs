//! Settings of a training run, beside those of its method.

use crate::engine::adapter::Method;
use crate::engine::concept::augment::Changes;
use crate::engine::concept::mask::Mask;
use crate::engine::concept::{Fit, Shape, Views};
use crate::engine::diffusion::Schedule;
use crate::engine::diffusion::loss::{self, Measure};
use crate::engine::field::Settings;
use crate::engine::io::Dtype;
use crate::engine::model::unet::MOST_PIXELS;
use crate::engine::model::{Part, StableDiffusion};
use crate::engine::{Error, Result};

pub use crate::engine::train::fields::FIELDS;
use crate::engine::train::order::Balance;

/// Fields that decide what is told and kept on the way and change no number: a file does not mention them, and a run can
/// be resumed with others.
const OBSERVING: [&str; 7] =
    ["keep_every", "keep_best", "keep_last", "validate_every", "spectrum_every", "sample_every", "sample_prompts"];

/// Fields that came after the first files. At their defaults they are not recorded, so that the bytes and states of
/// runs that do not use them stay what they were.
const LATER: [&str; 25] = [
    "held_out",
    "recompute",
    "debiased",
    "loss",
    "noise_offset",
    "accumulate",
    "ema",
    "up_rate_ratio",
    "text_lr",
    "patience",
    "resolutions",
    "upscale",
    "variations",
    "jitter",
    "rotate",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "mask",
    "unmasked_weight",
    "mask_normalise",
    "concept_balance",
    "clip_skip",
    "per_layer",
];

/// Everyday prompts for prior preservation; the class word takes half of all draws.
const PRIOR_WORDS: [&str; 8] =
    ["man walking", "woman", "grinning face", "boy", "girl", "old man", "robot", "automobile"];

#[derive(Clone, Debug)]
pub struct Config {
    pub steps: usize,
    pub batch: usize,
    pub recompute: bool,
    pub lr: f64,
    pub token_lr: f64,
    pub decay: f64,
    schedule: Decay,
    warmup: usize,
    pub clip: f64,
    weighting: Weighting,
    pub measure: Measure,
    pub noise_offset: f64,
    /// Batches of a step.
    pub accumulate: usize,
    /// Decay of the adapter's moving average.
    pub ema: Option<f64>,
    up_rate_ratio: f64,
    text_lr: f64,
    /// Measurements without a new lowest that end the training.
    pub patience: Option<usize>,
    keep_best: bool,
    /// 0 keeps all.
    pub keep_last: usize,
    pub sample_every: usize,
    sample_prompts: String,
    pub prior: f64,
    pub prior_batch: usize,
    /// How many of the prior's pictures are shown under a made-up word.
    pub strangers: usize,
    prior_prompts: String,
    pub targets: String,
    pub vectors: usize,
    /// Which of the text encoder's layers is read, from the end.
    pub clip_skip: usize,
    /// For how many cross-attention layers a token has vectors of its own; 1 where they share them.
    pub token_layers: usize,
    pub views: Views,
    /// Whose turn it is where several concepts are taught.
    pub balance: Balance,
    pub save_every: usize,
    pub save_minutes: f64,
    pub keep_every: usize,
    pub held_out: usize,
    pub validate_every: usize,
    pub spectrum_every: usize,
    pub dtype: Dtype,
}

#[derive(Clone, Copy, Debug)]
enum Decay {
    Linear,
    Cosine,
    Constant,
}

/// How the errors of different noise levels are weighed against each other.
#[derive(Clone, Copy, Debug)]
enum Weighting {
    Even,
    MinSnr(f64),
    Debiased,
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
        let weighting = match (settings.number("min_snr"), settings.flag("debiased")) {
            (0.0, false) => Weighting::Even,
            (0.0, true) => Weighting::Debiased,
            (gamma, false) => Weighting::MinSnr(gamma),
            (_, true) => {
                return Err(Error::usage(
                    "min_snr and debiased both weigh the noise levels",
                    "Choose one of them: min_snr=0 or debiased=false",
                ));
            }
        };
        let patience = settings.integer("patience");
        let measures = settings.integer("validate_every") > 0;
        if !measures && (patience > 0 || settings.flag("keep_best")) {
            return Err(Error::usage(
                "patience and keep_best go by the steady loss, and it is never measured",
                "Choose how often with validate_every, such as 25",
            ));
        }
        let clip_skip = settings.integer("clip_skip");
        model.text.check_skip(clip_skip)?;
        let batch = settings.integer("batch");
        let prior_batch = match settings.integer("prior_batch") {
            0 => batch,
            n => n.min(batch),
        };
        Ok(Self {
            steps: settings.integer("steps"),
            batch,
            recompute: match settings.text("recompute") {
                "on" => true,
                "off" => false,
                _ => !small,
            },
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
            weighting,
            measure: match settings.text("loss") {
                "huber" => Measure::Huber,
                "absolute" => Measure::Absolute,
                _ => Measure::Square,
            },
            noise_offset: settings.number("noise_offset"),
            accumulate: settings.integer("accumulate"),
            ema: Some(settings.number("ema")).filter(|&decay| decay > 0.0),
            up_rate_ratio: settings.number("up_rate_ratio"),
            text_lr: settings.number("text_lr"),
            patience: Some(patience).filter(|&n| n > 0),
            keep_best: settings.flag("keep_best"),
            keep_last: settings.integer("keep_last"),
            sample_every: settings.integer("sample_every"),
            sample_prompts: settings.text("sample_prompts").to_owned(),
            prior: settings.number("prior"),
            strangers: (settings.number("strangers") * prior_batch as f64) as usize,
            prior_batch,
            prior_prompts: settings.text("prior_prompts").to_owned(),
            targets: settings.text("targets").to_owned(),
            vectors: settings.integer("vectors"),
            clip_skip,
            token_layers: if settings.flag("per_layer") { model.unet.cross_attentions } else { 1 },
            views: views(settings, model)?,
            balance: if settings.text("concept_balance") == "equal" { Balance::Equal } else { Balance::Pictures },
            save_every: settings.integer("save_every"),
            save_minutes: settings.number("save_minutes"),
            keep_every: settings.integer("keep_every"),
            held_out: settings.integer("held_out"),
            validate_every: settings.integer("validate_every"),
            spectrum_every: settings.integer("spectrum_every"),
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

    /// Times the adapter's rate at which a tensor of a layer learns: the write side by LoRA+'s ratio (Hayou et al. 2024,
    /// arXiv 2402.12354), the text encoder by its own rate.
    pub fn pace(&self, part: Part, tensor: &str) -> f64 {
        let ratio = if tensor.ends_with("up") { self.up_rate_ratio } else { 1.0 };
        match part {
            Part::Text | Part::Text2 if self.text_lr > 0.0 => ratio * self.text_lr / self.lr,
            _ => ratio,
        }
    }

    /// Weight of an image's error at its timestep.
    pub fn weight(&self, schedule: &Schedule, timestep: usize) -> f64 {
        match self.weighting {
            Weighting::Even => 1.0,
            Weighting::MinSnr(gamma) => loss::min_snr_weight(schedule, timestep, gamma),
            Weighting::Debiased => loss::debiased_weight(schedule, timestep),
        }
    }

    /// Whether the adapter of the lowest steady loss is kept.
    pub fn keeps_best(&self) -> bool {
        self.keep_best || self.patience.is_some()
    }

    /// What the samples on the way show: captions as a folder of pictures would have them; none for the model's usual.
    pub fn sample_prompts(&self) -> Vec<&str> {
        self.sample_prompts.split(';').map(str::trim).filter(|text| !text.is_empty()).collect()
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

/// The settings that the trained numbers depend on: what a file and a saved state remember.
pub fn decisive(settings: &Settings) -> Settings {
    let usual = |name: &str| FIELDS.iter().any(|field| field.name == name && settings.is_usual(field));
    // Where the training ends with the steady loss, how often that is measured counts.
    let ends_early = settings.integer("patience") > 0;
    settings.without(|name| {
        OBSERVING.contains(&name) && !(ends_early && name == "validate_every") || LATER.contains(&name) && usual(name)
    })
}

/// How the pictures are shown.
fn views(settings: &Settings, model: &StableDiffusion) -> Result<Views> {
    let bucket = Shape::Bucket { upscale: settings.flag("upscale") };
    Ok(Views {
        resolutions: resolutions(settings, model)?,
        step: side_step(model),
        shape: match settings.text("fit") {
            "bucket" => bucket,
            "crop" => Shape::Square(Fit::Crop),
            _ => Shape::Square(Fit::Pad),
        },
        background: colour(settings.text("background"))?,
        flip: settings.flag("flip"),
        variations: settings.integer("variations"),
        changes: Changes {
            jitter: settings.number("jitter"),
            rotate: settings.number("rotate"),
            brightness: settings.number("brightness"),
            contrast: settings.number("contrast"),
            saturation: settings.number("saturation"),
            hue: settings.number("hue"),
        },
        mask: match settings.text("mask") {
            "file" => Mask::File,
            "alpha" => Mask::Alpha,
            _ => Mask::None,
        },
        unmasked_weight: settings.number("unmasked_weight") as f32,
        mask_normalise: settings.flag("mask_normalise"),
    })
}

/// Sides of pictures are multiples of it: every level of the denoiser halves the latents of the one above.
pub fn side_step(model: &StableDiffusion) -> usize {
    model.vae.factor() << (model.unet.config.block_out_channels.len() - 1)
}

fn resolutions(settings: &Settings, model: &StableDiffusion) -> Result<Vec<usize>> {
    let step = side_step(model);
    let wrong = |name: &str, side: &str, advice: String| Error::usage(format!("{name} cannot be “{side}”"), advice);
    let checked = |name: &str, side: usize| match side {
        side if side / model.vae.factor() > MOST_PIXELS.isqrt() => {
            let most = MOST_PIXELS.isqrt() * model.vae.factor() / step * step;
            Err(wrong(name, &side.to_string(), format!("It can be at most {most} for this model")))
        }
        side if side > 0 && side.is_multiple_of(step) => Ok(side),
        side => Err(wrong(name, &side.to_string(), format!("It must be a multiple of {step} for this model"))),
    };
    let several = settings.text("resolutions");
    if several.trim().is_empty() {
        return match settings.integer("resolution") {
            0 => Ok(vec![model.native_size()[0]]),
            side => Ok(vec![checked("resolution", side)?]),
        };
    }
    let mut sides: Vec<usize> = Vec::new();
    for side in several.split(',').map(str::trim) {
        let Ok(side) = side.parse() else {
            let advice = "Write sides with commas between, such as 512,768";
            return Err(wrong("resolutions", several, advice.into()));
        };
        let side = checked("resolutions", side)?;
        if !sides.contains(&side) {
            sides.push(side);
        }
    }
    Ok(sides)
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

    #[test]
    fn looking_on_decides_nothing() {
        let of = |changes: &[(&str, &str)]| decisive(&Settings::new(FIELDS, changes.iter().copied()).unwrap());
        let usual = serde_json::to_value(of(&[])).unwrap();
        assert_eq!(usual.as_object().unwrap().len(), FIELDS.len() - OBSERVING.len() - LATER.len());
        assert!(LATER.iter().all(|name| FIELDS.iter().any(|field| field.name == *name)));
        assert!(OBSERVING.iter().chain(&LATER).all(|name| usual.get(name).is_none()));
        for name in OBSERVING {
            let value = if name == "keep_best" { "true" } else { "7" };
            assert_eq!(of(&[(name, value)]), of(&[]), "{name}");
        }
        for change in [
            ("held_out", "2"),
            ("mask", "alpha"),
            ("upscale", "false"),
            ("hue", "5"),
            ("resolutions", "64"),
            ("per_layer", "true"),
        ] {
            assert_ne!(of(&[change]), of(&[]), "{change:?}");
        }
        for (name, value) in [("ema", "0.9"), ("debiased", "true"), ("loss", "huber"), ("clip_skip", "2")] {
            assert_ne!(of(&[(name, value)]), of(&[]), "{name}");
        }
        let early = |every: &str| of(&[("patience", "2"), ("validate_every", every)]);
        assert_ne!(early("5"), early("7"));
    }
}
