//! Gradients of the denoiser in little memory: each stretch's input is kept, nothing else, and on the way back the stretch
//! runs again and gives its vector–Jacobian product (Chen et al. 2016, arXiv 1604.06174).
//!
//! Never more than one stretch's activations are alive; the price is about a third of a step's time. burn's own
//! checkpointing runs cheap operations again and keeps the results of convolutions and matrix products: the large ones.

use std::convert::Infallible;

use burn::tensor::{Gradients, Tensor};

use crate::engine::model::unet::{Sinusoids, Unet};
use crate::engine::model::{Context, Mounts};

/// What a forward pass keeps for its backward pass.
pub struct Passed {
    /// Input, skip and next skip's size of each stretch.
    inputs: Vec<(Tensor<4>, Option<Tensor<4>>, [usize; 2])>,
    sinusoids: Sinusoids,
    time: Tensor<2>,
    context: Context,
}

/// Gradients that have come together so far.
pub struct Pulled {
    /// One for each leaf, where it had a part in the answer.
    pub leaves: Vec<Option<Tensor<2>>>,
    /// What the adapters have charged.
    pub charged: Option<Tensor<1>>,
}

/// [`Unet::forward`] without gradients, keeping what [`backward`] needs.
pub fn forward(unet: &Unet, x: Tensor<4>, timesteps: &[f32], context: Context, mounts: &Mounts) -> (Tensor<4>, Passed) {
    let sinusoids = unet.sinusoids(timesteps, &context, &x.device());
    let time = unet.time(&sinusoids, &context, mounts);
    let mut inputs = Vec::new();
    let Ok(answer) = unet.walk(x, &time, &context, mounts, |x, skip, size| {
        inputs.push((x.clone(), skip.cloned(), size));
        Ok::<(), Infallible>(())
    });
    (answer, Passed { inputs, sinusoids, time, context })
}

/// Pulls `gradient` of the answer back through the network, running it again under `mounts` that were made from `leaves`;
/// what the mounts charge counts as part of the loss. Returns the gradient of the context.
pub fn backward(
    unet: &Unet,
    passed: Passed,
    gradient: Tensor<4>,
    leaves: &[Tensor<2>],
    mounts: &Mounts,
    pulled: &mut Pulled,
) -> Context {
    let Passed { inputs, sinusoids, time, context } = passed;
    let (time, context) = (leaf(time), context.map(leaf).map_pooled(leaf));
    let (mut by_time, mut by_context) = (None, vec![None; context.slices().len()]);
    let (mut gradient, mut by_skips) = (gradient, Vec::new());
    for (stretch, (x, skip, size)) in unet.stretches().iter().zip(inputs).rev() {
        if stretch.leaves
            && let Some(Some(by_skip)) = by_skips.pop()
        {
            gradient = gradient + by_skip;
        }
        let (x, skip) = (leaf(x), skip.map(leaf));
        let answer = stretch.run(x.clone(), skip.clone(), size, &time, &context, mounts);
        let loss = (answer * gradient.clone()).sum();
        let gradients = pulled.pull(loss, mounts.take_charges(), leaves);
        add(&mut by_time, time.grad(&gradients));
        for (sum, slice) in by_context.iter_mut().zip(context.slices()) {
            add(sum, slice.grad(&gradients));
        }
        if let Some(skip) = skip {
            by_skips.push(skip.grad(&gradients));
        }
        gradient = x.grad(&gradients).unwrap_or_else(|| x.inner().zeros_like());
    }
    let mut by_pooled = None;
    if let Some(by_time) = by_time {
        let time = unet.time(&sinusoids.map(leaf), &context, mounts);
        let gradients = pulled.pull((time * by_time).sum(), mounts.take_charges(), leaves);
        add(&mut by_pooled, context.pooled().and_then(|pooled| pooled.text.grad(&gradients)));
    }
    let mut by_context = by_context.into_iter();
    context
        .map(|slice| by_context.next().flatten().unwrap_or_else(|| slice.inner().zeros_like()))
        .map_pooled(|text| by_pooled.unwrap_or_else(|| text.inner().zeros_like()))
}

impl Pulled {
    pub fn new(leaves: &[Tensor<2>]) -> Self {
        Self { leaves: vec![None; leaves.len()], charged: None }
    }

    /// Adds the gradients of `loss` and of what adapters have `charged`.
    pub fn pull(&mut self, loss: Tensor<1>, charged: Option<Tensor<1>>, leaves: &[Tensor<2>]) -> Gradients {
        let gradients = charged.iter().cloned().fold(loss, |loss, charged| loss + charged).backward();
        add(&mut self.charged, charged.map(Tensor::inner));
        for (sum, leaf) in self.leaves.iter_mut().zip(leaves).filter(|(_, leaf)| leaf.is_tracked()) {
            add(sum, leaf.grad(&gradients));
        }
        gradients
    }
}

/// The same numbers, from which a graph begins.
pub fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.autodiff().require_grad()
}

fn add<const D: usize>(sum: &mut Option<Tensor<D>>, more: Option<Tensor<D>>) {
    *sum = match (sum.take(), more) {
        (Some(sum), Some(more)) => Some(sum + more),
        (sum, more) => sum.or(more),
    };
}
