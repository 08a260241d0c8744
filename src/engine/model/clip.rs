//! CLIP text encoders (transformers `CLIPTextModel`, `CLIPTextModelWithProjection`): token ids `[b, 77]` → hidden states
//! `[b, 77, width]`, and in SDXL's second one a vector `[b, width]` that sums the prompt up.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use serde::Deserialize;

use crate::engine::io::Checkpoint;
use crate::engine::model::blocks::{Linear, Norm, attention};
use crate::engine::model::loader::{Loader, Scope};
use crate::engine::model::{Hold, Mounts, Part, Table};
use crate::engine::ops::widen;
use crate::engine::{Error, Result};

/// `text_encoder/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    #[serde(default = "default_act")]
    pub hidden_act: String,
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    /// Of the pooled vector, where there is one.
    #[serde(default = "default_projection")]
    pub projection_dim: usize,
}

fn default_positions() -> usize {
    77
}

pub(super) fn default_act() -> String {
    "quick_gelu".into()
}

pub(super) fn default_eps() -> f64 {
    1e-5
}

fn default_projection() -> usize {
    512
}

/// What a model reads of a text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Stable Diffusion 1.x and 2.x: a layer's state behind the final norm.
    Only,
    /// SDXL: the state of the layer before the last, as it is.
    First,
    /// Likewise, and the projected last state at the end of the prompt.
    Second,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// `x·σ(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    Gelu,
}

#[derive(Debug)]
pub struct TextEncoder {
    pub config: Config,
    /// As it is held: f32 or f16.
    tokens: Tensor<2>,
    positions: Tensor<2>,
    layers: Vec<EncoderLayer>,
    final_norm: Norm,
    /// To the pooled vector.
    projection: Option<Linear>,
    role: Role,
    /// `[1, 1, 77, 77]`: −∞ where a token would look ahead.
    causal: Tensor<4>,
}

#[derive(Debug)]
struct EncoderLayer {
    norm1: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    act: Act,
}

impl TextEncoder {
    pub fn load(config: Config, role: Role, file: &Checkpoint, hold: Hold<'_>, table: Table) -> Result<(Self, Table)> {
        let act = match config.hidden_act.as_str() {
            "quick_gelu" => Act::QuickGelu,
            "gelu" => Act::Gelu,
            other => {
                return Err(Error::new(
                    format!("The text encoder uses the activation “{other}”"),
                    "Only CLIP text encoders (quick_gelu, gelu) can be loaded",
                )
                .at(file.path()));
            }
        };
        let Config {
            vocab_size, hidden_size: width, num_attention_heads: heads, max_position_embeddings: length, ..
        } = config;
        if !(2..=4096).contains(&length) || config.num_hidden_layers > 256 {
            return Err(Error::new(
                format!("A text encoder of {length} positions and {} layers is not CLIP's", config.num_hidden_layers),
                "Check text_encoder/config.json",
            )
            .at(file.path()));
        }
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::new(format!("{width} channels do not divide into {heads} heads"), "Check config.json")
                .at(file.path()));
        }
        let part = if role == Role::Second { Part::Text2 } else { Part::Text };
        let mut loader = Loader::new(file, crate::engine::io::names::text_encoder, hold, part, table);
        if role == Role::First {
            let last = config.num_hidden_layers.saturating_sub(1);
            loader.leave_idle([format!("text_model.encoder.layers.{last}."), "text_model.final_layer_norm.".into()]);
        }
        let root = loader.root().sub("text_model");
        let eps = config.layer_norm_eps;
        let encoder = Self {
            tokens: root.matrix("embeddings.token_embedding.weight", [vocab_size, width]),
            positions: root.tensor("embeddings.position_embedding.weight", [length, width]),
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(&root.sub(format!("encoder.layers.{i}")), &config, act))
                .collect(),
            final_norm: root.norm("final_layer_norm", width, eps),
            projection: (role == Role::Second)
                .then(|| loader.root().linear("text_projection", width, config.projection_dim, false)),
            role,
            causal: causal_mask(length, hold.device),
            config,
        };
        Ok((encoder, loader.finish()?))
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Longest prompt in tokens, both ends included.
    pub fn length(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Rows of the embedding table: ids `[b, n]` → `[b, n, width]`.
    pub fn embed(&self, ids: &[Vec<u32>]) -> Tensor<3> {
        let (rows, columns) = (ids.len(), ids.first().map_or(0, Vec::len));
        let flat: Vec<i32> = ids.iter().flatten().map(|&id| id.cast_signed()).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(flat, [rows * columns]), &self.tokens.device());
        widen(self.tokens.clone().select(0, index)).reshape([rows, columns, self.config.hidden_size])
    }

    /// Refuses a clip skip for which there are too few layers.
    pub fn check_skip(&self, clip_skip: usize) -> Result<()> {
        let layers = self.layers.len();
        if (1..=layers.max(1)).contains(&clip_skip) {
            return Ok(());
        }
        Err(Error::usage(
            format!("Clip skip cannot be {clip_skip}: the text encoder of this model has {layers} layers"),
            format!("Choose 1 for the last layer, and at most {layers} for the first"),
        ))
    }

    /// Embedded tokens → what the denoiser reads: the state of the last layer where `clip_skip` is 1, of the last but one
    /// where it is 2, and so on (A1111's `CLIP_stop_at_last_layers`), behind the final norm. In SDXL 1 and 2 both are the
    /// last but one, as in ComfyUI, and no norm follows.
    pub fn forward(&self, embedded: Tensor<3>, clip_skip: usize, mounts: &Mounts) -> Tensor<3> {
        let mask = self.mask(&embedded);
        let x = self.run(0..self.read(clip_skip), self.placed(embedded), &mask, mounts);
        if self.role == Role::Only { self.final_norm.layer(x) } else { x }
    }

    /// The same, and what the model reads of the prompts as wholes `[b, projection]`: the last state at each one's end
    /// token, whose positions are `ends`, behind norm and projection. `None` where the model reads no such thing.
    pub fn forward_pooled(
        &self,
        embedded: Tensor<3>,
        ends: &[usize],
        clip_skip: usize,
        mounts: &Mounts,
    ) -> (Tensor<3>, Option<Tensor<2>>) {
        let Some(projection) = &self.projection else { return (self.forward(embedded, clip_skip, mounts), None) };
        let mask = self.mask(&embedded);
        let read = self.read(clip_skip);
        let state = self.run(0..read, self.placed(embedded), &mask, mounts);
        let last = self.run(read..self.layers.len(), state.clone(), &mask, mounts);
        let [b, n, width] = last.dims();
        let rows: Vec<i32> = ends.iter().enumerate().map(|(row, end)| (row * n + end) as i32).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [b]), &last.device());
        let at_end = self.final_norm.layer(last).reshape([b * n, width]).select(0, rows);
        (state, Some(projection.forward(at_end, mounts)))
    }

    /// How many layers run before the state that is read.
    fn read(&self, clip_skip: usize) -> usize {
        let skip = if self.role == Role::Only { clip_skip } else { clip_skip.max(2) };
        (self.layers.len() + 1).saturating_sub(skip)
    }

    fn placed(&self, embedded: Tensor<3>) -> Tensor<3> {
        let [_, n, _] = embedded.dims();
        embedded + self.positions.clone().narrow(0, 0, n).unsqueeze()
    }

    fn mask(&self, embedded: &Tensor<3>) -> Tensor<4> {
        let [_, n, _] = embedded.dims();
        self.causal.clone().narrow(2, 0, n).narrow(3, 0, n)
    }

    fn run(&self, layers: Range<usize>, x: Tensor<3>, mask: &Tensor<4>, mounts: &Mounts) -> Tensor<3> {
        self.layers[layers].iter().fold(x, |x, layer| layer.forward(x, mask, mounts))
    }
}

