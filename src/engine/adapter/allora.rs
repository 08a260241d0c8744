//! ALLoRA: no alpha; each output row of the change learns the faster the smaller it still is. The gradient that reaches
//! up and down is multiplied by `g_o = 1/√(‖(up·down)_o‖ + 1/η²)`, the one that goes on to earlier layers is not
//! (Huang & Balestriero 2024, arXiv 2410.09692, §4.2).

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::rank::{RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Settling, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};

pub const METHOD: Method = Method {
    name: "allora",
    title: "ALLoRA",
    paper: "Huang & Balestriero 2024, arXiv 2410.09692",
    help: "LoRA without alpha: what has hardly changed yet learns faster, for short trainings",
    fields: &[
        RANK,
        Field {
            name: "eta_squared",
            title: "η²",
            help: "How much faster the first steps are: the factor starts at η and falls as a row grows",
            unit: "",
            default: "1",
            kind: Kind::Number { min: 1e-3, max: 100.0 },
        },
        Field {
            name: "rule",
            title: "Rule",
            help: "gradient: as in the paper; an optimiser such as Adam divides a constant factor out again. update: the factor multiplies the finished step",
            unit: "",
            default: "gradient",
            kind: Kind::Choice(&["gradient", "update"]),
        },
    ],
    count: "rank·(i + o)",
    file: FileKind::Lora,
    gradient: Some("Rows that have changed little count for more"),
    rate: 1.0,
    takes_slot: false,
    build,
};

struct Allora {
    rank: Rank,
    /// `1/η²`.
    floor: f32,
    on_update: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Allora {
        rank: Rank::new(settings.integer("rank"), 0.0),
        floor: 1.0 / settings.number("eta_squared") as f32,
        on_update: settings.text("rule") == "update",
    }))
}

impl Allora {
    /// `g [out]`; the row norms without the product: `‖(up·down)_o‖² = up_o·(down·downᵀ)·up_oᵀ`.
    fn g(&self, down: &Tensor<2>, up: &Tensor<2>) -> Tensor<1> {
        let (down, up) = (down.clone().without_autodiff(), up.clone().without_autodiff());
        let gram = down.clone().matmul(down.transpose());
        let squares = (up.clone().matmul(gram) * up).sum_dim(1).squeeze_dim::<1>(1).clamp_min(0.0);
        (squares.sqrt() + self.floor).sqrt().recip()
    }
}

impl Adapter for Allora {
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        Ok(self.rank.begin(spot))
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        let [down, up] = t else { unreachable!("two tensors began") };
        if self.on_update || !up.is_autodiff() {
            return vec![self.rank.change(down, up)];
        }
        // Through the first the gradient passes on, through the second it reaches the factors, times g. The second's
        // value is taken off again.
        let fixed = |tensor: &Tensor<2>| tensor.clone().without_autodiff();
        let passes = at.through(at.x(), fixed(down)).mix(fixed(up));
        let learns = at.through(at.x().constant(), down.clone()).mix(up.clone()).scaled(self.g(down, up));
        let value = learns.clone().constant();
        vec![Change::Output(passes + (learns - value))]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = t else { unreachable!("two tensors began") };
        Some(self.rank.pair(down, up))
    }

    fn settling(&self) -> Option<&dyn Settling> {
        self.on_update.then_some(self as &dyn Settling)
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = t else { unreachable!("two tensors began") };
        self.rank.store(down, up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.rank.rank * (layer.input() + layer.out)
    }
}

impl Settling for Allora {
    fn settle(&self, before: &[Tensor<2>], mut after: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
        let [down, up] = before else { unreachable!("two tensors began") };
        let g = self.g(down, up).reshape([up.dims()[0], 1]);
        after[1] = up.clone() + (after[1].clone() - up.clone()) * g;
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::read;

    #[test]
    fn g_falls_from_eta_as_rows_grow() {
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::from_data(burn::tensor::TensorData::new(values.to_vec(), shape), &crate::engine::device::cpu())
        };
        let allora = Allora { rank: Rank::new(1, 0.0), floor: 0.01, on_update: false };
        // Row norms 0, 0.99 and 3.99 at η = 10.
        let g = read(allora.g(&tensor(&[1.0], [1, 1]), &tensor(&[0.0, 0.99, 3.99], [3, 1]))).unwrap();
        assert!(g.iter().zip([10.0, 1.0, 0.5]).all(|(g, expected)| (g - expected).abs() < 1e-5), "{g:?}");
    }
}
