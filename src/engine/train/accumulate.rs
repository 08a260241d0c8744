//! One step made of several batches: the memory of one, the gradient of all.

use burn::tensor::Tensor;

use crate::engine::train::step::{Gradients, Outcome};

/// The mean of the outcomes of `n` batches, which are computed one after the other.
pub fn mean(n: usize, outcome: impl FnMut(usize) -> Outcome) -> Outcome {
    let mut outcomes = (0..n).map(outcome);
    let Some(first) = outcomes.next() else { unreachable!("a step has a batch") };
    if n == 1 {
        return first;
    }
    let Outcome { loss, prior, charged, gradients } = outcomes.fold(first, sum);
    let part = 1.0 / n as f64;
    Outcome {
        loss: loss * part,
        prior: prior.map(|prior| prior * part),
        charged: charged.map(|charged| charged * part),
        gradients: Gradients::new(gradients.into_iter().map(|gradient| Some(gradient? * part)).collect()),
    }
}

fn sum(a: Outcome, b: Outcome) -> Outcome {
    Outcome {
        loss: a.loss + b.loss,
        prior: both(a.prior, b.prior),
        charged: both(a.charged, b.charged),
        gradients: Gradients::new(a.gradients.into_iter().zip(b.gradients).map(|(a, b)| both(a, b)).collect()),
    }
}

/// What one of them lacks is nothing.
fn both<const D: usize>(a: Option<Tensor<D>>, b: Option<Tensor<D>>) -> Option<Tensor<D>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}
