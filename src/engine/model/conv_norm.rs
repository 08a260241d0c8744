//! A convolution without bias and the batch norm after it, which goes by the statistics of the training it comes from:
//! those of a few pictures of an artist's would be worse ones.

use burn::tensor::Tensor;

use crate::engine::model::Mounts;
use crate::engine::model::blocks::{Conv, ConvShape, convolve};
use crate::engine::model::loader::Scope;

/// PyTorch's default for `BatchNorm2d`.
const EPS: f64 = 1e-5;

#[derive(Debug)]
pub struct ConvNorm {
    conv: Conv,
    gain: Tensor<1>,
    offset: Tensor<1>,
}

impl ConvNorm {
    /// `conv` and `norm` are the names of the two.
    pub fn load(scope: &Scope<'_>, [conv, norm]: [&str; 2], channels: usize, out: usize, shape: ConvShape) -> Self {
        let conv = scope.conv_without_bias(conv, channels, out, shape);
        let [gain, offset] = batch_norm(&scope.sub(norm), out);
        Self { conv, gain, offset }
    }

    pub fn forward(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<4> {
        let [out] = self.gain.dims();
        if mounts.are_on(self.conv.id) {
            let each = |channels: &Tensor<1>| channels.clone().reshape([1, out, 1, 1]);
            return self.conv.forward(x, mounts) * each(&self.gain) + each(&self.offset);
        }
        // Folded, which passes over the weight instead of twice over the picture.
        let weight_oihw = self.conv.weight_oihw.clone() * self.gain.clone().reshape([out, 1, 1, 1]);
        convolve(x, weight_oihw, Some(self.offset.clone()), self.conv.shape)
    }
}

/// Gain and offset of a batch norm: `γ·(y − μ)/√(σ² + ε) + β = s·y + (β − s·μ)` with `s = γ/√(σ² + ε)`.
pub fn batch_norm(scope: &Scope<'_>, channels: usize) -> [Tensor<1>; 2] {
    let [gamma, beta, mean, variance] =
        ["weight", "bias", "running_mean", "running_var"].map(|name| scope.tensor::<1>(name, [channels]));
    let gain = gamma / (variance + EPS).sqrt();
    [gain.clone(), beta - gain * mean]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::TensorData;

    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::io::Checkpoint;
    use crate::engine::io::safetensors::{self, Dtype};
    use crate::engine::model::loader::Loader;
    use crate::engine::model::{Change, Hold, LayerId, Part, Table};
    use crate::engine::random::Philox;

    /// A change of nothing takes the other way, and one of the weight is what that weight would have given.
    #[test]
    fn folded_and_mounted_are_the_same() {
        let random = |draw, shape: &[usize]| {
            let values: Vec<f32> = Philox::new(0).normal(draw, shape.iter().product());
            safetensors::Tensor::new(Dtype::F32, shape, &values.iter().map(|x| x.abs() + 0.1).collect::<Vec<_>>())
        };
        let (scratch, device) = (tempfile::tempdir().unwrap(), cpu());
        let path = scratch.path().join("a.safetensors");
        let named = ["weight", "bias", "running_mean", "running_var"].map(|name| format!("n.{name}"));
        let mut tensors: BTreeMap<_, _> = named.into_iter().zip(1..).map(|(n, draw)| (n, random(draw, &[5]))).collect();
        tensors.insert("c.weight".into(), random(0, &[5, 4, 3, 3]));
        let load = |tensors: &BTreeMap<String, safetensors::Tensor>| {
            safetensors::save(&path, tensors, &BTreeMap::new()).unwrap();
            let file = Checkpoint::open(&path).unwrap();
            let loader = Loader::new(&file, |n| Some(n.into()), Hold::wide(&device), Part::Vision, Table::default());
            let brick = ConvNorm::load(&loader.root(), ["c", "n"], 4, 5, ConvShape::HALF3);
            loader.finish().unwrap();
            brick
        };
        let brick = load(&tensors);
        let x = Tensor::<4>::from_data(TensorData::new(Philox::new(1).normal(0, 2 * 4 * 7 * 6), [2, 4, 7, 6]), &device);
        let folded = read(brick.forward(x.clone(), &Mounts::none())).unwrap();
        let with = |factor: f32| {
            let mut mounts = Mounts::none();
            let weight_oi = brick.conv.weight_oihw.clone().reshape([5, 36]);
            mounts.add(LayerId(0), Change::Weight(weight_oi * factor));
            read(brick.forward(x.clone(), &mounts)).unwrap()
        };
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0));
        assert!(close(&with(0.0), &folded));
        let doubled: Vec<f32> =
            Checkpoint::open(&path).unwrap().f32("c.weight").unwrap().iter().map(|x| 2.0 * x).collect();
        let changed = with(1.0);
        tensors.insert("c.weight".into(), safetensors::Tensor::new(Dtype::F32, &[5, 4, 3, 3], &doubled));
        assert!(close(&changed, &read(load(&tensors).forward(x.clone(), &Mounts::none())).unwrap()));
        assert!(!close(&changed, &folded));
    }
}
