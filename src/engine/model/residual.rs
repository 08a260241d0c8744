//! The residual block of denoiser and autoencoder.

use burn::tensor::Tensor;

use crate::engine::model::Mounts;
use crate::engine::model::blocks::{Conv, ConvShape, Linear, Norm};
use crate::engine::model::loader::Scope;
use crate::engine::ops::Then;

/// Two convolutions around a shortcut, optionally told the timestep (diffusers `ResnetBlock2D`).
#[derive(Debug)]
pub struct Resnet {
    norm1: Norm,
    conv1: Conv,
    time: Option<Linear>,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<Conv>,
    groups: usize,
}

impl Resnet {
    /// `time` is the width of the timestep embedding.
    pub fn load(scope: &Scope<'_>, input: usize, out: usize, time: Option<usize>, groups: usize, eps: f64) -> Self {
        Self {
            norm1: scope.norm("norm1", input, eps),
            conv1: scope.conv("conv1", input, out, ConvShape::SAME3),
            time: time.map(|width| scope.linear("time_emb_proj", width, out, true)),
            norm2: scope.norm("norm2", out, eps),
            conv2: scope.conv("conv2", out, out, ConvShape::SAME3),
            shortcut: (input != out).then(|| scope.conv("conv_shortcut", input, out, ConvShape::POINT)),
            groups,
        }
    }

    /// `time` is the embedding after its SiLU.
    pub fn forward(&self, x: Tensor<4>, time: Option<&Tensor<2>>, mounts: &Mounts) -> Tensor<4> {
        let h = self.norm1.group(x.clone(), self.groups, Then::Silu);
        let mut h = self.conv1.forward(h, mounts);
        if let (Some(linear), Some(time)) = (&self.time, time) {
            let [b, c, _, _] = h.dims();
            h = h + linear.forward(time.clone(), mounts).reshape([b, c, 1, 1]);
        }
        let h = self.norm2.group(h, self.groups, Then::Silu);
        let h = self.conv2.forward(h, mounts);
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, mounts) + h,
            None => x + h,
        }
    }
}
