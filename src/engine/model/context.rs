//! What the denoiser's cross-attention reads: one text for all of its layers, or a text for each, as P+ has it (Voynov et
//! al. 2023, arXiv 2303.09522).

use burn::tensor::{Int, Tensor, TensorData};

use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Mounts, StableDiffusion};

/// `[b, n, width]` for every cross-attention layer, or one for each in the order down, middle, up.
#[derive(Clone, Debug)]
pub struct Context(Vec<Tensor<3>>);

impl From<Tensor<3>> for Context {
    /// The same for every layer.
    fn from(all: Tensor<3>) -> Self {
        Self(vec![all])
    }
}

impl Context {
    /// What cross-attention layer `layer` reads, counted from 0.
    pub fn at(&self, layer: usize) -> &Tensor<3> {
        match &self.0[..] {
            [all] => all,
            layers => &layers[layer],
        }
    }

    /// One for all layers, or one for each.
    pub fn slices(&self) -> &[Tensor<3>] {
        &self.0
    }

    /// For how many pictures it is.
    pub fn pictures(&self) -> usize {
        self.at(0).dims()[0]
    }

    pub fn is_tracked(&self) -> bool {
        self.0.iter().any(Tensor::is_tracked)
    }

    /// With every slice changed alike.
    #[must_use]
    pub fn map(&self, change: impl FnMut(Tensor<3>) -> Tensor<3>) -> Self {
        Self(self.0.iter().cloned().map(change).collect())
    }

    /// For the pictures of each of `parts`, at least one, in turn.
    pub fn cat(parts: &[Self]) -> Self {
        let layers = parts.iter().map(|part| part.0.len()).max().unwrap_or(1);
        let of_layer = |layer| Tensor::cat(parts.iter().map(|part| part.at(layer).clone()).collect(), 0);
        Self((0..layers).map(of_layer).collect())
    }

    /// `Σ xᵢ·gᵢ` over all numbers of all slices, where `gradient` has as many.
    pub fn dot(&self, gradient: &[Tensor<3>]) -> Tensor<1> {
        let products = self.0.iter().zip(gradient).map(|(x, g)| (x.clone() * g.clone()).sum());
        Tensor::cat(products.collect(), 0).sum()
    }
}

impl StableDiffusion {
    /// Prompts → what the denoiser reads of them, `b` prompts for `b` pictures. Marked positions take their vector from
    /// `words`: one `[1, n, width]` for all cross-attention layers, or `[layers, n, width]`, a vector for each. Only
    /// prompts with a word of the second kind are encoded once for every layer. `clip_skip` counts the text encoder's layer
    /// from the end.
    pub fn context(&self, prompts: &[Encoded], words: &[Tensor<3>], clip_skip: usize, mounts: &Mounts) -> Context {
        let vectors: Vec<Tensor<2>> = words.iter().map(|word| word.clone().flatten(0, 1)).collect();
        let is_layered = |prompt: &Encoded| prompt.marks.iter().any(|mark| words[mark.word].dims()[0] > 1);
        if !prompts.iter().any(is_layered) {
            return self.condition_at(prompts, &vectors, clip_skip, mounts).into();
        }
        let layers = self.unet.cross_attentions;
        let mut rows = Vec::new();
        // The row of each prompt for the first layer, and how many further on the next layer's is.
        let mut places = Vec::new();
        for prompt in prompts {
            let (times, step) = if is_layered(prompt) { (layers, 1) } else { (1, 0) };
            places.push((rows.len(), step));
            rows.extend((0..times).map(|layer| at_layer(prompt, words, layer)));
        }
        let encoded = self.condition_at(&rows, &vectors, clip_skip, mounts);
        let of_layer = |layer: usize| {
            let rows: Vec<i32> =
                places.iter().map(|(first, step)| i32::try_from(first + step * layer).unwrap_or(0)).collect();
            let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [places.len()]), &self.device);
            encoded.clone().select(0, rows)
        };
        Context((0..layers).map(of_layer).collect())
    }
}

/// The prompt whose marks point to the vectors that `layer` has, where a word's layers lie one after the other.
fn at_layer(prompt: &Encoded, words: &[Tensor<3>], layer: usize) -> Encoded {
    let mut prompt = prompt.clone();
    for mark in &mut prompt.marks {
        let [layers, vectors, _] = words[mark.word].dims();
        mark.vector += if layers > 1 { layer * vectors } else { 0 };
    }
    prompt
}
