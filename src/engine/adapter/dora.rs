//! DoRA: direction and length of each output's weights train apart: `W' = diag(m/n)·(W + s·up·down)` with the row
//! norms `n` of the bracket taken as constants in backward (Liu et al. 2024, arXiv 2402.09353).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::Settings;
use crate::engine::model::{Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "dora",
    title: "DoRA",
    paper: "Liu et al. 2024, arXiv 2402.09353",
    help: "Trains each output's strength apart from its direction, closer to full training; the file is as large as the layers",
    fields: &[RANK, ALPHA],
    count: "rank·(i + o) + o",
    // Tools disagree on the axis of `dora_scale`, so the difference itself is written.
    file: FileKind::Difference,
    gradient: Some("The row norms count as constants"),
    rate: 1.0,
    takes_slot: false,
    build,
};

struct Dora(Rank);

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Dora(Rank::of(settings))))
}

/// `‖row‖₂`, `[out, 1]`; a row of zeros has no direction, and keeps its zeros.
fn row_norms(weight_oi: Tensor<2>) -> Tensor<2> {
    weight_oi.powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12)
}

impl Dora {
    /// `ΔW = diag(m/n)·(W + s·up·down) − W`.
    fn delta(&self, t: &[Tensor<2>], weight_oi: Tensor<2>) -> Tensor<2> {
        let [down, up, m] = t else { unreachable!("three tensors began") };
        let v = weight_oi.clone() + up.clone().matmul(down.clone()) * self.0.scale();
        let n = row_norms(v.clone().without_autodiff());
        v * (m.clone() / n) - weight_oi
    }
}

impl Adapter for Dora {
    /// As LoRA, and `m = ‖rows of W‖`.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let mut t = self.0.begin(spot);
        let m = Start::trained("dora_scale", [spot.layer.out, 1], read(row_norms(spot.weight.wide_oi()))?);
        t.push(Start { decays: false, ..m });
        Ok(t)
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        vec![Change::Weight(self.delta(t, at.weight_oi()))]
    }

    fn store(&self, t: &[Tensor<2>], weight: &Weight) -> Result<Stored> {
        Ok(Stored::Difference(read(self.delta(t, weight.wide_oi()))?))
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.0.rank * (layer.input() + layer.out) + layer.out
    }
}
