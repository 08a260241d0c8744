//! OFT: an orthogonal map of the layer's inputs, `W' = W·Rᵀ` with `R` block by block the Cayley transform
//! `(I − Q)·(I + Q)⁻¹` of a skew matrix (Qiu et al. 2023, arXiv 2306.07280; PEFT's exact branch and signs).
//!
//! Row norms of W and the angles between its rows stay what they were.

use burn::tensor::{Device, Tensor, TensorData};

use crate::engine::Result;
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "oft",
    title: "OFT",
    paper: "Qiu et al. 2023, arXiv 2306.07280",
    help: "Only turns what a layer listens to, so its balance survives: gentle on the model's style; the file is as large as the layers",
    fields: &[Field {
        name: "block_size",
        title: "Block",
        help: "Inputs that are turned among each other; a layer takes the largest divisor of its width up to this",
        unit: "inputs",
        default: "32",
        kind: Kind::Integer { min: 2, max: 64 },
    }],
    count: "i·(block − 1)/2",
    file: FileKind::Difference,
    gradient: None,
    rate: 0.5,
    takes_slot: false,
    build,
};

/// Each pass squares the error of the inverse, which begins at ‖Q‖²/(1 + ‖Q‖²) with the root of the sum of squares: enough
/// up to ‖Q‖ = 32, which is numbers near 1 in a block of 32.
const NEWTON: usize = 14;

struct Oft {
    block: usize,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Oft { block: settings.integer("block_size") }))
}

/// `[blocks, b(b−1)/2] → Q [blocks, b, b]`, the upper triangle row by row.
fn skew(upper: Tensor<2>, b: usize) -> Tensor<3> {
    let [blocks, pairs] = upper.dims();
    let mut place = vec![0.0_f32; pairs * b * b];
    let above = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
    for (k, (i, j)) in above.enumerate() {
        place[k * b * b + i * b + j] = 1.0;
        place[k * b * b + j * b + i] = -1.0;
    }
    let place = Tensor::<2>::from_data(TensorData::new(place, [pairs, b * b]), &upper.device().inner());
    upper.matmul(place).reshape([blocks, b, b])
}

/// `(I + Q)⁻¹` of skew Q by Newton–Schulz. Only the last pass is tracked: with X right already, the derivative of
/// `X·(2I − M·X)` is that of the inverse, `−X·dM·X`.
fn inverse(m: Tensor<3>, eye: &Tensor<3>) -> Tensor<3> {
    let fixed = m.clone().without_autodiff();
    let q = fixed.clone() - eye.clone();
    let size = q.powi_scalar(2).sum_dim(2).sum_dim(1) + 1.0;
    let mut x = fixed.clone().transpose() / size;
    for _ in 0..NEWTON {
        x = x.clone().matmul(eye.clone() * 2.0 - fixed.clone().matmul(x));
    }
    x.clone().matmul(eye.clone() * 2.0 - m.matmul(x))
}

fn eye(b: usize, device: &Device) -> Tensor<3> {
    let values = (0..b * b).map(|i| if i % b == i / b { 1.0_f32 } else { 0.0 }).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [1, b, b]), device)
}

/// `R [blocks, b, b]`.
fn cayley(q: Tensor<3>) -> Tensor<3> {
    let eye = eye(q.dims()[1], &q.device().inner());
    (eye.clone() - q.clone()).matmul(inverse(eye.clone() + q, &eye))
}

/// `W·Rᵀ − W`.
fn delta(upper: &Tensor<2>, weight_oi: Tensor<2>) -> Tensor<2> {
    let ([out, input], [blocks, _]) = (weight_oi.dims(), upper.dims());
    let b = input / blocks;
    let r = cayley(skew(upper.clone(), b));
    let by_block = weight_oi.clone().reshape([out, blocks, b]).swap_dims(0, 1);
    by_block.matmul(r.transpose()).swap_dims(0, 1).reshape([out, input]) - weight_oi
}

impl Oft {
    fn block(&self, input: usize) -> usize {
        (1..=self.block.min(input)).rev().find(|&b| input.is_multiple_of(b)).unwrap_or(1)
    }
}

impl Adapter for Oft {
    /// `Q = 0`, so `R = I`.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let input = spot.layer.input();
        let b = self.block(input);
        Ok(vec![Start::zeros("oft_r", [input / b, b * (b - 1) / 2])])
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        vec![Change::Weight(delta(&t[0], at.weight_oi()))]
    }

    fn store(&self, t: &[Tensor<2>], weight: &Weight) -> Result<Stored> {
        Ok(Stored::Difference(read(delta(&t[0], weight.wide_oi()))?))
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        let b = self.block(layer.input());
        layer.input() / b * (b * (b - 1) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Philox;

    fn r(upper: &[f32], b: usize) -> Vec<f32> {
        let pairs = b * (b - 1) / 2;
        let upper = TensorData::new(upper.to_vec(), [upper.len() / pairs, pairs]);
        read(cayley(skew(Tensor::from_data(upper, &crate::engine::device::cpu()), b))).unwrap()
    }

    #[test]
    fn small_rotations_by_hand() {
        let near = |found: Vec<f32>, expected: [f32; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
        };
        near(r(&[1.0], 2), [0.0, -1.0, 1.0, 0.0]);
        near(r(&[0.1], 2), [0.980_198, -0.198_02, 0.198_02, 0.980_198]);
        near(r(&[0.0], 2), [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn every_block_is_orthogonal() {
        let (b, blocks) = (6, 3);
        let upper: Vec<f32> = Philox::new(1).normal(0, blocks * b * (b - 1) / 2);
        let r = r(&upper, b);
        for block in r.chunks_exact(b * b) {
            for (i, x) in block.chunks_exact(b).enumerate() {
                for (j, y) in block.chunks_exact(b).enumerate() {
                    let dot: f32 = x.iter().zip(y).map(|(a, b)| a * b).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-4, "rows {i} and {j}: {dot}");
                }
            }
        }
    }
}
