//! MobileNetV2 (Sandler et al. 2018, <https://arxiv.org/abs/1801.04381>) as torchvision lays it out, up to the pooled
//! features. Inverted residuals: widen, filter each channel on its own, narrow again without an activation.

use std::path::Path;

use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor, module};

use crate::engine::io::Checkpoint;
use crate::engine::model::blocks::pointwise;
use crate::engine::model::loader::{Loader, Scope};
use crate::engine::model::{Hold, Part, Table};
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

/// Mean and deviation of the training pictures' pixels in 0…1.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// PyTorch's default for `BatchNorm2d`.
const EPS: f64 = 1e-5;

/// Pictures in one pass: the widest activation takes 4.6 MiB for each, and small GPUs bind 128 MiB at most.
const BATCH: usize = 8;

#[derive(Debug)]
pub struct MobileNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
    head: ConvNorm,
    /// Pixels in −1…1 times `gain` plus `offset` are what the network was trained on.
    gain: Tensor<4>,
    offset: Tensor<4>,
}

/// An inverted residual.
#[derive(Debug)]
struct Block {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    project: ConvNorm,
    shortcut: bool,
}

/// A convolution that keeps the size, up to its stride, with the normalisation after it folded in.
#[derive(Debug)]
struct ConvNorm {
    weight_oihw: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
}

impl MobileNet {
    /// The weights that are part of the program.
    pub fn embedded(device: &Device) -> Result<Self> {
        Self::load(&Checkpoint::embedded(Path::new("mobilenet_v2.safetensors"), WEIGHTS)?, device)
    }

    pub fn load(file: &Checkpoint, device: &Device) -> Result<Self> {
        let loader = Loader::new(file, feature_weight, Hold::wide(device), Part::Vision, Table::default());
        let features = loader.root().sub("features");
        let stem = ConvNorm::load(&features.sub(0), [0, 1], [STEM, 3, 3, 3], 2);
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
        let head = ConvNorm::load(&features.sub(blocks.len() + 1), [0, 1], [FEATURES, channels, 1, 1], 1);
        loader.finish().map_err(|e| Error { advice: "Take torchvision's mobilenet_v2 weights".into(), ..e })?;
        let per_channel = |values: [f32; 3]| Tensor::<1>::from_floats(values, device).reshape([1, 3, 1, 1]);
        Ok(Self {
            stem,
            blocks,
            head,
            gain: per_channel(DEVIATION.map(|deviation| 0.5 / deviation)),
            offset: per_channel([0, 1, 2].map(|c| (0.5 - MEAN[c]) / DEVIATION[c])),
        })
    }

    /// RGB `[n, 3, h, w]` in −1…1 → what the classifier would see, each row of length one: `[n, 1280]`.
    ///
    /// Pictures of any shape are resized to 224×224.
    pub fn features(&self, pixels: Tensor<4>) -> Tensor<2> {
        Tensor::cat(pixels.split(BATCH, 0).into_iter().map(|pixels| self.pass(pixels)).collect(), 0)
    }

    fn pass(&self, pixels: Tensor<4>) -> Tensor<2> {
        let x = resized(pixels) * self.gain.clone() + self.offset.clone();
        let x = relu6(self.stem.forward(x));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let x = relu6(self.head.forward(x));
        let pooled = x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2);
        let length = pooled.clone().powi_scalar(2).sum_dim(1).sqrt();
        // torch.nn.functional.normalize's guard.
        pooled / length.clamp_min(1e-12)
    }
}

impl Block {
    fn load(scope: &Scope<'_>, channels: usize, out: usize, expansion: usize, stride: usize) -> Self {
        let hidden = channels * expansion;
        let expand = (expansion > 1).then(|| ConvNorm::load(&scope.sub(0), [0, 1], [hidden, channels, 1, 1], 1));
        // The file counts only the layers that are there.
        let next = usize::from(expand.is_some());
        Self {
            expand,
            depthwise: ConvNorm::load(&scope.sub(next), [0, 1], [hidden, 1, 3, 3], stride),
            project: ConvNorm::load(scope, [next + 1, next + 2], [out, hidden, 1, 1], 1),
            shortcut: stride == 1 && channels == out,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let wide = match &self.expand {
            Some(expand) => relu6(expand.forward(x.clone())),
            None => x.clone(),
        };
        let y = self.project.forward(relu6(self.depthwise.forward(wide)));
        if self.shortcut { x + y } else { y }
    }
}

impl ConvNorm {
    /// `names` are those of the convolution and of its normalisation.
    ///
    /// `γ·(w∗x − μ)/√(σ² + ε) + β = (s·w)∗x + (β − s·μ)` with `s = γ/√(σ² + ε)`.
    fn load(scope: &Scope<'_>, names: [usize; 2], shape_oihw: [usize; 4], stride: usize) -> Self {
        let [conv, norm] = names.map(|name| scope.sub(name));
        let out = shape_oihw[0];
        let [gamma, beta, mean, variance] =
            ["weight", "bias", "running_mean", "running_var"].map(|name| norm.tensor::<1>(name, [out]));
        let scale = gamma / (variance + EPS).sqrt();
        let weight_oihw = conv.tensor("weight", shape_oihw);
        Self { weight_oihw: weight_oihw * scale.clone().reshape([out, 1, 1, 1]), bias: beta - scale * mean, stride }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [out, per_group, side, _] = self.weight_oihw.dims();
        let (weight_oihw, bias) = (self.weight_oihw.clone(), Some(self.bias.clone()));
        if side == 1 {
            return pointwise(x, weight_oihw.reshape([out, per_group]), bias);
        }
        let groups = x.dims()[1] / per_group;
        let options = ConvOptions::new([self.stride; 2], [side / 2; 2], [1; 2], groups);
        module::conv2d(x, weight_oihw, bias, options)
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

/// Names of the tensors that the features need: neither the classifier's nor the training counters.
fn feature_weight(name: &str) -> Option<String> {
    let unused = name.starts_with("classifier.") || name.ends_with(".num_batches_tracked");
    (!unused).then(|| name.to_owned())
}
