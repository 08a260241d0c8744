//! What the denoiser's cross-attention reads: one text for all of its layers, or a text for each, as P+ has it (Voynov et
//! al. 2023, arXiv 2303.09522).

use burn::tensor::Tensor;

use crate::engine::model::pooled::{Framing, Pooled, index};
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Mounts, StableDiffusion};

/// The text, and in SDXL what goes with it, for `b` pictures.
#[derive(Clone, Debug)]
pub struct Context {
    /// `[b, n, width]` for every cross-attention layer, or one for each in the order down, middle, up.
    slices: Vec<Tensor<3>>,
    pooled: Option<Pooled>,
}

impl From<Tensor<3>> for Context {
    /// The same for every layer.
    fn from(all: Tensor<3>) -> Self {
        Self { slices: vec![all], pooled: None }
    }
}

impl Context {
    #[must_use]
    pub fn with_pooled(self, pooled: Pooled) -> Self {
        Self { pooled: Some(pooled), ..self }
    }

    /// What cross-attention layer `layer` reads, counted from 0.
    pub fn at(&self, layer: usize) -> &Tensor<3> {
        match &self.slices[..] {
            [all] => all,
            layers => &layers[layer],
        }
    }

    /// One for all layers, or one for each.
    pub fn slices(&self) -> &[Tensor<3>] {
        &self.slices
    }

    pub fn pooled(&self) -> Option<&Pooled> {
        self.pooled.as_ref()
    }

    /// For how many pictures it is.
    pub fn pictures(&self) -> usize {
        self.at(0).dims()[0]
    }

    pub fn is_tracked(&self) -> bool {
        self.slices.iter().any(Tensor::is_tracked)
            || self.pooled.as_ref().is_some_and(|pooled| pooled.text.is_tracked())
    }

    /// With every slice changed alike.
    #[must_use]
    pub fn map(self, change: impl FnMut(Tensor<3>) -> Tensor<3>) -> Self {
        Self { slices: self.slices.into_iter().map(change).collect(), ..self }
    }

    /// With the vector beside the text changed, where there is one.
    #[must_use]
    pub fn map_pooled(self, change: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let pooled = self.pooled.map(|Pooled { text, framings }| Pooled { text: change(text), framings });
        Self { pooled, ..self }
    }

    /// For pictures that these are told of; a model that reads no sizes is told nothing.
    #[must_use]
    pub fn framed(self, framings: &[Framing]) -> Self {
        let pooled = self.pooled.map(|Pooled { text, .. }| Pooled { text, framings: framings.to_vec() });
        Self { pooled, ..self }
    }

    /// For the pictures of these numbers, in their order.
    #[must_use]
    pub fn rows(&self, rows: &[usize]) -> Self {
        let slices = self.slices.iter().map(|slice| slice.clone().select(0, index(rows, &slice.device()))).collect();
        Self { slices, pooled: self.pooled.as_ref().map(|pooled| pooled.rows(rows)) }
    }

    /// With what stands beside the text taken from these rows.
    #[must_use]
    pub fn pooled_rows(self, rows: &[usize]) -> Self {
        let pooled = self.pooled.map(|pooled| pooled.rows(rows));
        Self { pooled, ..self }
    }

    /// For the pictures of each of `parts`, at least one, in turn.
    pub fn cat(parts: &[Self]) -> Self {
        let layers = parts.iter().map(|part| part.slices.len()).max().unwrap_or(1);
        let of_layer = |layer| Tensor::cat(parts.iter().map(|part| part.at(layer).clone()).collect(), 0);
        let pooled: Vec<&Pooled> = parts.iter().filter_map(Self::pooled).collect();
        Self { slices: (0..layers).map(of_layer).collect(), pooled: Pooled::cat(&pooled) }
    }

    /// The same numbers outside of any graph.
    #[must_use]
    pub fn inner(self) -> Self {
        self.map(Tensor::inner).map_pooled(Tensor::inner)
    }

    /// `Σ xᵢ·gᵢ` over all numbers, where `gradient` has as many.
    pub fn dot(&self, gradient: &Self) -> Tensor<1> {
        let products = self.slices.iter().zip(&gradient.slices).map(|(x, g)| (x.clone() * g.clone()).sum());
        let pooled = self.pooled().zip(gradient.pooled()).map(|(x, g)| (x.text.clone() * g.text.clone()).sum());
        Tensor::cat(products.chain(pooled).collect(), 0).sum()
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
            let (text, pooled) = self.encode(prompts, &vectors, clip_skip, mounts);
            return self.with_sizes(text.into(), pooled);
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
        let (encoded, pooled) = self.encode(&rows, &vectors, clip_skip, mounts);
        let of_layer = |layer: usize| {
            let rows: Vec<usize> = places.iter().map(|(first, step)| first + step * layer).collect();
            index(&rows, &self.device)
        };
        let slices = (0..layers).map(|layer| encoded.clone().select(0, of_layer(layer))).collect();
        // No layer's words sum up a prompt better than another's.
        self.with_sizes(Context { slices, pooled: None }, pooled.map(|pooled| pooled.select(0, of_layer(0))))
    }

    /// Until something else is said, pictures are whole and of the model's own size.
    fn with_sizes(&self, context: Context, pooled: Option<Tensor<2>>) -> Context {
        let Some(text) = pooled else { return context };
        let [width, height] = self.native_size();
        let framings = vec![Framing::whole([height, width]); text.dims()[0]];
        context.with_pooled(Pooled { text, framings })
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
