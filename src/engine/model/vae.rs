//! Latents ↔ pixels (diffusers `AutoencoderKL`). Pixels are `[b, 3, h, w]` in −1…1.

use burn::tensor::Tensor;
use serde::Deserialize;

use crate::engine::io::Checkpoint;
use crate::engine::model::blocks::{Conv, ConvShape, Linear, Norm, attention, upsample};
use crate::engine::model::loader::{Loader, Scope};
use crate::engine::model::residual::Resnet;
use crate::engine::model::tiles::in_tiles;
use crate::engine::model::{Hold, Mounts, Part, Table};
use crate::engine::ops::Then;
use crate::engine::{Error, Result};

/// The autoencoder's own epsilon, fixed in diffusers.
const EPS: f64 = 1e-6;

/// `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub layers_per_block: usize,
    pub block_out_channels: Vec<usize>,
    #[serde(default = "default_groups")]
    pub norm_num_groups: usize,
    /// Latents times this have about unit variance.
    #[serde(default = "default_scaling")]
    pub scaling_factor: f64,
    #[serde(default)]
    pub shift_factor: Option<f64>,
}

fn default_groups() -> usize {
    32
}

pub(super) fn default_scaling() -> f64 {
    0.18215
}

#[derive(Debug)]
pub struct Vae {
    pub config: Config,
    encoder: Half,
    quant: Conv,
    post_quant: Conv,
    decoder: Half,
}

/// Encoder or decoder.
#[derive(Debug)]
struct Half {
    conv_in: Conv,
    stages: Vec<Stage>,
    middle: (Resnet, Attention, Resnet),
    norm_out: Norm,
    conv_out: Conv,
    groups: usize,
}

#[derive(Debug)]
struct Stage {
    resnets: Vec<Resnet>,
    resample: Option<Conv>,
}

#[derive(Debug)]
struct Attention {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    groups: usize,
}

impl Vae {
    pub fn load(config: Config, file: &Checkpoint, hold: Hold<'_>) -> Result<Self> {
        let groups = config.norm_num_groups;
        if config.block_out_channels.is_empty()
            || groups == 0
            || config.block_out_channels.iter().any(|c| !c.is_multiple_of(groups))
        {
            return Err(Error::new(
                "The autoencoder's channels do not divide into its groups",
                "Check vae/config.json",
            )
            .at(file.path()));
        }
        if config.shift_factor.is_some_and(|shift| shift != 0.0) || config.latent_channels > 256 {
            return Err(Error::new(
                "The autoencoder is not Stable Diffusion's (it shifts its latents, or has too many channels)",
                "Choose a model of the SD 1.x family",
            )
            .at(file.path()));
        }
        let loader = Loader::new(file, crate::engine::io::names::vae, hold, Part::Vae, Table::default());
        let root = loader.root();
        let latent = config.latent_channels;
        let vae = Self {
            encoder: Half::load_encoder(&root.sub("encoder"), &config),
            quant: root.conv("quant_conv", 2 * latent, 2 * latent, ConvShape::POINT),
            post_quant: root.conv("post_quant_conv", latent, latent, ConvShape::POINT),
            decoder: Half::load_decoder(&root.sub("decoder"), &config),
            config,
        };
        loader.finish()?;
        Ok(vae)
    }

    /// Pixels per latent along each side.
    pub fn factor(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }

    /// Pixels → mean and log-variance of the latents, unscaled. A large picture goes in tiles.
    pub fn encode(&self, pixels: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let channels = 2 * self.config.latent_channels;
        let moments = in_tiles(pixels, channels, [self.factor(), 1], |tile| self.moments(tile));
        let mut halves = moments.chunk(2, 1).into_iter();
        match (halves.next(), halves.next()) {
            // diffusers clamps the log-variance.
            (Some(mean), Some(logvar)) => (mean, logvar.clamp(-30.0, 20.0)),
            _ => unreachable!("the encoder ends in two times the latent channels"),
        }
    }

    fn moments(&self, pixels: Tensor<4>) -> Tensor<4> {
        let encoder = &self.encoder;
        let none = Mounts::none();
        let mut x = encoder.conv_in.forward(pixels, &none);
        for stage in &encoder.stages {
            x = stage.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None, &none));
            if let Some(conv) = &stage.resample {
                // diffusers pads only below and to the right here.
                x = conv.forward(x.pad((0, 1, 0, 1), 0.0), &none);
            }
        }
        self.quant.forward(encoder.finish(encoder.bend(x)), &none)
    }

    /// Unscaled latents → pixels, not clamped. A large picture goes in tiles.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        in_tiles(latents, self.config.out_channels, [1, self.factor()], |tile| self.pixels(tile))
    }

    fn pixels(&self, latents: Tensor<4>) -> Tensor<4> {
        let decoder = &self.decoder;
        let none = Mounts::none();
        let x = decoder.conv_in.forward(self.post_quant.forward(latents, &none), &none);
        let mut x = decoder.bend(x);
        for stage in &decoder.stages {
            x = stage.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None, &none));
            if let Some(conv) = &stage.resample {
                let [_, _, h, w] = x.dims();
                x = conv.forward(upsample(x, [2 * h, 2 * w]), &none);
            }
        }
        decoder.finish(x)
    }
}

