//! How far what a file holds is from what it was made of: by what was cut off, and by rounding.

use std::collections::{BTreeMap, BTreeSet};

use faer::{Mat, MatRef};
use serde::Serialize;

use crate::engine::Result;
use crate::engine::convert::Paths;
use crate::engine::io::Dtype;
use crate::engine::io::lora_file::{Difference, LoraFile};
use crate::engine::io::safetensors::kept;
use crate::engine::spectrum::{LowRank, Shape};

/// What a conversion changed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Loss {
    /// `‖ΔW − ΔW'‖ / ‖ΔW‖` of every layer whose rank had to be cut, `ΔW'` as the file holds it.
    pub layers: BTreeMap<String, f64>,
    /// The same of all layers together, those that were only rounded included.
    pub all: f64,
    /// Layers whose bias or norm has no place in the format.
    pub beside: Vec<String>,
    /// Words that have none.
    pub words: Vec<String>,
}

/// Of `after`, as its number format rounds it; `cut` names the layers whose rank was.
pub fn of(before: &LoraFile, after: &LoraFile, paths: &Paths, cut: &BTreeSet<String>) -> Result<Loss> {
    let mut loss = Loss::default();
    let (mut all, mut lost) = (0.0, 0.0);
    for module in before.modules() {
        let name = paths.kohya(module);
        let delta = Delta::of(before, module, Dtype::F32)?;
        let Some((delta, held)) = delta.zip(Delta::of(after, &name, after.dtype.unwrap_or(Dtype::F32))?) else {
            continue;
        };
        let whole = delta.dot(&delta)?;
        let apart = (whole - 2.0 * delta.dot(&held)? + held.dot(&held)?).max(0.0);
        all += whole;
        lost += apart;
        if cut.contains(&name) {
            loss.layers.insert(name, share(apart, whole));
        }
    }
    loss.all = share(lost, all);
    Ok(loss)
}

fn share(lost: f64, whole: f64) -> f64 {
    if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 }
}

/// `ΔW` of a layer; that of a pair is never multiplied out.
enum Delta {
    Pair(LowRank),
    Whole(Mat<f64>),
}

impl Delta {
    /// `None` where a layer's weight does not change.
    fn of(file: &LoraFile, module: &str, dtype: Dtype) -> Result<Option<Self>> {
        let rounded = |values: &[f32]| values.iter().map(|&x| kept(dtype, x)).collect::<Vec<_>>();
        if let Some(layer) = file.layers.get(module) {
            let shape = Shape { out: layer.out(), rank: layer.rank, input: layer.input() };
            let pair = LowRank::new(&rounded(&layer.up), &rounded(&layer.down), shape, f64::from(layer.scale()));
            return pair.map(|pair| Some(Self::Pair(pair))).map_err(|e| e.at(&file.path));
        }
        let product = file.kroneckers.get(module).map(|factors| {
            let mut held = factors.folded();
            (held.w1.values, held.w2.values) = (rounded(&held.w1.values), rounded(&held.w2.values));
            held.product()
        });
        let whole = || {
            let whole = file.whole(module)?;
            Some(Difference { weight: rounded(&whole.weight), shape: whole.shape.clone(), bias: None })
        };
        Ok(product.or_else(whole).map(|Difference { weight, shape, .. }| {
            let (out, input) = (shape[0], shape[1..].iter().product());
            Self::Whole(MatRef::from_row_major_slice(&weight, out, input).map(|&x| f64::from(x)))
        }))
    }

    /// `⟨ΔWᵢ, ΔWⱼ⟩`.
    fn dot(&self, other: &Self) -> Result<f64> {
        let sum = |a: MatRef<'_, f64>, b: MatRef<'_, f64>| -> f64 {
            a.col_iter().zip(b.col_iter()).map(|(a, b)| a.transpose() * b).sum()
        };
        match (self, other) {
            (Self::Pair(a), Self::Pair(b)) => a.dot(b),
            (Self::Whole(a), Self::Whole(b)) => Ok(sum(a.as_ref(), b.as_ref())),
            // ⟨s·up·down, Δ⟩ = s·⟨up, Δ·downᵀ⟩.
            (Self::Pair(pair), Self::Whole(whole)) | (Self::Whole(whole), Self::Pair(pair)) => {
                Ok(pair.scale() * sum(pair.up(), (whole * pair.down().transpose()).as_ref()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::lora_file::LoraLayer;
    use crate::engine::random::Philox;

    /// A pair and a whole difference, each rounded and once in the other's form: what the numbers themselves say.
    #[test]
    fn rounding_is_a_loss_in_every_form() {
        let draw = |i, n| Philox::new(5).normal(i, n);
        let pair = LoraLayer {
            down: draw(0, 14),
            up: draw(1, 10),
            rank: 2,
            alpha: 3.0,
            down_shape: vec![2, 7],
            up_shape: vec![5, 2],
        };
        let file = |layers: &[(&str, LoraLayer)], differences: &[(&str, Difference)], dtype| LoraFile {
            layers: layers.iter().map(|(name, layer)| ((*name).to_owned(), layer.clone())).collect(),
            differences: differences.iter().map(|(name, whole)| ((*name).to_owned(), whole.clone())).collect(),
            dtype: Some(dtype),
            ..LoraFile::default()
        };
        let other = Difference { weight: draw(2, 35), shape: vec![5, 7], bias: None };
        let mut folded = pair.clone();
        folded.set_alpha(2.0);
        let before = file(&[("a", pair.clone())], &[("b", other.clone())], Dtype::F32);
        for (dtype, least, most) in [(Dtype::F16, 1e-4, 1e-3), (Dtype::BF16, 1e-3, 1e-2), (Dtype::F32, 0.0, 1e-6)] {
            let factored = file(&[("a", folded.clone()), ("b", other.pair().unwrap())], &[], dtype);
            let whole = file(&[], &[("a", pair.product()), ("b", other.clone())], dtype);
            for after in [factored, whole] {
                let cut = BTreeSet::from(["b".to_owned()]);
                let loss = of(&before, &after, &Paths::of(None), &cut).unwrap();
                let held = |module: &str| {
                    let mut pair = after.pair(module).unwrap().into_owned();
                    pair.down.iter_mut().chain(&mut pair.up).for_each(|x| *x = kept(dtype, *x));
                    pair.product().weight
                };
                let squares = |module: &str, a: &[f32]| {
                    let apart = a.iter().zip(held(module)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                    (apart, a.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>())
                };
                let (a, b) = (squares("a", &pair.product().weight), squares("b", &other.weight));
                let expected = ((a.0 + b.0) / (a.1 + b.1)).sqrt();
                assert!((loss.all - expected).abs() < 1e-6 && (least..most).contains(&loss.all), "{dtype:?}: {loss:?}");
                assert!((loss.layers["b"] - (b.0 / b.1).sqrt()).abs() < 1e-6 && loss.layers.len() == 1);
            }
        }
    }
}
