//! How much memory a training will take, from the shapes of its layers. A guess for people: right within a factor of two.
//!
//! With `b` pictures in a pass (the batch and its prior), `p` places of a layer (pixels of its level, or tokens) and
//! four bytes a number:
//!
//! - weights: every number of the model, in the format it is held in;
//! - activations: `b · Σ 4·p·out` over the layers of the denoiser (the input, the answer, the adapter's share and the
//!   norm or activation behind it wait for the backward pass), `b · Σ 2·heads·p·keys` for the scores of attention, and
//!   the text encoder's layers for every prompt, once for each layer that has token vectors of its own; a method that is
//!   defined on the weight adds `3·out·in` for each layer;
//! - optimiser and gradients: value, gradient, two moments and a passing copy of each trained number;
//! - sampling: a guided step of one picture, or decoding it, whichever is more.

use serde::Serialize;

use crate::engine::Result;
use crate::engine::adapter::{Adapter, FileKind, Method, target};
use crate::engine::model::{Layer, Part, StableDiffusion};
use crate::engine::train::config::Config;

const F32: u64 = 4;
/// Numbers that wait for each number of a layer's answer.
const WAITING: u64 = 4;

/// Bytes by what they are for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    pub parts: Vec<(&'static str, u64)>,
}

impl Estimate {
    /// Of a training with these settings.
    pub fn of(model: &StableDiffusion, method: &Method, adapter: &dyn Adapter, config: &Config) -> Result<Self> {
        let targets = target::select(&config.targets, &model.layers)?;
        let layers: Vec<&Layer> = targets.iter().map(|&id| model.layer(id)).collect();
        let depth = |place: usize| place as f32 / layers.len() as f32;
        let trained: usize = layers.iter().enumerate().map(|(place, layer)| adapter.count(layer, depth(place))).sum();
        let trained = trained + config.token_layers * config.vectors * model.text.config.hidden_size;
        let dense: usize = match method.file {
            FileKind::Difference => layers.iter().map(|layer| 3 * layer.out * layer.input()).sum(),
            _ => 0,
        };
        let pictures = config.batch + if config.prior > 0.0 { config.prior_batch } else { 0 };
        let [width, height] = config.views.largest();
        let places = Places::new(model, [width, height]);
        let pass: u64 = model.layers.iter().map(|layer| places.numbers(layer)).sum();
        let text: u64 = text_layers(model).map(|layer| (model.text.length() * layer.out) as u64).sum();
        let activations = pictures as u64 * (WAITING * pass + places.scores(model))
            + (config.token_layers * (config.batch + config.strangers)) as u64 * WAITING * text
            + dense as u64;
        Ok(Self {
            parts: vec![
                ("weights", weights(model)),
                ("activations", F32 * activations),
                ("optimiser and gradients", 5 * F32 * trained as u64),
                ("sampling", F32 * sampling(model)),
            ],
        })
    }

    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Where the layers of the denoiser work.
struct Places {
    /// Pixels of each level, the widest first.
    levels: Vec<usize>,
    tokens: usize,
}

impl Places {
    fn new(model: &StableDiffusion, size: [usize; 2]) -> Self {
        let [w, h] = size.map(|side| side / model.vae.factor());
        let levels = 0..model.unet.config.block_out_channels.len();
        Self { levels: levels.map(|level| (w >> level) * (h >> level)).collect(), tokens: model.text.length() }
    }

    /// The level of a layer by its path; what is outside the blocks works at full size.
    fn level(&self, path: &str) -> usize {
        let mut words = path.split('.');
        let last = self.levels.len() - 1;
        match (words.next(), words.next().and_then(|n| n.parse::<usize>().ok())) {
            (Some("down_blocks"), Some(n)) => n.min(last),
            (Some("up_blocks"), Some(n)) => last.saturating_sub(n),
            (Some("mid_block"), _) => last,
            _ => 0,
        }
    }

