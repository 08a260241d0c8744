//! What a training will take, from the shapes of its layers: memory by what it is for, and room on the disk.

mod disk;
mod kept;
mod room;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::DType;
use serde::Serialize;

use crate::engine::Result;
use crate::engine::adapter::{Adapter, FileKind, Method, target};
use crate::engine::model::{Layer, LayerId, Part, StableDiffusion};
use crate::engine::train::config::Config;

pub use room::Room;

use kept::{Pass, stretch};

const F32: usize = 4;
/// What the program works with beside all that: the vocabulary, and buffers in which products and convolutions are laid
/// out anew.
const WORKING: u64 = 22_000_000;
/// Runs before any text is read: no gradient flows there unless it is adapted itself.
const FIRST: [&str; 3] = ["conv_in", "time_embedding.", "down_blocks.0.resnets.0."];

/// Bytes by what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Every number of the model, in the format it is held in.
    pub weights: u64,
    /// What is trained, and its moving average.
    pub adapters: u64,
    /// Gradients and two moments.
    pub optimiser: u64,
    /// What waits for the backward pass.
    pub activations: u64,
    /// Pictures into latents before the first step, and samples on the way.
    pub sampling: u64,
    /// On the disk, at the most: the adapter, kept steps, the saved state, samples.
    pub disk: u64,
}

impl Estimate {
    /// Of a training with these settings.
    pub fn of(model: &StableDiffusion, method: &Method, adapter: &dyn Adapter, config: &Config) -> Result<Self> {
        let targets = target::select(&config.targets, &model.layers)?;
        let depth = |place: usize| place as f32 / targets.len() as f32;
        let counts = targets.iter().enumerate().map(|(place, &id)| adapter.count(model.layer(id), depth(place)));
        let trained = counts.sum::<usize>() + config.token_layers * config.vectors * model.word_width();
        let averages = if config.ema.is_some() { 2 } else { 1 };
        // The sum of several batches is one more gradient.
        let passing = if config.accumulate > 1 { 4 } else { 3 };
        let bytes = |numbers: usize| (F32 * numbers) as u64;
        Ok(Self {
            weights: weights(model),
            adapters: bytes(averages * trained),
            optimiser: bytes(passing * trained),
            activations: bytes(Activations::new(model, method, adapter, config, &targets).numbers(config.recompute)),
            sampling: bytes(pictures(model, config)),
            disk: disk::bytes(model, method, adapter, config, &targets, trained),
        })
    }

    /// Everything that is in memory at the worst moment: pictures are made between steps, not during one.
    pub fn total(&self) -> u64 {
        WORKING + self.weights + self.adapters + (self.optimiser + self.activations).max(self.sampling)
    }

    /// Memory by part, in words.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("weights", self.weights),
            ("adapters", self.adapters),
            ("optimiser", self.optimiser),
            ("activations", self.activations),
            ("sampling", self.sampling),
        ]
    }
}

struct Activations<'a> {
    model: &'a StableDiffusion,
    adapted: BTreeSet<LayerId>,
    /// Whether an adapter's read side is trained, so that it needs its input again. A slot's is not.
    reads: bool,
    starts_late: bool,
    /// Whether the method makes a weight of a layer's size.
    is_dense: bool,
    pass: Pass<'a>,
    text: Pass<'a>,
}

impl<'a> Activations<'a> {
    fn new(
        model: &'a StableDiffusion,
        method: &Method,
        adapter: &dyn Adapter,
        config: &Config,
        targets: &[LayerId],
    ) -> Self {
        let pictures = config.batch + if config.prior > 0.0 { config.prior_batch } else { 0 };
        let size = config.views.largest();
        Self {
            model,
            adapted: targets.iter().copied().collect(),
            reads: adapter.basis().is_none(),
            starts_late: model.unet.config.down_block_types[0].starts_with("Cross")
                && !targets.iter().any(|&id| is_first(model.layer(id))),
            is_dense: method.file == FileKind::Difference,
            pass: Pass::new(model, pictures, size),
            text: Pass::new(model, config.token_layers * (config.batch + config.strangers), size),
        }
    }

