//! PiSSA: training starts from the strongest directions of the layer itself, and what was there at the start is taken
//! off again: `y = W·x + s·(up·down − up₀·down₀)·x` (Meng et al. 2024, arXiv 2404.02948).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::strongest::{Strongest, moved, strongest};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::Settings;
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "pissa",
    title: "PiSSA",
    paper: "Meng et al. 2024, arXiv 2404.02948",
    help: "Starts from the layer's own strongest directions, so that it learns in fewer steps; the file has twice the rank",
    fields: &[RANK, ALPHA],
    count: "rank·(i + o)",
    file: FileKind::Lora,
    gradient: None,
    // What trains is as large as the layer's own weight, not zero.
    rate: 0.5,
    takes_slot: false,
    build,
};

struct Pissa(Rank);

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Pissa(Rank::of(settings))))
}

impl Pissa {
    fn doubled(t: &[Tensor<2>]) -> [Tensor<2>; 2] {
        let [down, up, down0, up0] = t else { unreachable!("four tensors began") };
        moved([down, up], [down0, up0])
    }
}

impl Adapter for Pissa {
    /// `W = U·Σ·Vᵀ`; `down = √(Σᵣ/s)·Vᵣᵀ`, `up = Uᵣ·√(Σᵣ/s)`, and copies of both that stay.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (rank, s) = (self.0.rank, f64::from(self.0.scale()));
        let (out, input) = (spot.layer.out, spot.layer.input());
        let Strongest { write, values, read } = strongest(spot, rank)?;
        let roots: Vec<f32> = values.iter().map(|sigma| (sigma / s).sqrt() as f32).collect();
        let down: Vec<f32> = read.iter().enumerate().map(|(at, v)| v * roots[at / input]).collect();
        let up: Vec<f32> = write.iter().enumerate().map(|(at, u)| u * roots[at % rank]).collect();
        // Decay would pull the layer's own directions to zero.
        let trained =
            |name, shape, values: &[f32]| Start { decays: false, ..Start::trained(name, shape, values.into()) };
        Ok(vec![
            trained("lora_down", [rank, input], &down),
            trained("lora_up", [out, rank], &up),
            Start::frozen("start_down", [rank, input], down),
            Start::frozen("start_up", [out, rank], up),
        ])
    }

    fn change(&self, t: &[Tensor<2>], _: &Site<'_>) -> Vec<Change> {
        let [down, up] = Self::doubled(t);
        vec![self.0.change(&down, &up)]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = Self::doubled(t);
        Some(self.0.pair(&down, &up))
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = Self::doubled(t);
        Rank { rank: 2 * self.0.rank, alpha: 2.0 * self.0.alpha }.store(&down, &up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.0.rank * (layer.input() + layer.out)
    }
}
