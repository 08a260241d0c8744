//! The networks on a GPU, software Vulkan included, against the same references as the CPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod gpu_device;
mod reference;

use std::process::Command;

use burn::tensor::Tensor;
use gpu_device::gpu;
use reference::{Reference, assert_close, training};
use triptych::engine::diffusion::Schedule;
use triptych::engine::error::Kind;
use triptych::engine::event::Event;
use triptych::engine::model::Mounts;
use triptych::engine::ops::self_test;
use triptych::engine::prepare::{self, Drawing};
use triptych::engine::{Error, device, tuning};

/// Drivers reorder sums and fuse products.
const FORWARD: f32 = 1e-3;

#[test]
fn self_test_passes() {
    let Some((device, _guard)) = gpu() else { return };
    // A few of the reference model's own shapes: each is several kernels to compile.
    let shapes: Vec<_> = reference::model().layer_shapes().into_iter().step_by(12).collect();
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

/// What was told, which is one stage and every step of it.
fn steps(told: &[Event]) -> usize {
    let Some(Event::Stage { name, total }) = told.first() else { panic!("{told:?}") };
    assert_eq!(name, prepare::STAGE);
    let expected: Vec<_> = (1..=*total).map(|done| Event::Progress { done, total: *total }).collect();
    assert_eq!(told[1..], expected);
    *total
}

#[test]
fn kernels_are_made_in_steps_between_which_a_newer_request_can_come() {
    let Some((device, _guard)) = gpu() else { return };
    let model = reference::model_on(&device);
    let drawing = Drawing { pictures: 2, size: [8, 8] };
    let mut told = Vec::new();
    let overtaken = prepare::drawing(&model, &drawing, &mut |event| {
        told.push(event);
        if told.len() > 3 { Err(Error::cancelled()) } else { Ok(()) }
    });
    assert_eq!(overtaken.unwrap_err().kind, Kind::Cancelled);
    assert_eq!(told.len(), 4, "{told:?}");

    let mut told = Vec::new();
    prepare::drawing(&model, &drawing, &mut |event| {
        told.push(event);
        Ok(())
    })
    .unwrap();
    // The prompt, each stretch of the denoiser, the decoder.
    assert_eq!(steps(&told), model.unet.stretches().len() + 2);

    let model = reference::model_on(&device::cpu());
    prepare::drawing(&model, &drawing, &mut |event| panic!("{event:?} on the CPU, whose kernels are made")).unwrap();
}

#[test]
fn a_trainings_kernels_are_made_before_its_first_step_and_change_nothing() {
    let Some((device, _guard)) = gpu() else { return };
    let (model, r) = (reference::model_on(&device), Reference::open("train_reference"));
    let schedule = Schedule::new(&model.schedule).unwrap();
    let mut trainee = training::trainee(&model, &r);
    let batch = training::batch(&r, 0, &device);
    let mut told = Vec::new();
    trainee
        .prepare(&model, &batch, &mut |event| {
            told.push(event);
            Ok(())
        })
        .unwrap();
    let once = model.unet.stretches().len();
    assert_eq!(steps(&told), if batch.prior.is_some() { 2 * once } else { once });
    let outcome = trainee.gradients(&model, &schedule, &batch);
    training::assert_relative("loss", outcome.loss.into_scalar(), r.f32("losses")[0], 1e-3);
    trainee.update(outcome.gradients, training::RATES);
}

/// Which kernel is fastest is looked for by the first process that meets a size, and known to the next.
#[test]
fn the_next_process_knows_the_fastest_kernel() {
    /// Says of a process that it is one of the two.
    const TUNES: &str = "TRIPTYCH_TEST_TUNES";
    if std::env::var_os(TUNES).is_some() {
        // cubecl says there when it searches.
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
        let opened = device::open(device::Choice::Gpu(0)).unwrap();
        let x = Tensor::<2>::ones([24, 40], &opened.device);
        assert_eq!(device::read(x.clone().matmul(x.transpose())).unwrap(), [40.0; 24 * 24]);
        println!("kept: {}", tuning::tuned());
        return;
    }
    let Some((_, _guard)) = gpu() else { return };
    let cache = tempfile::tempdir().unwrap();
    let process = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_next_process_knows_the_fastest_kernel", "--nocapture"]).env(TUNES, "1");
        let output = command.env("XDG_CACHE_HOME", cache.path()).env("HOME", cache.path()).output().unwrap();
        let [said, log] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(output.status.success(), "{said}{log}");
        let (_, kept) = said.split_once("kept: ").unwrap();
        (log.matches("Tuning ").count(), kept.lines().next().unwrap().parse::<usize>().unwrap())
    };
    let (searches, kept) = process();
    assert!(searches > 0 && kept > 0, "{searches} searches, {kept} kept");
    assert_eq!(process(), (0, kept));
}
