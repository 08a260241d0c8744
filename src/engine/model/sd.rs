//! A Stable-Diffusion-shaped model: tokenizer, one text encoder or SDXL's two, denoiser, autoencoder, schedule.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use burn::tensor::{Device, Tensor};
use include_dir::{Dir, include_dir};
use serde::Deserialize;

use crate::engine::io::detect::Family;
use crate::engine::io::{Folder, ldm, names};
use crate::engine::model::clip::Role;
use crate::engine::model::parts::{Hashes, Parts};
use crate::engine::model::tokenizer::Tokenizer;
use crate::engine::model::unet::Unet;
use crate::engine::model::vae::Vae;
use crate::engine::model::{Hold, Layer, LayerId, Part, Precision, Table, Weight, clip, sdxl};
use crate::engine::ops::self_test::LayerShape;
use crate::engine::{Error, Result};

/// The model that comes with the program.
static STARTER: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/assets/starter");

pub const WEIGHTS: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
pub const TEXT_WEIGHTS: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];

/// OpenCLIP fills prompts up with the first word of its vocabulary.
const FIRST_ID: u32 = 0;

/// `scheduler/scheduler_config.json`, as far as a schedule depends on it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ScheduleConfig {
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: String,
    pub prediction_type: String,
    pub steps_offset: usize,
    pub set_alpha_to_one: bool,
    pub rescale_betas_zero_snr: bool,
}

/// Stable Diffusion 1.x, where the file is silent.
impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: "scaled_linear".into(),
            prediction_type: "epsilon".into(),
            steps_offset: 0,
            set_alpha_to_one: true,
            rescale_betas_zero_snr: false,
        }
    }
}

/// SDXL's second text encoder: it reads the same words, and sums a prompt up.
pub struct Second {
    pub encoder: clip::TextEncoder,
    /// Id that fills its prompts up.
    pub pad: u32,
}

pub struct StableDiffusion {
    /// What messages and metadata call it: the name of its folder, or of its file without the ending.
    pub name: String,
    /// SHA-256 over the bytes of the denoiser's tensors: adapters remember which base they belong to.
    pub hash: String,
    /// The same of the autoencoder: latents are kept under it.
    pub vae_hash: String,
    /// The same of the text encoder; of two, one after the other.
    pub text_hash: String,
    pub tokenizer: Tokenizer,
    pub text: clip::TextEncoder,
    /// In SDXL.
    pub second: Option<Second>,
    pub unet: Unet,
    pub vae: Vae,
    pub schedule: ScheduleConfig,
    /// README.md of the folder: it tells how the model's captions read.
    pub readme: Option<String>,
    /// Every layer an adapter can sit on.
    pub layers: Vec<Layer>,
    /// Their untouched weights, in the same order.
    pub weights: Vec<Weight>,
    pub device: Device,
}

impl StableDiffusion {
    /// `starter`, a folder in diffusers layout, or a file in LDM layout.
    pub fn folder(path: &str) -> Folder {
        match path {
            "starter" => Folder::Embedded { name: "starter", dir: &STARTER },
            path => Folder::Disk(path.into()),
        }
    }

    pub fn open(folder: &Folder, device: &Device) -> Result<Self> {
        Self::open_as(folder, device, Precision::Auto)
    }

    pub fn open_as(folder: &Folder, device: &Device, precision: Precision) -> Result<Self> {
        let parts = Parts::open(folder)?;
        let ((text_config, text_file), (unet_config, unet_file), (vae_config, vae_file)) =
            (&parts.text, &parts.unet, &parts.vae);
        let second = parts.second.as_ref();
        let hold = Hold { device, matrices: precision.matrices(unet_file) };
        thread::scope(|scope| {
            let files = [unet_file, vae_file, text_file].into_iter().chain(second.map(|second| &second.file));
            let hashes = Hashes::begin(scope, files);
            let role = if second.is_some() { Role::First } else { Role::Only };
            let (text, table) = clip::TextEncoder::load(text_config.clone(), role, text_file, hold, Table::default())?;
            let tokenizer = parts.tokenizer(text.length(), text.config.vocab_size)?;
            let (second, table) = match second {
                Some(parts) => {
                    let (encoder, table) =
                        clip::TextEncoder::load(parts.config.clone(), Role::Second, &parts.file, hold, table)?;
                    let pad = parts.pad.as_deref().and_then(|word| tokenizer.id(word)).unwrap_or(FIRST_ID);
                    (Some(Second { encoder, pad }), table)
                }
                None => (None, table),
            };
            let (unet, mut table) = Unet::load(unet_config.clone(), unet_file, hold, table)?;
            if second.is_some() {
                sdxl::name_modules(&mut table.layers, &unet.config);
            }
            let vae = Vae::load(vae_config.clone(), vae_file, hold)?;
            Self::fit(&text, second.as_ref(), &unet, &vae, tokenizer.words())
                .map_err(|error| error.at(folder.path()))?;
            let mut hashes = hashes.finish().into_iter();
            let mut next = || hashes.next().unwrap_or_default();
            let (hash, vae_hash) = (next(), next());
            let readme = if parts.beside.has("README.md") { parts.beside.text("README.md").ok() } else { None };
            Ok(Self {
                name: name(folder),
                hash,
                vae_hash,
                text_hash: hashes.collect(),
                tokenizer,
                text,
                second,
                unet,
                vae,
                schedule: parts.schedule.clone(),
                readme,
                layers: table.layers,
                weights: table.weights,
                device: device.clone(),
            })
        })
    }