    /// Numbers of a layer's answer to one picture; 0 outside the denoiser.
    fn numbers(&self, layer: &Layer) -> u64 {
        let places = match () {
            () if layer.part != Part::Unet => 0,
            () if layer.path.contains("time_emb") => 1,
            () if layer.path.contains(".attn2.to_k") || layer.path.contains(".attn2.to_v") => self.tokens,
            () => self.levels[self.level(&layer.path)],
        };
        (places * layer.out) as u64
    }

    /// Scores of all attention to one picture, before and after the softmax.
    fn scores(&self, model: &StableDiffusion) -> u64 {
        let of = |layer: &Layer| {
            let level = self.level(&layer.path);
            let places = self.levels[level];
            let keys = match () {
                () if layer.path.ends_with(".attn1.to_q") => places,
                () if layer.path.ends_with(".attn2.to_q") => self.tokens,
                () => 0,
            };
            2 * (model.unet.config.heads(level) * places * keys) as u64
        };
        model.layers.iter().map(of).sum()
    }
}

fn text_layers(model: &StableDiffusion) -> impl Iterator<Item = &Layer> {
    model.layers.iter().filter(|layer| layer.part == Part::Text)
}

/// Bytes of all that is loaded. Norms are left out: they are thousandths.
fn weights(model: &StableDiffusion) -> u64 {
    let layers = model.weights.iter().map(|weight| {
        let bias = weight.bias.as_ref().map_or(0, |bias| bias.shape().num_elements());
        weight.oi.shape().num_elements() as u64 * weight.oi.dtype().size() as u64 + F32 * bias as u64
    });
    let text = &model.text.config;
    let embeddings = (text.vocab_size + text.max_position_embeddings) * text.hidden_size;
    layers.sum::<u64>() + F32 * (embeddings + autoencoder(model)) as u64
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

/// Numbers alive at once while one picture of the model's own size is made.
fn sampling(model: &StableDiffusion) -> u64 {
    let size = model.native_size();
    let places = Places::new(model, size);
    let largest = model.layers.iter().map(|layer| places.numbers(layer)).max().unwrap_or(0);
    let step = 2 * (WAITING * largest + places.scores(model));
    // The last level of the decoder works at full size, on as many channels as the level below gave it.
    let channels = &model.vae.config.block_out_channels;
    let widest = channels.get(1).or(channels.first()).copied().unwrap_or(0);
    step.max(WAITING * (size[0] * size[1] * widest) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter;
    use crate::engine::device;
    use crate::engine::field::Settings;
    use crate::engine::train::config;

    /// Peak resident memory beyond that before the first step, in megabytes, on the starter and the CPU: five steps of
    /// each, read from `VmHWM` and `VmRSS`.
    #[test]
    fn the_starter_takes_what_was_measured_within_a_factor_of_two() {
        let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
        let measured = [
            ("orthogonal", "batch", "4", 222.0),
            ("orthogonal", "batch", "1", 65.0),
            ("orthogonal", "batch", "8", 420.0),
            ("orthogonal", "prior", "0", 127.0),
            ("lora", "targets", "*", 263.0),
            ("dora", "batch", "4", 253.0),
        ];
        for (method, field, value, growth) in measured {
            let row = adapter::method(method).unwrap();
            let settings = Settings::new(config::FIELDS, [(field, value)]).unwrap();
            let config = Config::new(&settings, row, &model).unwrap();
            let context = adapter::Context { seed: 0, slot: 0, block: 8 };
            let adapter = (row.build)(&Settings::new(row.fields, []).unwrap(), &context).unwrap();
            let estimate = Estimate::of(&model, row, adapter.as_ref(), &config).unwrap();
            let training: u64 = estimate.parts[1..3].iter().map(|(_, bytes)| bytes).sum();
            let times = training as f64 / 1e6 / growth;
            println!("{method} {field}={value}: {times:.2} of the {growth} MB measured; {:?}", estimate.parts);
            assert!((0.5..2.0).contains(&times), "{method} {field}={value}: {times}");
        }
    }
}
