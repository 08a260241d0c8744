//! What a pass keeps until its gradients are known: the numbers that backward operations ask for, layer by layer.
//!
//! A norm, with the SiLU behind it, keeps its input, attention its queries, keys and values, a gate both its halves; a
//! frozen layer keeps nothing. A layer whose adapter trains its read side keeps its input for that.

use crate::engine::model::clip::TextEncoder;
use crate::engine::model::{Layer, Part, StableDiffusion};

/// One pass of `pictures` of a size.
pub struct Pass<'a> {
    model: &'a StableDiffusion,
    pictures: usize,
    /// Pixels of each level, the widest first.
    levels: Vec<usize>,
}

impl<'a> Pass<'a> {
    /// `size` is `[width, height]` in pixels.
    pub fn new(model: &'a StableDiffusion, pictures: usize, size: [usize; 2]) -> Self {
        let [w, h] = size.map(|side| side / model.vae.factor());
        let levels = 0..model.unet.config.block_out_channels.len();
        let halved = |side: usize, level: usize| side.div_ceil(1 << level);
        Self { model, pictures, levels: levels.map(|level| halved(w, level) * halved(h, level)).collect() }
    }

    /// Numbers at a layer, with the norm before it and the activation or the products behind it. `reads`: an adapter there
    /// needs the input again.
    pub fn kept(&self, layer: &Layer, reads: bool) -> usize {
        let [input, out] = self.numbers(layer);
        let own = if reads { input } else { 0 };
        match layer.path.rsplit('.').next() {
            Some("conv1" | "conv2" | "conv_out" | "proj_in") => input + own,
            Some("to_q" | "q_proj") => input + own + out + self.scores(layer),
            Some("to_k" | "to_v" | "k_proj" | "v_proj") => out,
            Some("proj") => input + own + out,
            // The quick GELU's input and factor.
            Some("fc1") => input + own + 2 * out,
            _ => own,
        }
    }

    /// Numbers of a layer's answer where a stretch of the denoiser ends in it: what the next one begins with.
    pub fn passed_on(&self, layer: &Layer) -> usize {
        match layer.path.rsplit('.').next() {
            Some("conv2" | "conv" | "conv_in" | "conv_out") => self.numbers(layer)[1],
            _ => 0,
        }
    }

    /// Of a layer's input and answer.
    pub fn numbers(&self, layer: &Layer) -> [usize; 2] {
        let [before, behind] = self.places(layer);
        [before * layer.channels, behind * layer.out].map(|numbers| numbers * self.pictures)
    }

    /// Pixels or tokens before and behind a layer.
    fn places(&self, layer: &Layer) -> [usize; 2] {
        let level = self.level(layer);
        let at = |level: usize| self.levels[level.min(self.levels.len() - 1)];
        let path = layer.path.as_str();
        match () {
            () if layer.part.is_text() => [self.model.text.length(); 2],
            () if path.contains("time_emb") || path.contains("add_emb") => [1; 2],
            () if path.contains("attn2.to_k") || path.contains("attn2.to_v") => [self.model.text.length(); 2],
            () if path.contains("downsamplers") => [at(level), at(level + 1)],
            () if path.contains("upsamplers") => [at(level.saturating_sub(1)); 2],
            () => [at(level); 2],
        }
    }

    /// The level of a layer by its path; what is outside the blocks works at full size.
    fn level(&self, layer: &Layer) -> usize {
        let mut words = layer.path.split('.');
        let last = self.levels.len() - 1;
        match (words.next(), words.next().and_then(|n| n.parse::<usize>().ok())) {
            (Some("down_blocks"), Some(n)) => n.min(last),
            (Some("up_blocks"), Some(n)) => last.saturating_sub(n),
            (Some("mid_block"), _) => last,
            _ => 0,
        }
    }

    /// The text encoder's scores, which are masked, three times over; the denoiser's are computed again.
    fn scores(&self, layer: &Layer) -> usize {
        let text = self.model.text.length();
        let heads = |encoder: &TextEncoder| 3 * self.pictures * encoder.config.num_attention_heads * text * text;
        match layer.part {
            Part::Text => heads(&self.model.text),
            Part::Text2 => self.model.second.as_ref().map_or(0, |second| heads(&second.encoder)),
            _ => 0,
        }
    }
}

/// The stretch of the denoiser that a layer runs in: a residual block with its transformer, a resampler, an end.
pub fn stretch(layer: &Layer) -> String {
    let words: Vec<&str> = layer.path.split('.').collect();
    let end = words.iter().position(|word| ["resnets", "attentions"].contains(word));
    match end.and_then(|end| Some((&words[..end], words.get(end + 1)?))) {
        Some((block, number)) => format!("{}.{number}", block.join(".")),
        None => layer.path.clone(),
    }
}
