//! PiSSA: training starts from the strongest directions of the layer itself, and what was there at the start is taken
//! off again: `y = W·x + s·(up·down − up₀·down₀)·x` (Meng et al. 2024, arXiv 2404.02948).

use burn::tensor::Tensor;
use faer::MatRef;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::Settings;
use crate::engine::model::{Branch, Change, Layer, Site, Weight};
use crate::engine::spectrum::{self, LowRank};

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

/// Up to this many rows or columns the whole SVD takes a fraction of a second. A weight's spectrum falls slowly, and the
/// sketch that serves wider layers would start from directions beside the strongest.
const SMALL: usize = 384;

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Pissa(Rank::of(settings))))
}

impl Pissa {
    /// `up·down − up₀·down₀` as `[up − up₀ | up₀]·[down; down − down₀]`: what has moved stands alone on one side of each
    /// product, so that rounding to half precision costs a share of that and not of the layer.
    fn doubled(t: &[Tensor<2>]) -> [Tensor<2>; 2] {
        let [down, up, down0, up0] = t else { unreachable!("four tensors began") };
        let up = vec![up.clone() - up0.clone(), up0.clone()];
        let down = vec![down.clone(), down.clone() - down0.clone()];
        [Tensor::cat(down, 0), Tensor::cat(up, 1)]
    }
}

impl Adapter for Pissa {
    /// `W = U·Σ·Vᵀ`; `down = √(Σᵣ/s)·Vᵣᵀ`, `up = Uᵣ·√(Σᵣ/s)`, and copies of both that stay.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (rank, s) = (self.0.rank, f64::from(self.0.scale()));
        let (out, input) = (spot.layer.out, spot.layer.input());
        let weight = read(spot.weight.wide_oi())?;
        let weight = MatRef::from_row_major_slice(&weight, out, input).map(|&x| f64::from(x));
        let svd = match out.min(input) <= SMALL {
            true => LowRank::from_dense(weight).svd()?,
            false => spectrum::leading(weight.as_ref(), rank)?,
        };
        let root = |k: usize| (svd.s.get(k).copied().unwrap_or(0.0) / s).sqrt();
        // A layer narrower than the rank has no further directions: zeros there, which then never move.
        let of = |m: MatRef<'_, f64>, row: usize, k: usize| if k < m.ncols() { m[(row, k)] } else { 0.0 };
        let down: Vec<f32> = (0..rank * input)
            .map(|at| (of(svd.v.as_ref(), at % input, at / input) * root(at / input)) as f32)
            .collect();
        let up: Vec<f32> =
            (0..out * rank).map(|at| (of(svd.u.as_ref(), at / rank, at % rank) * root(at % rank)) as f32).collect();
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
