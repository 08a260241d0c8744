//! A Stable-Diffusion-shaped model: tokenizer, text encoder, denoiser, autoencoder, schedule.

use std::collections::BTreeSet;
use std::thread;

use burn::tensor::{Device, Tensor, TensorData};
use include_dir::{Dir, include_dir};
use serde::Deserialize;

use crate::engine::io::Folder;
use crate::engine::model::chunks::{Chunked, Prompt};
use crate::engine::model::parts::{Hashes, Parts};
use crate::engine::model::tokenizer::{Encoded, Tokenizer};
use crate::engine::model::unet::Unet;
use crate::engine::model::vae::Vae;
use crate::engine::model::{Context, Hold, Layer, LayerId, Mounts, Precision, Table, Weight, clip};
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
    /// What messages and metadata call it: the name of its folder, or of its file without the ending.
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
        let hold = Hold { device, matrices: precision.matrices(unet_file) };
        thread::scope(|scope| {
            let hashes = Hashes::begin(scope, [unet_file, vae_file, text_file]);
            let (text, table) = clip::TextEncoder::load(text_config.clone(), text_file, hold, Table::default())?;
            let (unet, table) = Unet::load(unet_config.clone(), unet_file, hold, table)?;
            let vae = Vae::load(vae_config.clone(), vae_file, hold)?;
            Self::fit(&text, &unet, &vae).map_err(|error| error.at(folder.path()))?;
            let tokenizer = parts.tokenizer(text.length(), text.config.vocab_size)?;
            let [hash, vae_hash, text_hash] = hashes.finish();
            let readme = if parts.beside.has("README.md") { parts.beside.text("README.md").ok() } else { None };
            Ok(Self {
                name: name(folder),
                hash,
                vae_hash,
                text_hash,
                tokenizer,
                text,
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
    fn fit(text: &clip::TextEncoder, unet: &Unet, vae: &Vae) -> Result<()> {
        let (expects, gives) = (unet.config.cross_attention_dim, text.config.hidden_size);
        if expects != gives {
            return Err(Error::new(
                format!("The denoiser expects text of width {expects}, the text encoder gives {gives}"),
                "The parts belong to different models",
            ));
        }
        let (latent, given, taken) = (vae.config.latent_channels, unet.config.in_channels, unet.config.out_channels);
        if given != latent || taken != latent {
            return Err(Error::new(
                format!("The denoiser turns {given} channels into {taken}, the autoencoder has {latent}"),
                "Models for inpainting or editing cannot be used: choose a plain one of the SD 1.x family",
            ));
        }
        Ok(())
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

    /// Prompts of any length, with weights → what the denoiser reads, `[b, chunks·77, width]` for each of its layers.
    pub fn read(&self, prompts: &[Prompt], words: &[Tensor<3>], clip_skip: usize, mounts: &Mounts) -> Context {
        let chunked = Chunked::new(prompts, &self.tokenizer);
        self.context(&chunked.rows(), words, clip_skip, mounts).map(|z| chunked.join(z))
    }

    /// Prompts → context `[b, 77, width]`; marked positions take their vector from `vectors` (one `[n, width]` a word).
    pub fn condition(&self, prompts: &[Encoded], vectors: &[Tensor<2>], mounts: &Mounts) -> Tensor<3> {
        self.condition_at(prompts, vectors, 1, mounts)
    }

    /// The same of the text encoder's layer that `clip_skip` counts from the end.
    pub fn condition_at(
        &self,
        prompts: &[Encoded],
        vectors: &[Tensor<2>],
        clip_skip: usize,
        mounts: &Mounts,
    ) -> Tensor<3> {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let embedded = Self::place(self.text.embed(&ids), prompts, vectors);
        self.text.forward(embedded, clip_skip, mounts)
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

fn name(folder: &Folder) -> String {
    let path = folder.path();
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
