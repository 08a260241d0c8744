//! MobileNetV2 (Sandler et al. 2018, <https://arxiv.org/abs/1801.04381>) as torchvision lays it out, up to the pooled
//! features. Inverted residuals: widen, filter each channel on its own, narrow again without an activation.
//!
//! Adapters sit on the convolutions that mix channels; those that filter each channel alone stay as they are.

use std::path::Path;

use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor, module};

use crate::engine::io::Checkpoint;
use crate::engine::model::blocks::ConvShape;
use crate::engine::model::conv_norm::{ConvNorm, batch_norm};
use crate::engine::model::loader::{Loader, Scope};
use crate::engine::model::{Hold, Mounts, Part, Table};
use crate::engine::{Error, Result};

/// torchvision's `IMAGENET1K_V1` weights in f16.
const WEIGHTS: &[u8] = include_bytes!("../../../assets/mobilenet_v2.safetensors");

/// Width of the features.
pub const FEATURES: usize = 1280;

/// Table 2 of the paper: expansion, channels out, repeats, stride of the first repeat.
const STAGES: [[usize; 4]; 7] =
    [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]];

/// Channels of the first convolution.
const STEM: usize = 32;

/// Pixels along each side, as in training.
const SIDE: usize = 224;

/// Mean and deviation of ImageNet's pixels in 0…1.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Pictures in one pass: the widest activation takes 4.6 MiB for each, and small GPUs bind 128 MiB at most.
const BATCH: usize = 8;

#[derive(Debug)]
pub struct MobileNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
    head: ConvNorm,
}

/// An inverted residual.
#[derive(Debug)]
struct Block {
    expand: Option<ConvNorm>,
    depthwise: Depthwise,
    project: ConvNorm,
    shortcut: bool,
}

/// A 3×3 filter for each channel, with the normalisation after it folded in.
#[derive(Debug)]
struct Depthwise {
    /// `[channels, 1, 3, 3]`.
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
}

/// The weights that are part of the program.
pub fn embedded() -> Result<Checkpoint> {
    Checkpoint::embedded(Path::new("mobilenet_v2.safetensors"), WEIGHTS)
}

impl MobileNet {
    /// The network that is part of the program.
    pub fn embedded(device: &Device) -> Result<Self> {
        Self::load(&embedded()?, device)
    }

    /// A file whose classifier may be missing.
    pub fn load(file: &Checkpoint, device: &Device) -> Result<Self> {
        let features = |name: &str| weight(name).filter(|name| !name.starts_with("classifier."));
        let loader = Loader::new(file, features, Hold::wide(device), Part::Vision, Table::default());
        let network = Self::of(&loader.root());
        loader.finish().map_err(|e| Error { advice: "Take torchvision's mobilenet_v2 weights".into(), ..e })?;
        Ok(network)
    }

    pub fn of(scope: &Scope<'_>) -> Self {
        let features = scope.sub("features");
        let half = ConvShape::HALF3;
        let stem = ConvNorm::load(&features.sub(0), ["0", "1"], 3, STEM, half);
        let mut blocks = Vec::new();
        let mut channels = STEM;
        for [expansion, out, repeats, stride] in STAGES {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { stride } else { 1 };
                let scope = features.sub(blocks.len() + 1).sub("conv");
                blocks.push(Block::load(&scope, channels, out, expansion, stride));
                channels = out;
            }
        }
        let last = features.sub(blocks.len() + 1);
        let head = ConvNorm::load(&last, ["0", "1"], channels, FEATURES, ConvShape::POINT);
        Self { stem, blocks, head }
    }

    /// RGB `[n, 3, h, w]` in −1…1 → what the classifier would see, each row of length one: `[n, 1280]`.
    ///
    /// Pictures of any shape are resized to 224×224.
    pub fn features(&self, pixels: Tensor<4>) -> Tensor<2> {
        let device = pixels.device();
        let per_channel = |values: [f32; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
        let gain = per_channel(DEVIATION.map(|deviation| 0.5 / deviation));
        let offset = per_channel([0, 1, 2].map(|c| (0.5 - MEAN[c]) / DEVIATION[c]));
        let pass = |pixels| self.pooled(resized(pixels) * gain.clone() + offset.clone(), &Mounts::none());
        let pooled = Tensor::cat(pixels.split(BATCH, 0).into_iter().map(pass).collect(), 0);
        let length = pooled.clone().powi_scalar(2).sum_dim(1).sqrt();
        // torch.nn.functional.normalize's guard.
        pooled / length.clamp_min(1e-12)
    }

    /// RGB `[n, 3, h, w]`, normalised → what the classifier sees, `[n, 1280]`.
    pub fn pooled(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<2> {
        let x = relu6(self.stem.forward(x, mounts));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, mounts));
        let x = relu6(self.head.forward(x, mounts));
        x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2)
    }
}

impl Block {
    fn load(scope: &Scope<'_>, channels: usize, out: usize, expansion: usize, stride: usize) -> Self {
        let hidden = channels * expansion;
        let point = ConvShape::POINT;
        let expand = (expansion > 1).then(|| ConvNorm::load(&scope.sub(0), ["0", "1"], channels, hidden, point));
        // The file counts only the layers that are there.
        let next = usize::from(expand.is_some());
        let [conv, norm] = [next + 1, next + 2].map(|place| place.to_string());
        Self {
            expand,
            depthwise: Depthwise::load(&scope.sub(next), hidden, stride),
            project: ConvNorm::load(scope, [&conv, &norm], hidden, out, point),
            shortcut: stride == 1 && channels == out,
        }
    }

    fn forward(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<4> {
        let wide = match &self.expand {
            Some(expand) => relu6(expand.forward(x.clone(), mounts)),
            None => x.clone(),
        };
        let y = self.project.forward(relu6(self.depthwise.forward(wide)), mounts);
        if self.shortcut { x + y } else { y }
    }
}

impl Depthwise {
    fn load(scope: &Scope<'_>, channels: usize, stride: usize) -> Self {
        let weight: Tensor<4> = scope.sub(0).tensor("weight", [channels, 1, 3, 3]);
        let [gain, bias] = batch_norm(&scope.sub(1), channels);
        let [channels] = gain.dims();
        Self { weight: weight * gain.reshape([channels, 1, 1, 1]), bias, stride }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [channels] = self.bias.dims();
        let options = ConvOptions::new([self.stride; 2], [1; 2], [1; 2], channels);
        module::conv2d(x, self.weight.clone(), Some(self.bias.clone()), options)
    }
}

/// `F.interpolate(x, 224, mode="bicubic", align_corners=False)`.
fn resized(pixels: Tensor<4>) -> Tensor<4> {
    // burn aligns the corners unless told otherwise, PyTorch the other way round.
    let options =
        InterpolateOptions::new(InterpolateMode::Bicubic).with_align_corners(false).with_output_size([SIDE; 2]);
    module::interpolate(pixels, options)
}

fn relu6(x: Tensor<4>) -> Tensor<4> {
    x.clamp(0.0, 6.0)
}

/// A stored name, or `None` for a counter that training left behind.
pub fn weight(name: &str) -> Option<String> {
    (!name.ends_with(".num_batches_tracked")).then(|| name.to_owned())
}
