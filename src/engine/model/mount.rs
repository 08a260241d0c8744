//! Adapters in place: what each layer adds to its own output.
//!
//! The model is never edited. A forward pass takes the mounts it is to run with, so the untouched model, one adapter
//! and several together are the same weights seen through different [`Mounts`].

use burn::tensor::Tensor;

use crate::engine::model::LayerId;
use crate::engine::model::blocks::{ConvShape, convolve, pointwise};

/// One low-rank term `scale · up · down` on one layer.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Read side `[rank, in]` (`[rank, in·kh·kw]` for convolutions).
    pub down: Tensor<2>,
    /// Write side `[out, rank]`.
    pub up: Tensor<2>,
    /// `alpha / rank` times every strength that applies here.
    pub scale: f32,
}

/// The terms on every layer of a model.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    branches: Vec<Vec<Branch>>,
}

impl Mounts {
    /// The untouched model.
    pub fn none() -> Self {
        Self::default()
    }

    pub fn add(&mut self, layer: LayerId, branch: Branch) {
        if self.branches.len() <= layer.0 {
            self.branches.resize(layer.0 + 1, Vec::new());
        }
        self.branches[layer.0].push(branch);
    }

    fn on(&self, layer: LayerId) -> &[Branch] {
        self.branches.get(layer.0).map_or(&[], Vec::as_slice)
    }

    /// `y + Σ scale · up(down(x))`, factored: the effective weight is never built.
    pub fn linear<const D: usize>(&self, layer: LayerId, x: &Tensor<D>, y: Tensor<D>) -> Tensor<D> {
        self.on(layer).iter().fold(y, |y, branch| {
            let h = x.clone().matmul(branch.down.clone().transpose().unsqueeze());
            y + h.matmul(branch.up.clone().transpose().unsqueeze()) * branch.scale
        })
    }

    /// The same for a convolution: `down` convolves as the layer does, `up` is 1×1.
    pub fn conv(&self, layer: LayerId, shape: ConvShape, x: &Tensor<4>, y: Tensor<4>) -> Tensor<4> {
        self.on(layer).iter().fold(y, |y, branch| {
            let [rank, _] = branch.down.dims();
            let [kh, kw] = shape.kernel;
            let channels = x.dims()[1];
            let h = convolve(x.clone(), branch.down.clone().reshape([rank, channels, kh, kw]), None, shape);
            y + pointwise(h, branch.up.clone(), None) * branch.scale
        })
    }
}
