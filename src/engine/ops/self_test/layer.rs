//! A layer of a model, by its shape.

use burn::tensor::{DType, Tensor, module};

use super::trial::{Trial, flat};
use crate::engine::ops::convolve;

/// Names of such trials begin with it.
pub const PREFIX: &str = "layer of ";
/// Tokens that a linear layer gets.
const ROWS: usize = 16;
/// Pixels of a convolution's picture, on a side.
const SIDE: usize = 8;

/// The weight of one layer: the same shape is the same kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerShape {
    pub out: usize,
    pub channels: usize,
    /// `None` for a linear layer.
    pub kernel: Option<[usize; 2]>,
}

impl LayerShape {
    /// On a few tokens or pixels.
    pub(super) fn trial(self) -> Trial {
        let Self { out, channels, kernel } = self;
        let [h, w] = kernel.unwrap_or([1, 1]);
        let x = if kernel.is_some() { [channels, SIDE * SIDE] } else { [ROWS, channels] };
        let run = move |t: &[Tensor<2>]| {
            let [x, weight_oi] = [0, 1].map(|i| t[i].clone());
            match kernel {
                None => vec![module::linear(x, weight_oi.transpose(), None)],
                Some([1, 1]) => vec![weight_oi.matmul(x)],
                Some(_) => {
                    let x = x.reshape([1, channels, SIDE, SIDE]);
                    // As wide a margin as keeps the size, where the kernel is odd.
                    vec![flat(convolve(x, weight_oi.reshape([out, channels, h, w]), None, 1, h / 2))]
                }
            }
        };
        let what = kernel.map_or("linear".into(), |[h, w]| format!("{h}×{w}"));
        let inputs = [x, [out, channels * h * w]].map(|shape| (shape, DType::F32));
        Trial::new(format!("{PREFIX}{channels} → {out}, {what}"), inputs.into(), &[0], run)
    }
}
