//! What low-rank methods have in common: rank and alpha, the usual start of the read side, and the plain LoRA they
//! leave.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::{Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change};
use crate::engine::random::Philox;

pub const RANK: Field = Field {
    name: "rank",
    title: "Rank",
    help: "How many directions each layer may change; more hold more detail and make a larger file",
    unit: "",
    default: "8",
    kind: Kind::Integer { min: 1, max: 1024 },
};

pub const ALPHA: Field = Field {
    name: "alpha",
    title: "Alpha",
    help: "Strength of the change: the factors' product is scaled by alpha / rank; 0 means the rank itself",
    unit: "",
    default: "0",
    kind: Kind::Number { min: 0.0, max: 4096.0 },
};

/// Rank and scale `s = alpha/rank`.
#[derive(Clone, Copy, Debug)]
pub struct Rank {
    pub rank: usize,
    pub alpha: f32,
}

impl Rank {
    pub fn of(settings: &Settings) -> Self {
        Self::new(settings.integer(RANK.name), settings.number(ALPHA.name) as f32)
    }

    /// Alpha 0 is the rank itself: scale 1.
    pub fn new(rank: usize, alpha: f32) -> Self {
        Self { rank, alpha: if alpha == 0.0 { rank as f32 } else { alpha } }
    }

    pub fn scale(self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// `down ~ U(−1/√in, 1/√in)` and `up = 0`: nothing changes at first.
    pub fn begin(self, spot: &Spot<'_>) -> Vec<Start> {
        let Self { rank, .. } = self;
        let input = spot.layer.input();
        vec![
            Start::trained("lora_down", [rank, input], kaiming(&spot.random, rank, input)),
            Start::zeros("lora_up", [spot.layer.out, rank]),
        ]
    }

    /// `s · up · down`.
    pub fn pair(self, down: &Tensor<2>, up: &Tensor<2>) -> Branch {
        Branch { down: down.clone(), up: up.clone(), scale: self.scale() }
    }

    pub fn change(self, down: &Tensor<2>, up: &Tensor<2>) -> Change {
        Change::LowRank(self.pair(down, up))
    }

    pub fn store(self, down: &Tensor<2>, up: &Tensor<2>) -> Result<Stored> {
        let Self { rank, alpha } = self;
        Ok(Stored::Lora { down: read(down.clone())?, up: read(up.clone())?, rank, alpha, bias: None })
    }
}

/// `rows × input` numbers of `U(−1/√input, 1/√input)`: Kaiming's rule with a = √5, PyTorch's for linear layers.
pub fn kaiming(random: &Philox, rows: usize, input: usize) -> Vec<f32> {
    let bound = (input as f32).powf(-0.5);
    random.uniform(0, rows * input).into_iter().map(|u| (2.0 * u - 1.0) * bound).collect()
}
