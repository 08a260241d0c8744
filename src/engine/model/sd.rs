//! A Stable-Diffusion-shaped model: tokenizer, text encoder, denoiser, autoencoder, schedule.

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};
use include_dir::{Dir, include_dir};
use serde::Deserialize;

use crate::engine::io::Folder;
use crate::engine::model::tokenizer::{Encoded, Tokenizer};
use crate::engine::model::unet::Unet;
use crate::engine::model::vae::Vae;
use crate::engine::model::{Hold, Layer, LayerId, Mounts, Precision, Table, Weight, clip, unet, vae};
use crate::engine::ops::self_test::LayerShape;
use crate::engine::{Error, Result};

/// The model that comes with the program.
static STARTER: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/assets/starter");

pub const WEIGHTS: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
pub const TEXT_WEIGHTS: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];

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

pub struct StableDiffusion {
    /// What messages and metadata call it: the folder's name.
    pub name: String,
    /// SHA-256 over the bytes of the denoiser's tensors: adapters remember which base they belong to.
    pub hash: String,
    /// The same of the autoencoder: latents are kept under it.
    pub vae_hash: String,
    /// The same of the text encoder.
    pub text_hash: String,
    pub tokenizer: Tokenizer,
    pub text: clip::TextEncoder,
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
    /// `starter`, or a folder in diffusers layout.
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
        if let Folder::Disk(path) = folder
            && !path.is_dir()
        {
            let what = if path.exists() { "This is a file, not a model folder" } else { "There is no model here" };
            return Err(Error::new(
                what,
                "Name a folder in diffusers layout, or `starter` for the model that comes with the program",
            )
            .at(path));
        }
        let part = |name: &str, weights: [&str; 2]| {
            folder.checkpoint(&weights.map(|file| format!("{name}/{file}")).each_ref().map(String::as_str))
        };
        let unet_file = part("unet", WEIGHTS)?;
        let hold = Hold { device, matrices: precision.matrices(&unet_file) };
        let config: clip::Config = folder.json("text_encoder/config.json")?;
        let text_file = part("text_encoder", TEXT_WEIGHTS)?;
        let (text, table) = clip::TextEncoder::load(config, &text_file, hold, Table::default())?;
        let config: unet::Config = folder.json("unet/config.json")?;
        let (unet, table) = Unet::load(config, &unet_file, hold, table)?;
        let config: vae::Config = folder.json("vae/config.json")?;
        let vae_file = part("vae", WEIGHTS)?;
        let vae = Vae::load(config, &vae_file, hold)?;
        if unet.config.cross_attention_dim != text.config.hidden_size {
            return Err(Error::new(
                format!(
                    "The denoiser expects text of width {}, the text encoder gives {}",
                    unet.config.cross_attention_dim, text.config.hidden_size
                ),
                "The parts belong to different models",
            )
            .at(folder.path()));
        }
        let (latent, given, taken) = (vae.config.latent_channels, unet.config.in_channels, unet.config.out_channels);
        if given != latent || taken != latent {
            return Err(Error::new(
                format!("The denoiser turns {given} channels into {taken}, the autoencoder has {latent}"),
                "Models for inpainting or editing cannot be used: choose a plain one of the SD 1.x family",
            )
            .at(folder.path()));
        }
        let tokenizer = match folder.has("tokenizer/vocab.json") {
            true => Tokenizer::open(folder, text.length())?,
            false => Tokenizer::clip(text.length())?,
        };
        let (words, vectors) = (tokenizer.words(), text.config.vocab_size);
        if words > vectors {
            return Err(Error::new(
                format!("The vocabulary has {words} entries, the text encoder knows {vectors}"),
                "Put the model's own tokenizer (vocab.json and merges.txt) into its folder",
            )
            .at(folder.path().join("tokenizer")));
        }
        let readme = if folder.has("README.md") { folder.text("README.md").ok() } else { None };
        Ok(Self {
            name: folder.path().file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned()),
            hash: unet_file.tensor_hash(),
            vae_hash: vae_file.tensor_hash(),
            text_hash: text_file.tensor_hash(),
            tokenizer,
            text,
            unet,
            vae,
            schedule: if folder.has("scheduler/scheduler_config.json") {
                folder.json("scheduler/scheduler_config.json")?
            } else {
                ScheduleConfig::default()
            },
            readme,
            layers: table.layers,
            weights: table.weights,
            device: device.clone(),
        })
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

    /// Prompts → context `[b, 77, width]`; marked positions take their vector from `vectors` (one `[n, width]` a word).
    pub fn condition(&self, prompts: &[Encoded], vectors: &[Tensor<2>], mounts: &Mounts) -> Tensor<3> {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let embedded = Self::place(self.text.embed(&ids), prompts, vectors);
        self.text.forward(embedded, mounts)
    }

    /// Replaces the rows at marked positions. A product with a selection matrix, so that gradients reach the vectors.
    fn place(embedded: Tensor<3>, prompts: &[Encoded], vectors: &[Tensor<2>]) -> Tensor<3> {
        if prompts.iter().all(|prompt| prompt.marks.is_empty()) {
            return embedded;
        }
        let [b, n, width] = embedded.dims();
        let starts: Vec<usize> =
            vectors.iter().scan(0, |start, v| Some(std::mem::replace(start, *start + v.dims()[0]))).collect();
        let total: usize = vectors.iter().map(|v| v.dims()[0]).sum();
        let mut select = vec![0.0_f32; b * n * total];
        let mut keep = vec![1.0_f32; b * n];
        for (row, prompt) in prompts.iter().enumerate() {
            for mark in &prompt.marks {
                let position = row * n + mark.position;
                keep[position] = 0.0;
                select[position * total + starts[mark.word] + mark.vector] = 1.0;
            }
        }
        let device = embedded.device();
        let keep = Tensor::<3>::from_data(TensorData::new(keep, [b, n, 1]), &device);
        let select = Tensor::<2>::from_data(TensorData::new(select, [b * n, total]), &device);
        let placed = select.matmul(Tensor::cat(vectors.to_vec(), 0)).reshape([b, n, width]);
        embedded * keep + placed
    }
}
