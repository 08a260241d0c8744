//! Plain LoRA: both sides train (Hu et al. 2021, arXiv 2106.09685; rank-stabilised: Kalajdzievski 2023, arXiv 2312.03732).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "lora",
    title: "LoRA",
    paper: "Hu et al. 2021, arXiv 2106.09685",
    help: "Both sides train: a little closer alone, but concepts get into each other's way when merged",
    fields: &[
        RANK,
        ALPHA,
        Field {
            name: "rank_stabilised",
            title: "Rank-stabilised",
            help: "Scale by alpha / √rank (rsLoRA), so that high ranks learn as fast as low ones",
            unit: "",
            default: "false",
            kind: Kind::Flag,
        },
    ],
    count: "rank·(i + o)",
    file: FileKind::Lora,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build,
};

struct Lora(Rank);

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    let mut rank = Rank::of(settings);
    if settings.flag("rank_stabilised") {
        // Folded into alpha, as LyCORIS does: files have no flag for it.
        rank.alpha *= (rank.rank as f32).sqrt();
    }
    Ok(Box::new(Lora(rank)))
}

impl Adapter for Lora {
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        Ok(self.0.begin(spot))
    }

    fn change(&self, t: &[Tensor<2>], _: &Site<'_>) -> Vec<Change> {
        let [down, up] = t else { unreachable!("two tensors began") };
        vec![self.0.change(down, up)]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = t else { unreachable!("two tensors began") };
        Some(self.0.pair(down, up))
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = t else { unreachable!("two tensors began") };
        self.0.store(down, up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.0.rank * (layer.input() + layer.out)
    }
}
