//! MoLA: several LoRA experts on each layer and a router that picks the best two for every token; later layers have more
//! experts (Gao et al. 2024, arXiv 2402.08562): `y = W·x + s·Σₑ p̃ₑ·upₑ(downₑ(x))`, `p = softmax(G·x)`.

use burn::tensor::{Tensor, activation};

use crate::engine::adapter::rank::{ALPHA, RANK, Rank, kaiming};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Change, Layer, Site, Weight};
use crate::engine::{Error, Result};

pub const METHOD: Method = Method {
    name: "mola",
    title: "MoLA",
    paper: "Gao et al. 2024, arXiv 2402.08562",
    help: "Experts of which each place of the picture calls up the two that suit it; cannot be merged, and only Triptych loads it",
    fields: &[
        Field { help: "Directions of each expert", default: "4", ..RANK },
        ALPHA,
        Field {
            name: "experts",
            title: "Experts",
            help: "How many in the first, second, third and last quarter of the layers",
            unit: "",
            default: "2-4-6-8",
            kind: Kind::Text,
        },
        Field {
            name: "balance",
            title: "Balance",
            help: "Weight of the loss that keeps all experts in use; 0 leaves them to themselves",
            unit: "",
            default: "1e-3",
            kind: Kind::Number { min: 0.0, max: 1.0 },
        },
    ],
    count: "experts·(rank·(i + o) + i)",
    file: FileKind::Own,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build,
};

/// Experts that answer at each place.
const TOP: usize = 2;

/// Of the tensors in a file.
const NAMES: [&str; 3] = ["mola_down", "mola_up", "mola_router"];

struct Mola {
    rank: Rank,
    /// In each quarter of the depth.
    experts: [usize; 4],
    balance: f32,
}

fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    let text = settings.text("experts");
    let numbers: Option<Vec<usize>> =
        text.split('-').map(|n| n.trim().parse().ok().filter(|n| (1..=64).contains(n))).collect();
    let experts = numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
        Error::usage(format!("experts cannot be “{text}”"), "It must be four numbers from 1 to 64, such as 2-4-6-8")
    })?;
    Ok(Box::new(Mola { rank: Rank::of(settings), experts, balance: settings.number("balance") as f32 }))
}

impl Mola {
    fn experts(&self, depth: f32) -> usize {
        self.experts[((depth * 4.0) as usize).min(3)]
    }
}

/// What sets equal probabilities apart, so that exactly [`TOP`] answer: more than rounding, less than any preference.
const APART: f32 = 1e-6;

/// 1 for the `TOP` largest of each row, else 0. A running maximum: a sort would wait for the device at every layer.
fn chosen(p: &Tensor<2>) -> Tensor<2> {
    let [_, experts] = p.dims();
    let ramp: Vec<f32> = (0..experts).map(|e| -APART * e as f32).collect();
    let p = p.clone().without_autodiff();
    let mut rest = p.clone() + Tensor::<1>::from_floats(ramp.as_slice(), &p.device()).reshape([1, experts]);
    let mut chosen = p.zeros_like();
    for _ in 0..TOP.min(experts) {
        let best = rest.clone().greater_equal(rest.clone().max_dim(1).expand(rest.dims())).float();
        rest = rest - best.clone() * 2.0;
        chosen = chosen + best;
    }
    chosen
}

/// Switch's balance loss `E·Σₑ fₑ·Pₑ`: 1 when all experts are used alike.
fn balance(p: Tensor<2>, chosen: Tensor<2>) -> Tensor<1> {
    let experts = p.dims()[1];
    let f = chosen.clone().mean_dim(0) / chosen.sum_dim(1).mean_dim(0);
    (f * p.mean_dim(0)).sum() * experts as f32
}

impl Adapter for Mola {
    /// Experts stacked: `down [E·r, in]`, `up [out, E·r]` = 0, router `[E, in]`.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (e, input) = (self.experts(spot.depth), spot.layer.input());
        let r = e * self.rank.rank;
        let router = spot.random.stream(u32::MAX);
        Ok(vec![
            Start::trained(NAMES[0], [r, input], kaiming(&spot.random, r, input)),
            Start::zeros(NAMES[1], [spot.layer.out, r]),
            Start::trained(NAMES[2], [e, input], kaiming(&router, e, input)),
        ])
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        let [down, up, router] = t else { unreachable!("three tensors began") };
        let (e, r) = (router.dims()[0], down.dims()[0] / router.dims()[0]);
        let gates = at.through(at.x(), router.clone()).by_place(|logits| {
            let p = activation::softmax(logits, 1);
            let chosen = chosen(&p);
            if self.balance > 0.0 {
                at.charge(|| balance(p.clone(), chosen.clone()) * self.balance);
            }
            let p = p * chosen;
            let p = p.clone() / p.sum_dim(1);
            let places = p.dims()[0];
            // Every direction of an expert has the expert's gate.
            p.reshape([places, e, 1]).expand([places, e, r]).reshape([places, e * r])
        });
        let heard = at.through(at.x(), down.clone());
        vec![Change::Output((heard * gates).mix(up.clone()) * self.rank.scale())]
    }

    fn store(&self, _: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        Ok(Stored::Own)
    }

    fn own(&self, layer: &Layer, shape: &dyn Fn(&str) -> Option<[usize; 2]>) -> Option<&[&'static str]> {
        let [e, _] = shape(NAMES[2]).filter(|[e, _]| *e > 0)?;
        let (r, input) = (e * self.rank.rank, layer.input());
        let fits = [[r, input], [layer.out, r], [e, input]];
        NAMES.iter().zip(fits).all(|(name, fit)| shape(name) == Some(fit)).then_some(&NAMES)
    }

    fn count(&self, layer: &Layer, depth: f32) -> usize {
        self.experts(depth) * (self.rank.rank * (layer.input() + layer.out) + layer.input())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use burn::tensor::TensorData;

    fn rows(values: &[f32], experts: usize) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / experts, experts]), &cpu())
    }

    #[test]
    fn two_answer_and_one_alone_always_does() {
        let picked = read(chosen(&rows(&[0.1, 0.5, 0.2, 0.2001, 0.7, 0.1, 0.15, 0.05], 4))).unwrap();
        assert_eq!(picked, [0., 1., 0., 1., 1., 0., 1., 0.]);
        assert_eq!(read(chosen(&rows(&[1.0, 1.0], 1))).unwrap(), [1.0, 1.0]);
        assert_eq!(read(chosen(&rows(&[0.25; 4], 4))).unwrap(), [1., 1., 0., 0.]);
    }

    #[test]
    fn balance_is_one_when_all_are_used_alike() {
        let p = rows(&[0.25; 16], 4);
        let evenly = rows(&[1., 1., 0., 0., 0., 0., 1., 1., 1., 0., 1., 0., 0., 1., 0., 1.], 4);
        assert!((balance(p, evenly).into_scalar::<f32>() - 1.0).abs() < 1e-6);
        let one = rows(&[0.97, 0.01, 0.01, 0.01], 4);
        assert!(balance(one.clone(), chosen(&one)).into_scalar::<f32>() > 1.5);
    }

    #[test]
    fn deeper_layers_have_more_experts() {
        let mola = Mola { rank: Rank::new(4, 0.0), experts: [2, 4, 6, 8], balance: 0.0 };
        assert_eq!([0.0, 0.24, 0.25, 0.6, 0.99, 1.0].map(|depth| mola.experts(depth)), [2, 2, 4, 6, 8, 8]);
    }
}