impl EncoderLayer {
    fn load(scope: &Scope<'_>, config: &Config, act: Act) -> Self {
        let Config { hidden_size: width, intermediate_size, layer_norm_eps: eps, .. } = *config;
        Self {
            norm1: scope.norm("layer_norm1", width, eps),
            query: scope.linear("self_attn.q_proj", width, width, true),
            key: scope.linear("self_attn.k_proj", width, width, true),
            value: scope.linear("self_attn.v_proj", width, width, true),
            out: scope.linear("self_attn.out_proj", width, width, true),
            norm2: scope.norm("layer_norm2", width, eps),
            fc1: scope.linear("mlp.fc1", width, intermediate_size, true),
            fc2: scope.linear("mlp.fc2", intermediate_size, width, true),
            heads: config.num_attention_heads,
            act,
        }
    }

    fn forward(&self, x: Tensor<3>, mask: &Tensor<4>, mounts: &Mounts) -> Tensor<3> {
        let h = self.norm1.layer(x.clone());
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|linear| linear.forward(h.clone(), mounts));
        let x = x + self.out.forward(attention(q, k, v, self.heads, Some(mask.clone())), mounts);
        let h = self.fc1.forward(self.norm2.layer(x.clone()), mounts);
        let h = match self.act {
            Act::QuickGelu => h.clone() * activation::sigmoid(h * 1.702),
            Act::Gelu => activation::gelu(h),
        };
        x + self.fc2.forward(h, mounts)
    }
}

fn causal_mask(n: usize, device: &Device) -> Tensor<4> {
    let values = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [1, 1, n, n]), device)
}

#[cfg(test)]
mod tests {
    use crate::engine::device;
    use crate::engine::model::{Mounts, StableDiffusion};

    #[test]
    fn clip_skip_is_the_encoder_without_its_last_layers() {
        let mut model = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
        let ids = model.tokenizer.encode("a 3d emoji of robot", &[]).unwrap().ids;
        let embedded = model.text.embed(&[ids]);
        let whole = model.text.forward(embedded.clone(), 1, &Mounts::none());
        let layers = model.text.layers.len();
        for skip in 2..=layers {
            let read = model.text.forward(embedded.clone(), skip, &Mounts::none());
            assert!(model.text.check_skip(skip).is_ok());
            let mut shorter = std::mem::take(&mut model.text.layers);
            let last = shorter.split_off(layers + 1 - skip);
            model.text.layers = shorter;
            let by_hand = model.text.forward(embedded.clone(), 1, &Mounts::none());
            model.text.layers.extend(last);
            assert_eq!(read.clone().into_data(), by_hand.into_data(), "{skip}");
            assert_ne!(read.into_data(), whole.clone().into_data(), "{skip}");
        }
        for wrong in [0, layers + 1, usize::MAX] {
            let error = model.text.check_skip(wrong).unwrap_err();
            assert!(error.what.contains(&format!("has {layers} layers")), "{error}");
        }
    }
}
