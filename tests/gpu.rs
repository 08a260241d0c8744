//! The networks on a GPU, software Vulkan included, against the same references as the CPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod gpu_device;
mod reference;

use burn::tensor::Tensor;
use gpu_device::gpu;
use reference::{Reference, assert_close, training};
use triptych::engine::diffusion::Schedule;
use triptych::engine::model::Mounts;
use triptych::engine::ops::self_test;

/// Drivers reorder sums and fuse products.
const FORWARD: f32 = 1e-3;

#[test]
fn self_test_passes() {
    let Some((device, _guard)) = gpu() else { return };
    // A few of the reference model's own shapes: each is a kernel to compile.
    let shapes: Vec<_> = reference::model().layer_shapes().into_iter().step_by(6).collect();
    self_test::run(&device, &shapes).unwrap();
}

#[test]
fn text_encoder() {
    let Some((device, _guard)) = gpu() else { return };
    let (model, r) = (reference::model_on(&device), Reference::open("sd_reference"));
    let prompts: Vec<_> = r.prompts().iter().map(|p| model.tokenizer.encode(p, &[]).unwrap()).collect();
    let out = model.condition(&prompts, &[], &Mounts::none());
    assert_close("text", out, r.tensor("text.last_hidden_state"), FORWARD);
}

#[test]
fn unet() {
    let Some((device, _guard)) = gpu() else { return };
    let (model, r) = (reference::model_on(&device), Reference::open("sd_reference"));
    let context = r.rows("text.last_hidden_state", &[0, 2]).to_device(&device);
    let out = model.unet.forward(
        r.tensor::<4>("unet.x").to_device(&device),
        &r.f32("unet.t"),
        &context.into(),
        &Mounts::none(),
    );
    assert_close("unet", out, r.tensor("unet.out"), FORWARD);
}

#[test]
fn two_training_steps() {
    let Some((device, _guard)) = gpu() else { return };
    let (model, r) = (reference::model_on(&device), Reference::open("train_reference"));
    let schedule = Schedule::new(&model.schedule).unwrap();
    let mut trainee = training::trainee(&model, &r);
    for (i, expected) in r.f32("losses").into_iter().take(2).enumerate() {
        let outcome = trainee.gradients(&model, &schedule, &training::batch(&r, i, &device));
        training::assert_relative(&format!("loss {i}"), outcome.loss.into_scalar(), expected, 1e-3);
        if i == 0 {
            let found: Vec<Tensor<2>> = outcome.gradients.iter().cloned().map(|g| g.expect("a gradient")).collect();
            training::assert_norm("gradients", &trainee, found, &r, "grad0", 1e-2);
        }
        trainee.update(outcome.gradients, training::RATES);
    }
}
