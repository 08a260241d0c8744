//! What is this file or folder? And what to say where it is not what was asked for.

mod marks;

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use crate::engine::io::{Checkpoint, peft, pickle};
use crate::engine::{Error, Result};

pub use marks::tensors;

/// Models that were made from the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Sd1,
    Sd2,
    Sdxl,
    Sd3,
    Flux,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole one.
    Model,
    /// A model whose denoiser also sees a picture or a mask, through this many channels.
    Editing(usize),
    /// Without what is named.
    Denoiser(&'static str),
    Autoencoder,
    TextEncoder,
    ControlNet,
    /// Of pictures.
    Classifier,
    /// What a classifier has learnt: a head, and adapters before it.
    Learnt,
    /// By its method, with the article.
    Adapter(&'static str),
    Embedding,
    Pickle,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub kind: Kind,
    /// `None` where nothing tells.
    pub family: Option<Family>,
}

const ONLY: &str = "Only the families of SD 1.x, SD 2.x and SDXL can be used so far";
const LEARNT: &str = "Use it with triptych classify --adapter, and --model with the classifier";
const PLAIN: &str = "choose a model made from one of them";

impl Family {
    pub fn title(self) -> &'static str {
        match self {
            Self::Sd1 => "SD 1.x",
            Self::Sd2 => "SD 2.x",
            Self::Sdxl => "SDXL",
            Self::Sd3 => "SD 3",
            Self::Flux => "Flux",
        }
    }

    /// Whether its models can be opened.
    pub fn is_known(self) -> bool {
        matches!(self, Self::Sd1 | Self::Sd2 | Self::Sdxl)
    }

    /// Stability's name of a model that can be opened (`modelspec.architecture`).
    pub fn architecture(self, predicts_v: bool) -> &'static str {
        match (self, predicts_v) {
            (Self::Sd2, true) => "stable-diffusion-v2-768-v",
            (Self::Sd2, false) => "stable-diffusion-v2-512",
            (Self::Sdxl, _) => "stable-diffusion-xl-v1-base",
            _ => "stable-diffusion-v1",
        }
    }

    /// `modelspec.implementation` of an adapter for it.
    pub fn implementation(self) -> &'static str {
        if self == Self::Sdxl { "https://github.com/Stability-AI/generative-models" } else { "diffusers" }
    }

    /// kohya's name of it (`ss_base_model_version`).
    pub fn base_version(self, predicts_v: bool) -> &'static str {
        match (self, predicts_v) {
            (Self::Sdxl, _) => "sdxl_base_v1-0",
            (Self::Sd2, true) => "sd_v2_v",
            (Self::Sd2, false) => "sd_v2",
            (_, true) => "sd_v1_v",
            (_, false) => "sd_v1",
        }
    }

    /// Of a model that reads text of this width, from two encoders or from one.
    pub fn of_model(two_encoders: bool, context: usize) -> Self {
        match (two_encoders, Self::of_context(context)) {
            (true, _) => Self::Sdxl,
            (false, Some(Self::Sd2)) => Self::Sd2,
            (false, _) => Self::Sd1,
        }
    }

    /// By the width of the text that cross-attention reads.
    pub fn of_context(width: usize) -> Option<Self> {
        match width {
            768 => Some(Self::Sd1),
            1024 => Some(Self::Sd2),
            // SDXL's refiner reads the larger of its two encoders alone.
            1280 | 2048 => Some(Self::Sdxl),
            _ => None,
        }
    }
}

impl Found {
    fn new(kind: Kind, family: impl Into<Option<Family>>) -> Self {
        Self { kind, family: family.into() }
    }

    /// “an SDXL checkpoint”, “a LoRA for Flux”.
    pub fn words(&self) -> String {
        let family = self.family.map(Family::title);
        let of = |what: &str| family.map_or_else(|| what.to_owned(), |family| format!("{what} for {family}"));
        match self.kind {
            Kind::Model => match self.family {
                Some(Family::Flux) => "a Flux checkpoint".into(),
                Some(family) => format!("an {} checkpoint", family.title()),
                None => "a model of a family that is not known here".into(),
            },
            Kind::Editing(channels) => {
                of(&format!("a model for inpainting or editing (its denoiser takes {channels} channels)"))
            }
            Kind::Denoiser(lacks) => of(&format!("a denoiser without {lacks}")),
            Kind::Autoencoder => of("an autoencoder (VAE) alone"),
            Kind::TextEncoder => of("a text encoder alone"),
            Kind::ControlNet => of("a ControlNet"),
            Kind::Classifier => "an image classifier".into(),
            Kind::Learnt => "what an image classifier has learnt".into(),
            Kind::Adapter(method) => of(method),
            Kind::Embedding => of("a textual inversion (an embedding)"),
            Kind::Pickle => "a pickle".into(),
            Kind::Unknown => "nothing that is known here".into(),
        }
    }

