//! ResNet (He et al. 2015, <https://arxiv.org/abs/1512.03385>) as transformers' `ResNetForImageClassification` lays it
//! out, up to the pooled features: RGB `[n, 3, h, w]`, normalised → `[n, width]`.

use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Tensor, activation, module};
use serde::Deserialize;

use crate::engine::model::Mounts;
use crate::engine::model::blocks::ConvShape;
use crate::engine::model::conv_norm::ConvNorm;
use crate::engine::model::loader::Scope;
use crate::engine::{Error, Result};

/// `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    embedding_size: usize,
    hidden_sizes: Vec<usize>,
    depths: Vec<usize>,
    layer_type: Kind,
    hidden_act: String,
    #[serde(default)]
    downsample_in_first_stage: bool,
    #[serde(default)]
    downsample_in_bottleneck: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Basic,
    Bottleneck,
}

/// How much narrower a bottleneck is within.
const REDUCTION: usize = 4;

/// Blocks of a stage.
const MOST: usize = 256;

const STEM: ConvShape = ConvShape { kernel: [7, 7], stride: 2, padding: 3 };

#[derive(Debug)]
pub struct ResNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
}

/// Convolutions around a shortcut; no activation after the last one before the sum.
#[derive(Debug)]
struct Block {
    layers: Vec<ConvNorm>,
    shortcut: Option<ConvNorm>,
}

impl Config {
    /// Width of the features.
    pub fn width(&self) -> usize {
        self.hidden_sizes.last().copied().unwrap_or(0)
    }

    /// Refuses what cannot be run as it says.
    pub fn check(&self) -> Result<()> {
        let wrong =
            |what: String| Error::new(what, "Only ResNets as transformers writes them can be loaded: fetch it again");
        if self.hidden_act != "relu" {
            return Err(wrong(format!("The ResNet uses the activation “{}”", self.hidden_act)));
        }
        if self.hidden_sizes.is_empty()
            || self.hidden_sizes.len() != self.depths.len()
            || self.depths.iter().any(|depth| !(1..=MOST).contains(depth))
        {
            return Err(wrong(format!(
                "A ResNet of stages {:?} and depths {:?} is none",
                self.hidden_sizes, self.depths
            )));
        }
        Ok(())
    }
}

impl ResNet {
    pub fn load(config: &Config, scope: &Scope<'_>) -> Self {
        let named = ["convolution", "normalization"];
        let stem = ConvNorm::load(&scope.sub("embedder.embedder"), named, 3, config.embedding_size, STEM);
        let (mut blocks, mut channels) = (Vec::new(), config.embedding_size);
        for (stage, (&out, &depth)) in config.hidden_sizes.iter().zip(&config.depths).enumerate() {
            let scope = scope.sub("encoder.stages").sub(stage).sub("layers");
            for place in 0..depth {
                let halves = place == 0 && (stage > 0 || config.downsample_in_first_stage);
                let stride = if halves { 2 } else { 1 };
                blocks.push(Block::load(config, &scope.sub(place), channels, out, stride));
                channels = out;
            }
        }
        Self { stem, blocks }
    }

    pub fn features(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<2> {
        let x = activation::relu(self.stem.forward(x, mounts));
        let x = module::max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, mounts));
        x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2)
    }
}

impl Block {
    fn load(config: &Config, scope: &Scope<'_>, channels: usize, out: usize, stride: usize) -> Self {
        let named = ["convolution", "normalization"];
        let brick = |scope: Scope<'_>, channels, out, kernel, stride| {
            let shape = ConvShape { kernel: [kernel; 2], stride, padding: kernel / 2 };
            ConvNorm::load(&scope, named, channels, out, shape)
        };
        let layer = |i: usize| scope.sub("layer").sub(i);
        let layers = match config.layer_type {
            Kind::Basic => vec![brick(layer(0), channels, out, 3, stride), brick(layer(1), out, out, 3, 1)],
            Kind::Bottleneck => {
                let narrow = out / REDUCTION;
                let [first, second] = if config.downsample_in_bottleneck { [stride, 1] } else { [1, stride] };
                vec![
                    brick(layer(0), channels, narrow, 1, first),
                    brick(layer(1), narrow, narrow, 3, second),
                    brick(layer(2), narrow, out, 1, 1),
                ]
            }
        };
        let shortcut = (channels != out || stride != 1).then(|| brick(scope.sub("shortcut"), channels, out, 1, stride));
        Self { layers, shortcut }
    }

    fn forward(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<4> {
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x.clone(), mounts),
            None => x.clone(),
        };
        let last = self.layers.len() - 1;
        let through = self.layers.iter().enumerate().fold(x, |x, (i, layer)| {
            let y = layer.forward(x, mounts);
            if i < last { activation::relu(y) } else { y }
        });
        activation::relu(through + shortcut)
    }
}
