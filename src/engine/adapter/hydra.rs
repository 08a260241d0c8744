//! Hydra: one branch beside the layer and one behind it: `y = z + s·up(down(x)) + s·up₂(down₂(z))` with `z = W·x + b`
//! (Kim et al. 2023, arXiv 2309.06922).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank, kaiming};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "hydra",
    title: "Hydra",
    paper: "Kim et al. 2023, arXiv 2309.06922",
    help: "Listens to a layer's input and to its answer, and corrects both at once",
    fields: &[
        Field { help: "Directions of the branch beside the layer", default: "4", ..RANK },
        Field {
            name: "sequential",
            title: "Sequential rank",
            help: "Directions of the branch behind the layer",
            unit: "",
            default: "4",
            kind: Kind::Integer { min: 1, max: 1024 },
        },
        ALPHA,
    ],
    count: "rank·(i + o) + 2·sequential·o",
    file: FileKind::LoraAndBias,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build,
};

/// Both branches share the scale.
struct Hydra {
    parallel: Rank,
    sequential: usize,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Hydra { parallel: Rank::of(settings), sequential: settings.integer("sequential") }))
}

/// `[down; down₂·W]` and `[up | up₂]`.
fn joined(t: &[Tensor<2>], weight: &Weight) -> [Tensor<2>; 2] {
    let [down, up, after_down, after_up] = t else { unreachable!("four tensors began") };
    [
        Tensor::cat(vec![down.clone(), after_down.clone().matmul(weight.wide_oi())], 0),
        Tensor::cat(vec![up.clone(), after_up.clone()], 1),
    ]
}

impl Adapter for Hydra {
    /// Both ups are 0.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (out, r) = (spot.layer.out, self.sequential);
        let mut t = self.parallel.begin(spot);
        // Any draw but that of the other branch.
        let random = spot.random.stream(u32::MAX);
        t.push(Start::trained("after_down", [r, out], kaiming(&random, r, out)));
        t.push(Start::zeros("after_up", [out, r]));
        Ok(t)
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        let [down, up, after_down, after_up] = t else { unreachable!("four tensors began") };
        let after = at.base().mix(after_down.clone()).mix(after_up.clone()) * self.parallel.scale();
        vec![self.parallel.change(down, up), Change::Output(after)]
    }

    fn pair(&self, t: &[Tensor<2>], weight: &Weight) -> Option<Branch> {
        let [down, up] = joined(t, weight);
        Some(self.parallel.pair(&down, &up))
    }

    /// `up = [up | up₂]`, `down = [down; down₂·W]`, `Δb = s·up₂·down₂·b`.
    fn store(&self, t: &[Tensor<2>], weight: &Weight) -> Result<Stored> {
        let [_, _, after_down, after_up] = t else { unreachable!("four tensors began") };
        let s = self.parallel.scale();
        let rank = self.parallel.rank + self.sequential;
        let [down, up] = joined(t, weight);
        let bias = weight.bias.clone().map(|b| {
            let [out] = b.dims();
            after_up.clone().matmul(after_down.clone().matmul(b.reshape([out, 1]))) * s
        });
        Ok(Stored::Lora {
            down: read(down)?,
            up: read(up)?,
            rank,
            alpha: s * rank as f32,
            bias: bias.map(read).transpose()?,
        })
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.parallel.rank * (layer.input() + layer.out) + 2 * self.sequential * layer.out
    }
}
