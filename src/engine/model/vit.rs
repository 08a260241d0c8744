//! Vision transformer (Dosovitskiy et al. 2020, <https://arxiv.org/abs/2010.11929>) as transformers'
//! `ViTForImageClassification` lays it out, up to the first token: RGB `[n, 3, side, side]`, normalised → `[n, width]`.

use burn::tensor::{Tensor, activation};
use serde::Deserialize;

use crate::engine::model::Mounts;
use crate::engine::model::blocks::{Conv, ConvShape, Linear, Norm, attention};
use crate::engine::model::loader::Scope;
use crate::engine::{Error, Result};

/// `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    /// Side of the pictures.
    pub image_size: usize,
    patch_size: usize,
    #[serde(default = "default_bias")]
    qkv_bias: bool,
}

fn default_eps() -> f64 {
    1e-12
}

fn default_bias() -> bool {
    true
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Gelu,
    /// With the hyperbolic tangent.
    GeluTanh,
}

#[derive(Debug)]
pub struct Vit {
    patches: Conv,
    /// `[1, 1, width]`.
    class_token: Tensor<3>,
    /// `[1, tokens, width]`.
    positions: Tensor<3>,
    layers: Vec<Layer>,
    norm: Norm,
}

#[derive(Debug)]
struct Layer {
    norm_before: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    norm_after: Norm,
    wide: Linear,
    narrow: Linear,
    heads: usize,
    act: Act,
}

impl Config {
    /// Patches along each side.
    fn patches(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    fn act(&self) -> Option<Act> {
        match self.hidden_act.as_str() {
            "gelu" => Some(Act::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Act::GeluTanh),
            _ => None,
        }
    }

    /// Refuses what cannot be run as it says.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(what, "Check config.json, or fetch the model again"));
        if self.act().is_none() {
            return wrong(format!("The vision transformer uses the activation “{}”", self.hidden_act));
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            return wrong(format!("{width} channels do not divide into {heads} heads"));
        }
        if self.num_hidden_layers > 256 {
            return wrong(format!("A vision transformer of {} layers is none", self.num_hidden_layers));
        }
        if !(1..=256).contains(&self.patches()) {
            return wrong(format!(
                "Pictures of {0}×{0} do not divide into patches of {1}",
                self.image_size, self.patch_size
            ));
        }
        Ok(())
    }
}

impl Vit {
    pub fn load(config: &Config, scope: &Scope<'_>) -> Self {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let tokens = 1 + config.patches().pow(2);
        let embeddings = scope.sub("embeddings");
        let shape = ConvShape { kernel: [patch; 2], stride: patch, padding: 0 };
        Self {
            patches: embeddings.sub("patch_embeddings").conv("projection", 3, width, shape),
            class_token: embeddings.tensor("cls_token", [1, 1, width]),
            positions: embeddings.tensor("position_embeddings", [1, tokens, width]),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(config, &scope.sub("encoder.layer").sub(i)))
                .collect(),
            norm: scope.norm("layernorm", width, config.layer_norm_eps),
        }
    }

    /// Every token after the last norm, `[n, tokens, width]`.
    pub fn hidden(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<3> {
        let [n, ..] = x.dims();
        let [_, _, width] = self.class_token.dims();
        let patches = self.patches.forward(x, mounts).flatten::<3>(2, 3).swap_dims(1, 2);
        let tokens = Tensor::cat(vec![self.class_token.clone().expand([n, 1, width]), patches], 1);
        let x = tokens + self.positions.clone();
        self.norm.layer(self.layers.iter().fold(x, |x, layer| layer.forward(x, mounts)))
    }

    pub fn features(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<2> {
        self.hidden(x, mounts).narrow(1, 0, 1).squeeze_dim::<2>(1)
    }
}

impl Layer {
    fn load(config: &Config, scope: &Scope<'_>) -> Self {
        let Config { hidden_size: width, intermediate_size: wide, layer_norm_eps: eps, .. } = *config;
        let looks = scope.sub("attention.attention");
        let of_three = |name| looks.linear(name, width, width, config.qkv_bias);
        Self {
            norm_before: scope.norm("layernorm_before", width, eps),
            query: of_three("query"),
            key: of_three("key"),
            value: of_three("value"),
            attended: scope.sub("attention.output").linear("dense", width, width, true),
            norm_after: scope.norm("layernorm_after", width, eps),
            wide: scope.sub("intermediate").linear("dense", width, wide, true),
            narrow: scope.sub("output").linear("dense", wide, width, true),
            heads: config.num_attention_heads,
            act: config.act().unwrap_or(Act::Gelu),
        }
    }

    fn forward(&self, x: Tensor<3>, mounts: &Mounts) -> Tensor<3> {
        let h = self.norm_before.layer(x.clone());
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|linear| linear.forward(h.clone(), mounts));
        let x = x + self.attended.forward(attention(q, k, v, self.heads, None), mounts);
        let h = self.wide.forward(self.norm_after.layer(x.clone()), mounts);
        let h = match self.act {
            Act::Gelu => activation::gelu(h),
            Act::GeluTanh => activation::gelu_approximate(h),
        };
        x + self.narrow.forward(h, mounts)
    }
}