    /// Whether the artist will have meant a model, of whatever family.
    pub fn is_model(&self) -> bool {
        matches!(self.kind, Kind::Model | Kind::Editing(_) | Kind::Denoiser(_))
    }

    /// Refuses what cannot be opened as a model, by the name of what it is.
    pub fn must_be_model(&self, path: &Path) -> Result<()> {
        let what = format!("This is {}", self.words());
        let part = "Name the whole checkpoint, or the folder in diffusers layout that it belongs to";
        let (what, advice) = match (self.kind, self.family) {
            (Kind::Model, Some(family)) if family.is_known() => return Ok(()),
            (Kind::Pickle, _) => return Err(pickle::refusal().at(path)),
            (Kind::Editing(_), _) => {
                let advice = "Models for inpainting or editing cannot be used: choose a plain one of its family";
                (what, advice.to_owned())
            }
            (Kind::Denoiser(_), family) if family.is_none_or(Family::is_known) => (what, part.to_owned()),
            (Kind::Model | Kind::Denoiser(_), _) => (what, format!("{ONLY}: {PLAIN}")),
            (Kind::Autoencoder | Kind::TextEncoder, _) => (format!("{what}, not a model"), part.to_owned()),
            (Kind::Adapter(_), _) => (
                format!("{what}, not a model"),
                "Add it under adapters (--adapter, or drop it onto the window) and open the model it was made for"
                    .to_owned(),
            ),
            (Kind::Classifier, _) => (
                format!("{what}, not a model that makes pictures"),
                "Use it with triptych classify --model, or teach it with triptych train --data".to_owned(),
            ),
            (Kind::Learnt, _) => (what, LEARNT.to_owned()),
            (Kind::ControlNet | Kind::Embedding, _) => {
                (format!("{what}, not a model"), "It draws nothing by itself: choose a model".to_owned())
            }
            (Kind::Unknown, _) if first_inside(path).is_some() => (
                "This folder is not a model in diffusers layout".to_owned(),
                format!("Name the file inside it, such as {}", first_inside(path).unwrap_or_default()),
            ),
            (Kind::Unknown, _) => (
                "This is not a model that is known here".to_owned(),
                "Name a folder in diffusers layout, a single file (.safetensors) of a model, or `starter` \
                 for the model that comes with the program"
                    .to_owned(),
            ),
        };
        Err(Error::new(what, advice).at(path))
    }

    /// Refuses what is plainly no adapter for us, by the name of what it is. Whoever reads the file says what is wrong with
    /// the rest.
    pub fn must_be_adapter(&self, path: &Path) -> Result<()> {
        let what = format!("This is {}", self.words());
        let (what, advice) = match (self.kind, self.family) {
            (Kind::Unknown, _) => return Ok(()),
            (Kind::Adapter(_) | Kind::Embedding, family) if family.is_none_or(Family::is_known) => return Ok(()),
            (Kind::Pickle, _) => return Err(pickle::refusal().at(path)),
            (Kind::Adapter(_), _) => (what, format!("{ONLY}: choose an adapter made for it")),
            (Kind::Embedding, _) => {
                (format!("{what}, not an adapter"), format!("{ONLY}: choose an embedding made for it"))
            }
            (Kind::Learnt, _) => (format!("{what}, not an adapter for pictures"), LEARNT.to_owned()),
            _ => (
                format!("{what}, not an adapter"),
                "Name a LoRA file; a model belongs after --model, or onto the window".to_owned(),
            ),
        };
        Err(Error::new(what, advice).at(path))
    }
}

