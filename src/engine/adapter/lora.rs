//! Plain LoRA: both sides train (Hu et al. 2021, arXiv 2106.09685; rank-stabilised: Kalajdzievski 2023, arXiv 2312.03732).

use crate::engine::Result;
use crate::engine::adapter::{Adapter, Context, Factors, Method};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::Layer;
use crate::engine::random::Philox;

pub const METHOD: Method = Method {
    name: "lora",
    title: "LoRA",
    paper: "Hu et al. 2021, arXiv 2106.09685",
    help: "Both sides train: a little closer alone, but concepts get into each other's way when merged",
    fields: &[
        Field {
            name: "rank",
            title: "Rank",
            help: "How many directions each layer may change; more hold more detail and make a larger file",
            unit: "",
            default: "8",
            kind: Kind::Integer { min: 1, max: 1024 },
        },
        Field {
            name: "alpha",
            title: "Alpha",
            help: "Strength of the change: the factors' product is scaled by alpha / rank; 0 means the rank itself",
            unit: "",
            default: "0",
            kind: Kind::Number { min: 0.0, max: 4096.0 },
        },
        Field {
            name: "rank_stabilised",
            title: "Rank-stabilised",
            help: "Scale by alpha / √rank (rsLoRA), so that high ranks learn as fast as low ones",
            unit: "",
            default: "false",
            kind: Kind::Flag,
        },
    ],
    takes_slot: false,
    build,
};

struct Lora {
    rank: usize,
    alpha: f32,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    let rank = settings.integer("rank");
    let alpha = match settings.number("alpha") as f32 {
        0.0 => rank as f32,
        alpha => alpha,
    };
    let alpha = if settings.flag("rank_stabilised") { alpha * (rank as f32).sqrt() } else { alpha };
    Ok(Box::new(Lora { rank, alpha }))
}

impl Adapter for Lora {
    /// `down ~ U(−1/√in, 1/√in)` (Kaiming, a = √5), `up = 0`.
    fn init(&self, layer: &Layer, random: &Philox) -> Result<Factors> {
        let input = layer.input();
        let bound = (input as f32).powf(-0.5);
        let down = random.uniform(0, self.rank * input).into_iter().map(|u| (2.0 * u - 1.0) * bound).collect();
        Ok(Factors { down, up: vec![0.0; layer.out * self.rank], rank: self.rank, alpha: self.alpha, train_down: true })
    }
}
