//! SORSA: the layer's own strongest directions and their strengths train apart, and a loss keeps the directions
//! orthonormal: `y = W·x + s·(up·diag(σ)·down − up₀·diag(σ₀)·down₀)·x`, `L += γ·(‖down·downᵀ − I‖ + ‖upᵀ·up − I‖)` (Cao 2024,
//! arXiv 2409.00055; `Gunale0926/SORSA`).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::strongest::{Strongest, moved, strongest};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};
use crate::engine::ops::orthogonality;

pub const METHOD: Method = Method {
    name: "sorsa",
    title: "SORSA",
    paper: "Cao 2024, arXiv 2409.00055",
    help: "Starts from the layer's own strongest directions and keeps them at right angles while it turns them; the file has twice the rank",
    fields: &[
        RANK,
        ALPHA,
        Field {
            name: "orthonormal",
            title: "Orthonormal γ",
            help: "How strongly the directions of each side are kept at right angles and of length 1",
            unit: "",
            default: "0.03",
            kind: Kind::Number { min: 0.0, max: 10.0 },
        },
    ],
    count: "rank·(i + o + 1)",
    file: FileKind::Lora,
    gradient: None,
    // As of PiSSA: what trains is not zero.
    rate: 0.5,
    takes_slot: false,
    build,
};

/// Keeps the slope of `‖·‖` finite where the directions are orthonormal, as at the start.
const TINY: f32 = 1e-12;

struct Sorsa {
    rank: Rank,
    gamma: f32,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Sorsa { rank: Rank::of(settings), gamma: settings.number("orthonormal") as f32 }))
}

impl Sorsa {
    fn doubled(t: &[Tensor<2>]) -> [Tensor<2>; 2] {
        let [down, up, sigma, down0, up0] = t else { unreachable!("five tensors began") };
        moved([down, &(up.clone() * sigma.clone())], [down0, up0])
    }
}

/// `‖QᵀQ − I‖` of the columns of `q`.
fn excess(q: Tensor<2>) -> Tensor<1> {
    (orthogonality(q.unsqueeze()) + TINY).sqrt()
}

impl Adapter for Sorsa {
    /// `W = U·Σ·Vᵀ`; `down = Vᵣᵀ`, `up = Uᵣ`, `σ = Σᵣ/s`, and copies of `down` and `up·diag(σ)` that stay.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (rank, s) = (self.rank.rank, f64::from(self.rank.scale()));
        let (out, input) = (spot.layer.out, spot.layer.input());
        let Strongest { write, values, read } = strongest(spot, rank)?;
        let sigma: Vec<f32> = values.iter().map(|sigma| (sigma / s) as f32).collect();
        let scaled = write.iter().enumerate().map(|(at, u)| u * sigma[at % rank]).collect();
        // Decay would pull the layer's own directions to zero.
        let trained =
            |name, shape, values: &[f32]| Start { decays: false, ..Start::trained(name, shape, values.into()) };
        Ok(vec![
            trained("lora_down", [rank, input], &read),
            trained("lora_up", [out, rank], &write),
            trained("lora_sigma", [1, rank], &sigma),
            Start::frozen("start_down", [rank, input], read),
            Start::frozen("start_up", [out, rank], scaled),
        ])
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        let ([rank, input], [out, _]) = (t[0].dims(), t[1].dims());
        // More directions than places cannot be orthonormal.
        if self.gamma > 0.0 && rank <= input.min(out) {
            at.charge(|| (excess(t[0].clone().transpose()) + excess(t[1].clone())) * self.gamma);
        }
        let [down, up] = Self::doubled(t);
        vec![self.rank.change(&down, &up)]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = Self::doubled(t);
        Some(self.rank.pair(&down, &up))
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = Self::doubled(t);
        Rank { rank: 2 * self.rank.rank, alpha: 2.0 * self.rank.alpha }.store(&down, &up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.rank.rank * (layer.input() + layer.out + 1)
    }
}
