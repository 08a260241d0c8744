//! Gradients on one layer, number by number.

use std::sync::Arc;

use burn::tensor::Tensor;
use triptych::engine::adapter::{Adapter, METHODS, Start};
use triptych::engine::device::read;
use triptych::engine::model::Signal;
use triptych::engine::random::Philox;

use crate::case::{Case, alone, cases, moved};
use crate::{apart, build, tensor};

/// Wide, since rounding of 1e-7 is divided by it; the curvature of either difference is left out.
const HALF_WIDTH: f32 = 0.125;

/// The slope of `loss` at 0 by Richardson's rule on two central differences.
pub fn slope(loss: impl Fn(f32) -> f64) -> f64 {
    let central = |h: f32| (loss(h) - loss(-h)) / f64::from(2.0 * h);
    (4.0 * central(HALF_WIDTH / 2.0) - central(HALF_WIDTH)) / 3.0
}

/// A layer with an adapter on it, and the loss `Σ y·v` with fixed random `v`.
pub struct Slopes<'a> {
    pub case: &'a Case,
    pub adapter: Arc<dyn Adapter>,
    pub starts: Vec<Start>,
}

/// By tensor, `None` where it is frozen; then of the input.
pub struct Gradients {
    pub tensors: Vec<Option<Vec<f32>>>,
    pub x: Vec<f32>,
    /// The layer's answer, while all that is tracked.
    pub y: Vec<f32>,
}

impl<'a> Slopes<'a> {
    pub fn new(case: &'a Case, adapter: Arc<dyn Adapter>) -> Self {
        let starts = moved(case.start(adapter.as_ref()), 5);
        Self { case, adapter, starts }
    }

    fn loss(&self, starts: &[Start], x: &Signal) -> f64 {
        summed(&self.case.values(&alone(&self.adapter, &self.case.tensors(starts)), x))
    }

    /// By autodiff, everything at once, as in training.
    pub fn gradients(&self) -> Gradients {
        let leaf = |start: &Start| {
            let value = start.tensor(&self.case.weight.oi.device());
            if start.trains { value.autodiff().require_grad() } else { value }
        };
        let t: Vec<Tensor<2>> = self.starts.iter().map(leaf).collect();
        let x = match self.case.x() {
            Signal::Tokens(x) => Signal::Tokens(x.autodiff().require_grad()),
            Signal::Picture(x) => Signal::Picture(x.autodiff().require_grad()),
        };
        let y = self.case.run(&alone(&self.adapter, &t), &x);
        let (n, values) = (y.dims()[0], read(y.clone()).unwrap());
        let gradients = (y * tensor(&weights(n), [n])).sum().backward();
        let of = |(start, t): (&Start, &Tensor<2>)| {
            let gradient = || read(t.grad(&gradients).expect("what trains has a gradient")).unwrap();
            start.trains.then(gradient)
        };
        let x = match x {
            Signal::Tokens(x) => read(x.grad(&gradients).unwrap()),
            Signal::Picture(x) => read(x.grad(&gradients).unwrap()),
        };
        Gradients { tensors: self.starts.iter().zip(&t).map(of).collect(), x: x.unwrap(), y: values }
    }

    /// Every number of one tensor, by finite differences.
    fn of_tensor(&self, which: usize) -> Vec<f32> {
        let at = |k: usize| {
            slope(|by| {
                let mut starts = self.starts.clone();
                starts[which].values[k] += by;
                self.loss(&starts, &self.case.x())
            })
        };
        (0..self.starts[which].values.len()).map(|k| at(k) as f32).collect()
    }

    /// Along a direction of the input: by how much finite differences and `gradient` disagree, as a share of what a
    /// direction brings on average.
    fn along_x(&self, gradient: &[f32]) -> f64 {
        let direction = Philox::new(9).normal(0, gradient.len());
        let found = slope(|by| {
            let x = match self.case.x() {
                Signal::Tokens(x) => Signal::Tokens(x.clone() + tensor(&direction, x.dims()) * by),
                Signal::Picture(x) => Signal::Picture(x.clone() + tensor(&direction, x.dims()) * by),
            };
            self.loss(&self.starts, &x)
        });
        let expected: f64 = gradient.iter().zip(&direction).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        (found - expected).abs() / gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    }
}

/// In f64: the sum's own rounding would hide small slopes.
pub fn summed(y: &[f32]) -> f64 {
    y.iter().zip(weights(y.len())).map(|(&y, v)| f64::from(y) * f64::from(v)).sum()
}

pub fn weights(n: usize) -> Vec<f32> {
    Philox::new(6).normal(0, n)
}

/// Of all that trains, and of what goes on to earlier layers. At depth 0, where a router has no more experts than it
/// calls up: where it changes its mind there is no slope.
///
/// A row that declares another rule must really differ for one of its tensors, and still pass on the true gradient; and
/// what it tracks for its rule must not show in the answer.
#[test]
fn layer_gradients_are_finite_differences() {
    for row in METHODS {
        let (mut worst, mut worst_x) = (0.0_f32, 0.0_f64);
        for case in cases() {
            let slopes = Slopes::new(&case, build(row, &[]));
            let gradients = slopes.gradients();
            let plain = case.values(&alone(&slopes.adapter, &case.tensors(&slopes.starts)), &case.x());
            assert!(apart(&gradients.y, &plain) < 1e-6, "{} on a {}: another answer in training", row.name, case.what);
            let of = |(which, gradient): (usize, &Option<Vec<f32>>)| {
                gradient.as_ref().map(|found| apart(found, &slopes.of_tensor(which)))
            };
            let errors: Vec<f32> = gradients.tensors.iter().enumerate().filter_map(of).collect();
            let error = errors.iter().copied().fold(0.0, f32::max);
            let context = format!("{} on a {}", row.name, case.what);
            match row.gradient {
                None => assert!(error < 1e-4, "{context}: {errors:?}"),
                Some(rule) => assert!(error > 0.02, "{context} has the loss's own gradient, not “{rule}”: {errors:?}"),
            }
            let error_x = slopes.along_x(&gradients.x);
            assert!(error_x < 1e-4, "{context}, its input: {error_x}");
            (worst, worst_x) = (worst.max(error), worst_x.max(error_x));
        }
        println!("{}: tensors {worst:.1e}, input {worst_x:.1e}", row.name);
    }
}