    fn numbers(&self, recompute: bool) -> usize {
        let mut stretches: BTreeMap<String, usize> = BTreeMap::new();
        let (mut text, mut passed_on) = (0, 0);
        for (id, layer) in self.model.layer_ids() {
            if layer.part.is_text() {
                text += self.at(&self.text, id, layer);
            } else {
                *stretches.entry(stretch(layer)).or_default() += self.at(&self.pass, id, layer);
                passed_on += self.pass.passed_on(layer);
            }
        }
        let denoiser = match recompute {
            true => passed_on + stretches.values().max().copied().unwrap_or(0),
            false => stretches.values().sum(),
        };
        text + denoiser
    }

    fn at(&self, pass: &Pass<'_>, id: LayerId, layer: &Layer) -> usize {
        if self.starts_late && is_first(layer) {
            return 0;
        }
        let has_adapter = self.adapted.contains(&id);
        let weight = layer.out * layer.input();
        // To let a gradient through, a weight that is held in f16 stays as it was widened.
        let widened = if self.model.weight(id).oi.dtype() == DType::F16 { weight } else { 0 };
        let dense = if has_adapter && self.is_dense { 3 * weight } else { 0 };
        pass.kept(layer, has_adapter && self.reads) + widened + dense
    }
}

fn is_first(layer: &Layer) -> bool {
    layer.part == Part::Unet && FIRST.iter().any(|first| layer.path.starts_with(first))
}

/// Bytes of all that is loaded. Norms are left out: they are thousandths.
fn weights(model: &StableDiffusion) -> u64 {
    let layers = model.weights.iter().map(|weight| {
        let bias = weight.bias.as_ref().map_or(0, |bias| bias.shape().num_elements());
        weight.oi.shape().num_elements() as u64 * weight.oi.dtype().size() as u64 + (F32 * bias) as u64
    });
    let embeddings = model.texts().map(|text| {
        let text = &text.config;
        F32 * (text.vocab_size + text.max_position_embeddings) * text.hidden_size
    });
    // The autoencoder is held as the denoiser is.
    let format = model.weights.last().map_or(F32, |weight| weight.oi.dtype().size());
    layers.sum::<u64>() + (embeddings.sum::<usize>() + format * autoencoder(model)) as u64
}

/// Numbers of the autoencoder: two 3×3 convolutions for each residual block, one between levels, two blocks and four
/// projections in each middle.
fn autoencoder(model: &StableDiffusion) -> usize {
    let config = &model.vae.config;
    let channels = &config.block_out_channels;
    let halves = [config.layers_per_block, config.layers_per_block + 1];
    let stages = halves.iter().map(|blocks| channels.iter().map(|c| (2 * blocks + 1) * 9 * c * c).sum::<usize>());
    let middle = channels.last().map_or(0, |c| (4 * 9 + 4) * c * c);
    stages.sum::<usize>() + 2 * middle
}

/// Tensors of a residual block's size that are alive at once where nothing waits for a gradient.
const ALIVE: usize = 4;

/// Numbers alive at once while pictures become latents, or samples are made where there are any.
fn pictures(model: &StableDiffusion, config: &Config) -> usize {
    let channels = &model.vae.config.block_out_channels;
    let [width, height] = config.views.largest();
    let encoding = ALIVE * width * height * channels.first().copied().unwrap_or(0);
    if config.sample_every == 0 {
        return encoding;
    }
    let side = config.views.resolutions.first().copied().unwrap_or(model.native_size()[0]);
    // With guidance and without; the skips wait for the way up.
    let pass = Pass::new(model, 2, [side; 2]);
    let denoiser = || model.layers.iter().filter(|layer| layer.part == Part::Unet);
    let largest = denoiser().map(|layer| pass.numbers(layer)[0]).max().unwrap_or(0);
    let step = denoiser().map(|layer| pass.passed_on(layer)).sum::<usize>() / 2 + ALIVE * largest;
    // The decoder's last level works at full size, on as many channels as the level below gave it.
    let widest = channels.get(1).or(channels.first()).copied().unwrap_or(0);
    encoding.max(step).max(ALIVE * side * side * widest)
}