/// Looks at a file or folder. Only headers and configurations are read.
pub fn detect(path: &Path) -> Result<Found> {
    if path.is_dir() {
        return Ok(folder(path));
    }
    if !path.exists() {
        return Err(Error::new(
            "There is no model here",
            "Name a folder in diffusers layout, a single file (.safetensors), or `starter` for the model that comes with \
             the program",
        )
        .at(path));
    }
    let mut beginning = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(16).read_to_end(&mut beginning));
    read.map_err(|e| Error::io("read", path, &e))?;
    if pickle::is_pickle(&beginning) {
        return Ok(Found::new(Kind::Pickle, None));
    }
    match Checkpoint::open(path) {
        Ok(file) => Ok(tensors(&file)),
        // Pickles of protocol 0 begin like any text.
        Err(_) if pickle::is_named_so(path) => Ok(Found::new(Kind::Pickle, None)),
        Err(error) => Err(error),
    }
}

/// A file of tensors in a folder that is no model.
fn first_inside(path: &Path) -> Option<String> {
    let files = std::fs::read_dir(path).ok()?.filter_map(|file| file.ok()?.file_name().into_string().ok());
    files.filter(|name| name.ends_with(".safetensors")).min()
}

/// What a folder's configurations say. One that cannot be read says nothing here; its reader will tell.
fn folder(path: &Path) -> Found {
    let json = |name: &str| {
        let text = std::fs::read_to_string(path.join(name)).ok()?;
        Some(serde_json::from_str::<Value>(&text).unwrap_or_default())
    };
    let (index, unet) = (json("model_index.json"), json("unet/config.json"));
    if index.is_some() || unet.is_some() {
        let class = index.as_ref().and_then(|index| index["_class_name"].as_str()).unwrap_or("StableDiffusion");
        let number = |key: &str| unet.as_ref().and_then(|unet| unet[key].as_u64()).unwrap_or(0) as usize;
        let by_class = [("StableDiffusionXL", Family::Sdxl), ("StableDiffusion3", Family::Sd3), ("Flux", Family::Flux)];
        let family = by_class.iter().find(|(start, _)| class.starts_with(start)).map(|(_, family)| *family);
        let family = family.or_else(|| {
            let known = ["StableDiffusion", "LatentConsistency"].iter().any(|start| class.starts_with(start));
            known.then(|| Family::of_context(number("cross_attention_dim")).unwrap_or(Family::Sd1))
        });
        return match number("in_channels") {
            channels @ (8 | 9) => Found::new(Kind::Editing(channels), family),
            _ => Found::new(Kind::Model, family),
        };
    }
    if peft::is_folder(path) {
        return Found::new(Kind::Adapter("a PEFT adapter in a folder of its own"), None);
    }
    let config = json("config.json").unwrap_or_default();
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str()).unwrap_or_default();
    let kind = match class {
        "UNet2DConditionModel" => Kind::Denoiser("text encoder and autoencoder"),
        "AutoencoderKL" => Kind::Autoencoder,
        "ControlNetModel" => Kind::ControlNet,
        class if class.starts_with("CLIPTextModel") => Kind::TextEncoder,
        class if class.ends_with("ForImageClassification") => Kind::Classifier,
        _ => Kind::Unknown,
    };
    Found::new(kind, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_by_their_configurations() {
        let cases = [
            ("model_index.json", r#"{"_class_name": "StableDiffusionPipeline"}"#, "an SD 1.x checkpoint"),
            ("model_index.json", r#"{"_class_name": "StableDiffusionXLPipeline"}"#, "an SDXL checkpoint"),
            ("model_index.json", r#"{"_class_name": "StableDiffusion3Pipeline"}"#, "an SD 3 checkpoint"),
            ("model_index.json", r#"{"_class_name": "FluxPipeline"}"#, "a Flux checkpoint"),
            ("model_index.json", r#"{"_class_name": "PixArtPipeline"}"#, "a model of a family that is not known here"),
            ("unet/config.json", r#"{"cross_attention_dim": 1024}"#, "an SD 2.x checkpoint"),
            ("unet/config.json", "{", "an SD 1.x checkpoint"),
            ("config.json", r#"{"_class_name": "AutoencoderKL"}"#, "an autoencoder (VAE) alone"),
            ("config.json", r#"{"architectures": ["CLIPTextModel"]}"#, "a text encoder alone"),
            ("config.json", r#"{"architectures": ["ViTForImageClassification"]}"#, "an image classifier"),
            ("adapter_config.json", "{}", "a PEFT adapter in a folder of its own"),
            ("unet/adapter_config.json", "{}", "a PEFT adapter in a folder of its own"),
            ("notes.txt", "", "nothing that is known here"),
        ];
        for (name, text, words) in cases {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), text).unwrap();
            assert_eq!(detect(folder.path()).unwrap().words(), words, "{name} {text}");
        }
    }
}
