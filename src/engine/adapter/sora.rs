//! SoRA: a gate on every direction, which a proximal step drives to exactly 0: `ΔW = s·up·diag(g)·down`, and after each
//! step `g ← sign(g)·max(|g| − ξ, 0)` (Ding et al., EMNLP 2023, arXiv 2311.11696).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Settling, Spot, Start, Stored};
use crate::engine::device::read;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "sora",
    title: "SoRA",
    paper: "Ding et al., EMNLP 2023, arXiv 2311.11696",
    help: "Finds each layer's rank by itself: directions that are not worth their price are switched off and left out of the file",
    fields: &[
        RANK,
        Field { default: "16", ..ALPHA },
        Field {
            name: "sparsity",
            title: "Sparsity ξ",
            help: "What each step takes off every gate; more switches more directions off",
            unit: "",
            default: "3e-4",
            kind: Kind::Number { min: 0.0, max: 1.0 },
        },
    ],
    count: "rank·(i + o + 1)",
    file: FileKind::Lora,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build,
};

struct Sora {
    rank: Rank,
    xi: f32,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Sora { rank: Rank::of(settings), xi: settings.number("sparsity") as f32 }))
}

/// `argmin ½(u − g)² + ξ|u|`.
fn prox(g: Tensor<2>, xi: f32) -> Tensor<2> {
    g.clone().sign() * (g.abs() - xi).clamp_min(0.0)
}

impl Adapter for Sora {
    /// As LoRA, and `g ~ N(0, 1)`.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let r = self.rank.rank;
        let mut t = self.rank.begin(spot);
        let g = Start::trained("gate", [1, r], spot.random.normal(1, r));
        t.push(Start { decays: false, ..g });
        Ok(t)
    }

    fn change(&self, t: &[Tensor<2>], _: &Site<'_>) -> Vec<Change> {
        let [down, up, gate] = t else { unreachable!("three tensors began") };
        vec![self.rank.change(down, &(up.clone() * gate.clone()))]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up, gate] = t else { unreachable!("three tensors began") };
        Some(self.rank.pair(down, &(up.clone() * gate.clone())))
    }

    fn settling(&self) -> Option<&dyn Settling> {
        Some(self)
    }

    /// Without the directions whose gate is 0; the others' gates go into `up`.
    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up, gate] = t else { unreachable!("three tensors began") };
        let gates = read(gate.clone())?;
        let open: Vec<usize> = (0..gates.len()).filter(|&k| gates[k] != 0.0).collect();
        if open.is_empty() {
            return Ok(Stored::Nothing);
        }
        let (down, up, rank) = (read(down.clone())?, read(up.clone())?, open.len());
        let input = down.len() / gates.len();
        Ok(Stored::Lora {
            down: open.iter().flat_map(|&k| down[k * input..(k + 1) * input].iter().copied()).collect(),
            up: up.chunks_exact(gates.len()).flat_map(|row| open.iter().map(|&k| row[k] * gates[k])).collect(),
            rank,
            alpha: self.rank.scale() * rank as f32,
            bias: None,
        })
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.rank.rank * (layer.input() + layer.out + 1)
    }
}

impl Settling for Sora {
    fn settle(&self, _: &[Tensor<2>], mut after: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
        after[2] = prox(after[2].clone(), self.xi);
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(burn::tensor::TensorData::new(values.to_vec(), shape), &crate::engine::device::cpu())
    }

    #[test]
    fn prox_is_the_argmin() {
        let (g, xi) = ([0.5, -0.05, 0.1, -0.37, 0.0], 0.1);
        let found = read(prox(tensor(&g, [1, 5]), xi)).unwrap();
        for (&g, &found) in g.iter().zip(&found) {
            let cost = |u: f32| 0.5 * (u - g).powi(2) + xi * u.abs();
            let best = (-1000..=1000).map(|i| i as f32 * 1e-3).map(|u| (cost(u), u)).min_by(|a, b| a.0.total_cmp(&b.0));
            assert!((found - best.unwrap().1).abs() < 1e-3, "{g}: {found}");
        }
        assert!(found[1] == 0.0 && found[4] == 0.0);
    }

    #[test]
    fn closed_gates_leave_the_file() {
        let sora = Sora { rank: Rank::new(3, 6.0), xi: 0.0 };
        let weight = Weight { oi: tensor(&[0.0; 4], [2, 2]), bias: None };
        let t = |gates: &[f32]| {
            let (down, up) = (tensor(&[1., 2., 3., 4., 5., 6.], [3, 2]), tensor(&[1., 2., 3., 4., 5., 6.], [2, 3]));
            [down, up, tensor(gates, [1, 3])]
        };
        let Stored::Lora { down, up, rank, alpha, .. } = sora.store(&t(&[2.0, 0.0, -1.0]), &weight).unwrap() else {
            panic!("two gates are open")
        };
        // The scale stays 2 although the rank has shrunk.
        assert_eq!((down, up, rank, alpha), (vec![1., 2., 5., 6.], vec![2., -3., 8., -6.], 2, 4.0));
        assert_eq!(sora.store(&t(&[0.0; 3]), &weight).unwrap(), Stored::Nothing);
    }
}