    /// Whether the networks are of one model.
    fn fit(text: &clip::TextEncoder, second: Option<&Second>, unet: &Unet, vae: &Vae, words: usize) -> Result<()> {
        let other = "The parts belong to different models";
        let encoders = || std::iter::once(text).chain(second.map(|second| &second.encoder));
        let gives: usize = encoders().map(|text| text.config.hidden_size).sum();
        let expects = unet.config.cross_attention_dim;
        if expects != gives {
            return Err(Error::new(
                format!("The denoiser expects text of width {expects}, the text encoder gives {gives}"),
                other,
            ));
        }
        let pooled = second.map(|second| second.encoder.config.projection_dim);
        if unet.config.pooled_width() != pooled {
            let told = |width: Option<usize>| match width {
                Some(width) => format!("a pooled text of width {width}"),
                None => "no pooled text".to_owned(),
            };
            return Err(Error::new(
                format!(
                    "The denoiser expects {}, the text encoders give {}",
                    told(unet.config.pooled_width()),
                    told(pooled)
                ),
                "Models of the SDXL family have two text encoders, all others one: choose a whole model",
            ));
        }
        if let Some(second) = second.map(|second| &second.encoder)
            && (second.length() != text.length() || second.config.vocab_size < words)
        {
            return Err(Error::new("The two text encoders do not read the same prompts", other));
        }
        let (latent, given, taken) = (vae.config.latent_channels, unet.config.in_channels, unet.config.out_channels);
        if given != latent || taken != latent {
            return Err(Error::new(
                format!("The denoiser turns {given} channels into {taken}, the autoencoder has {latent}"),
                "Models for inpainting or editing cannot be used: choose a plain one",
            ));
        }
        Ok(())
    }

    /// What it was made from.
    pub fn family(&self) -> Family {
        Family::of_model(self.second.is_some(), self.unet.config.cross_attention_dim)
    }

    /// Its text encoders in order.
    pub fn texts(&self) -> impl Iterator<Item = &clip::TextEncoder> {
        std::iter::once(&self.text).chain(self.second.as_ref().map(|second| &second.encoder))
    }

    /// Numbers of a word's vector: for SDXL's two text encoders one after the other.
    pub fn word_width(&self) -> usize {
        self.texts().map(|text| text.config.hidden_size).sum()
    }

    /// Rows of the embedding tables, as words have them: `[n, width]`.
    pub fn embed_word(&self, ids: &[u32]) -> Tensor<2> {
        Tensor::cat(self.texts().map(|text| text.embed(&[ids.to_vec()]).squeeze_dim::<2>(0)).collect(), 1)
    }

    /// Every layer by kohya's name of it, and by those that diffusers and LDM give it.
    pub fn modules(&self) -> BTreeMap<String, LayerId> {
        let ldm = ldm::unet(&self.unet.config.blocks());
        let in_ldm = |layer: &Layer| {
            let path = (layer.part == Part::Unet).then(|| ldm.ldm(&layer.path)).flatten()?;
            Some(names::flat(names::KOHYA_UNET, &path))
        };
        let also = self.layer_ids().filter_map(|(id, layer)| Some((in_ldm(layer)?, id)));
        let flat = self.layer_ids().map(|(id, layer)| (layer.flat_path(), id));
        also.chain(flat).chain(self.layer_ids().map(|(id, layer)| (layer.module(), id))).collect()
    }

    pub fn layer(&self, id: LayerId) -> &Layer {
        &self.layers[id.0]
    }

    pub fn weight(&self, id: LayerId) -> &Weight {
        &self.weights[id.0]
    }

    /// The distinct shapes of its layers.
    pub fn layer_shapes(&self) -> Vec<LayerShape> {
        let shape = |layer: &Layer| LayerShape { out: layer.out, channels: layer.channels, kernel: layer.kernel };
        self.layers.iter().map(shape).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Layers by their place in the table.
    pub fn layer_ids(&self) -> impl Iterator<Item = (LayerId, &Layer)> {
        self.layers.iter().enumerate().map(|(i, layer)| (LayerId(i), layer))
    }

    /// Pixels `[width, height]` the model was made for.
    pub fn native_size(&self) -> [usize; 2] {
        let side = self.unet.config.sample_size.unwrap_or(64) * self.vae.factor();
        [side; 2]
    }
}

fn name(folder: &Folder) -> String {
    let path = folder.path();
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