impl Half {
    fn load_encoder(scope: &Scope<'_>, config: &Config) -> Self {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        // The padding is done by hand.
        let halve = ConvShape { padding: 0, ..ConvShape::HALF3 };
        let stages = (0..channels.len())
            .map(|i| {
                let (input, out) = (channels[i.saturating_sub(1)], channels[i]);
                Stage::load(
                    &scope.sub(format!("down_blocks.{i}")),
                    input,
                    out,
                    config.layers_per_block,
                    config.norm_num_groups,
                )
                .resampled(
                    scope,
                    (i + 1 < channels.len()).then(|| (format!("down_blocks.{i}.downsamplers.0.conv"), out, halve)),
                )
            })
            .collect();
        Self::load(scope, config, [config.in_channels, channels[0]], stages, last, [last, 2 * config.latent_channels])
    }

    fn load_decoder(scope: &Scope<'_>, config: &Config) -> Self {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let stages = (0..channels.len())
            .map(|i| {
                let (input, out) = (channels[i.saturating_sub(1)], channels[i]);
                Stage::load(
                    &scope.sub(format!("up_blocks.{i}")),
                    input,
                    out,
                    config.layers_per_block + 1,
                    config.norm_num_groups,
                )
                .resampled(
                    scope,
                    (i + 1 < channels.len())
                        .then(|| (format!("up_blocks.{i}.upsamplers.0.conv"), out, ConvShape::SAME3)),
                )
            })
            .collect();
        let first = channels[channels.len() - 1];
        Self::load(
            scope,
            config,
            [config.latent_channels, channels[0]],
            stages,
            channels[0],
            [first, config.out_channels],
        )
    }

    fn load(
        scope: &Scope<'_>,
        config: &Config,
        conv_in: [usize; 2],
        stages: Vec<Stage>,
        middle: usize,
        conv_out: [usize; 2],
    ) -> Self {
        let groups = config.norm_num_groups;
        let resnet = |name| Resnet::load(&scope.sub(name), middle, middle, None, groups, EPS);
        Self {
            conv_in: scope.conv("conv_in", conv_in[0], conv_in[1], ConvShape::SAME3),
            stages,
            middle: (
                resnet("mid_block.resnets.0"),
                Attention::load(&scope.sub("mid_block.attentions.0"), middle, groups),
                resnet("mid_block.resnets.1"),
            ),
            norm_out: scope.norm("conv_norm_out", conv_out[0], EPS),
            conv_out: scope.conv("conv_out", conv_out[0], conv_out[1], ConvShape::SAME3),
            groups,
        }
    }

    /// Through the middle block.
    fn bend(&self, x: Tensor<4>) -> Tensor<4> {
        let none = Mounts::none();
        let (resnet1, attention, resnet2) = &self.middle;
        resnet2.forward(attention.forward(resnet1.forward(x, None, &none), &none), None, &none)
    }

    fn finish(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv_out.forward(self.norm_out.group(x, self.groups, Then::Silu), &Mounts::none())
    }
}

impl Stage {
    fn load(scope: &Scope<'_>, input: usize, out: usize, count: usize, groups: usize) -> Self {
        let resnets = (0..count)
            .map(|j| {
                Resnet::load(
                    &scope.sub(format!("resnets.{j}")),
                    if j == 0 { input } else { out },
                    out,
                    None,
                    groups,
                    EPS,
                )
            })
            .collect();
        Self { resnets, resample: None }
    }

    fn resampled(self, scope: &Scope<'_>, conv: Option<(String, usize, ConvShape)>) -> Self {
        Self { resample: conv.map(|(name, channels, shape)| scope.conv(&name, channels, channels, shape)), ..self }
    }
}

impl Attention {
    fn load(scope: &Scope<'_>, channels: usize, groups: usize) -> Self {
        let linear = |name| scope.linear(name, channels, channels, true);
        Self {
            norm: scope.norm("group_norm", channels, EPS),
            query: linear("to_q"),
            key: linear("to_k"),
            value: linear("to_v"),
            out: linear("to_out.0"),
            groups,
        }
    }

    fn forward(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let tokens = self.norm.group(x.clone(), self.groups, Then::Nothing).reshape([b, c, h * w]).swap_dims(1, 2);
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|linear| linear.forward(tokens.clone(), mounts));
        let tokens = self.out.forward(attention(q, k, v, 1, None), mounts);
        tokens.swap_dims(1, 2).reshape([b, c, h, w]) + x
    }
}
