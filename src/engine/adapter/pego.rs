//! PEGO: a group of LoRAs on each layer, kept off the layer's own weight and off each other by two losses:
//! `L += α·Σ_layers [ Σₙ ‖W·ΔWₙᵀ‖₁ + Σ_{n<m} ‖ΔWₙ·ΔWₘᵀ‖₁ ]`, entry by entry, on the products (Hu et al., ECCV 2024,
//! arXiv 2407.15085; `domainbed/algorithms/algorithms.py`).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{RANK, Rank, kaiming};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "pego",
    title: "PEGO",
    paper: "Hu et al., ECCV 2024, arXiv 2407.15085",
    help: "Several small LoRAs that are made to differ from the model and from each other: holds on to what the model can do",
    fields: &[
        Field {
            help: "Directions of each LoRA of the group",
            default: "4",
            kind: Kind::Integer { min: 1, max: 128 },
            ..RANK
        },
        Field {
            name: "group",
            title: "Group",
            help: "How many LoRAs share each layer",
            unit: "",
            default: "4",
            kind: Kind::Integer { min: 1, max: 16 },
        },
        Field {
            name: "apart",
            title: "Apart α",
            help: "How strongly the group is kept apart, the same on layers of every width; raise it tenfold at a time, and lower it where nothing is learnt",
            unit: "",
            default: "1e-6",
            kind: Kind::Number { min: 0.0, max: 10.0 },
        },
    ],
    count: "group·rank·(i + o)",
    file: FileKind::Lora,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build,
};

/// Width of the layers that the paper's α belongs to: 1e-3 on the query and value layers of a classifier. On the 84
/// usual layers of the starter it left nothing to learn with, so the default is 1e-6.
const PAPER_WIDTH: f32 = 768.0;

/// Both factors of all members are stacked: they run as one LoRA of rank `group·rank`.
struct Pego {
    rank: usize,
    group: usize,
    alpha: f32,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Pego {
        rank: settings.integer("rank"),
        group: settings.integer("group"),
        alpha: settings.number("apart") as f32,
    }))
}

impl Pego {
    fn all(&self) -> Rank {
        Rank::new(self.group * self.rank, 0.0)
    }

    /// `Σₙ ‖W·ΔWₙᵀ‖₁ + Σ_{n<m} ‖ΔWₙ·ΔWₘᵀ‖₁`, each product through the ranks: no ΔW is built.
    fn apart(&self, down: &Tensor<2>, up: &Tensor<2>, weight_oi: &Tensor<2>) -> Tensor<1> {
        let r = self.rank;
        let members: Vec<_> =
            (0..self.group).map(|n| (down.clone().narrow(0, n * r, r), up.clone().narrow(1, n * r, r))).collect();
        let size = |read: Tensor<2>, write: &Tensor<2>| read.matmul(write.clone().transpose()).abs().sum();
        let mut terms = Vec::new();
        for (n, (down, up)) in members.iter().enumerate() {
            terms.push(size(weight_oi.clone().matmul(down.clone().transpose()), up));
            for (down_m, up_m) in &members[n + 1..] {
                terms.push(size(up.clone().matmul(down.clone().matmul(down_m.clone().transpose())), up_m));
            }
        }
        Tensor::cat(terms, 0).sum()
    }
}

impl Adapter for Pego {
    /// Every member as a LoRA of its own: kaiming and 0.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (r, input) = (self.group * self.rank, spot.layer.input());
        // The two losses pull enough; the authors set no decay.
        Ok(vec![
            Start { decays: false, ..Start::trained("lora_down", [r, input], kaiming(&spot.random, r, input)) },
            Start { decays: false, ..Start::zeros("lora_up", [spot.layer.out, r]) },
        ])
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        let [down, up] = t else { unreachable!("two tensors began") };
        if self.alpha > 0.0 {
            at.charge(|| {
                let weight_oi = at.weight_oi();
                let narrow = PAPER_WIDTH / weight_oi.dims()[0] as f32;
                self.apart(down, up, &weight_oi) * (self.alpha * narrow * narrow)
            });
        }
        vec![self.all().change(down, up)]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = t else { unreachable!("two tensors began") };
        Some(self.all().pair(down, up))
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = t else { unreachable!("two tensors began") };
        self.all().store(down, up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.group * self.rank * (layer.input() + layer.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn the_losses_by_hand() {
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &crate::engine::device::cpu())
        };
        // W = [1, 2], ΔW₁ = [3, −1], ΔW₂ = [2, 1]: 1 + 4, and 5.
        let pego = Pego { rank: 1, group: 2, alpha: 1.0 };
        let (down, up) = (tensor(&[3., -1., 2., 1.], [2, 2]), tensor(&[1., 1.], [1, 2]));
        let weight = tensor(&[1., 2.], [1, 2]);
        assert!((pego.apart(&down, &up, &weight).into_scalar::<f32>() - 10.0).abs() < 1e-5);

        // Before training they are 0, and so are their gradients.
        let (down, up) = (down.autodiff().require_grad(), (up * 0.0).autodiff().require_grad());
        let gradients = pego.apart(&down, &up, &weight).backward();
        for leaf in [down, up] {
            let gradient = crate::engine::device::read(leaf.grad(&gradients).unwrap()).unwrap();
            assert!(gradient.iter().all(|x| *x == 0.0), "{gradient:?}");
        }
    }
}
