//! The networks on a GPU, software Vulkan included, against the same references as the CPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod gpu_device;
mod reference;

use std::collections::BTreeMap;
use std::process::Command;

use burn::tensor::{Tensor, TensorData};
use gpu_device::gpu;
use reference::{Reference, assert_close, training};
use triptych::engine::device::{cpu, read};
use triptych::engine::diffusion::Schedule;
use triptych::engine::error::Kind;
use triptych::engine::event::Event;
use triptych::engine::model::Mounts;
use triptych::engine::ops::{Factors, WIDEST, self_test, spectra};
use triptych::engine::prepare::{self, Drawing};
use triptych::engine::random::Philox;
use triptych::engine::spectrum::{LowRank, Shape, overlaps};
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

/// `up` and `down` of a layer, and how many directions are told apart: a deficient pair writes its first direction twice.
fn factors(seed: u64, out: usize, rank: usize, input: usize, deficient: bool) -> [Vec<f32>; 2] {
    let random = Philox::new(seed);
    let (mut up, down) = (random.normal(0, out * rank), random.normal(1, rank * input));
    if deficient {
        up.chunks_exact_mut(rank).for_each(|row| row[rank - 1] = row[0]);
    }
    [up, down]
}

#[test]
fn directions_of_many_layers_are_those_of_their_products() {
    let Some((device, _guard)) = gpu() else { return };
    // The widest that a GPU takes, more directions than places, and one direction twice.
    let shapes = [(300, WIDEST, 200, false), (7, 6, 90, false), (5, 5, 30, false), (33, 4, 33, true)];
    let (mut numbers, mut layers) = (Vec::new(), Vec::new());
    for (seed, &(out, rank, input, deficient)) in (0..).zip(&shapes) {
        layers.push(Factors { at: numbers.len(), out, rank, input, scale: -0.3 });
        numbers.extend(factors(seed, out, rank, input, deficient).concat());
    }
    let n = numbers.len();
    let on_cpu = Tensor::<1>::from_data(TensorData::new(numbers, [n]), &cpu());
    for device in [cpu(), device] {
        let found = spectra(on_cpu.clone().to_device(&device), layers.clone().into());
        let [_, widest] = found.values.dims();
        let (all, coefficients) = (found.values.to_device(&cpu()), found.coefficients.to_device(&cpu()));
        for (i, &Factors { at, out, rank, input, scale }) in layers.iter().enumerate() {
            let up = on_cpu.clone().narrow(0, at, out * rank).reshape([out, rank]);
            let down = on_cpu.clone().narrow(0, at + out * rank, rank * input).reshape([rank, input]);
            let of = |side: usize| {
                let both = coefficients.clone().narrow(0, i, 1).narrow(1, side, 1);
                both.reshape([widest, widest]).narrow(1, 0, rank)
            };
            // Directions in rows.
            let (u, v) = (of(0).matmul(up.clone().transpose()), of(1).matmul(down.clone()));
            let values = all.clone().narrow(0, i, 1);
            let product = read((u.clone().transpose() * values.clone()).matmul(v.clone())).unwrap();
            let expected = read(up.matmul(down) * scale).unwrap();
            let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            assert!(product.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3 * largest), "layer {i}");
            let values = read(values).unwrap();
            let strong = values.iter().filter(|&&s| s > 1e-3 * values[0]).count();
            assert_eq!(strong, if shapes[i].3 { rank - 1 } else { rank.min(out).min(input) }, "layer {i}");
            for directions in [u, v] {
                let gram = read(directions.clone().matmul(directions.transpose())).unwrap();
                for (place, g) in gram.into_iter().enumerate() {
                    let one = place / widest == place % widest && place / widest < strong;
                    assert!((g - f32::from(u8::from(one))).abs() < 2e-3, "layer {i}: {g} at {place}");
                }
            }
        }
    }
}

#[test]
fn pairs_of_adapters_overlap_as_on_the_cpu() {
    let Some((device, _guard)) = gpu() else { return };
    let adapter = |seed: u64, rank: usize, scale: f64, deficient: bool| -> BTreeMap<String, LowRank> {
        let layer = |(i, (out, input)): (u64, (usize, usize))| {
            let [up, down] = factors(10 * seed + i, out, rank, input, deficient);
            (format!("layer {i}"), LowRank::new(&up, &down, Shape { out, rank, input }, scale).unwrap())
        };
        (0..).zip([(24, 40), (64, 20), (18, 18)]).map(layer).collect()
    };
    let mut fewer = adapter(3, 2, 1.0, false);
    fewer.remove("layer 1");
    let adapters = [adapter(1, 4, 1.0, false), adapter(1, 4, -0.5, false), adapter(2, 6, 2.0, true), fewer];
    let (expected, found) = (overlaps(&adapters, &cpu()).unwrap(), overlaps(&adapters, &device).unwrap());
    assert_eq!((found.len(), found.len()), (6, expected.len()));
    for (i, (a, b)) in expected.iter().zip(&found).enumerate() {
        assert_eq!((a.verdict, a.layers.len()), (b.verdict, b.layers.len()), "pair {i}");
        let close = |what: &str, a: f64, b: f64| assert!((a - b).abs() < 1e-3, "pair {i}, {what}: {a} on the CPU, {b}");
        close("cosine", a.cosine, b.cosine);
        for (a, b) in a.layers.iter().zip(&b.layers) {
            assert_eq!(a.layer, b.layer);
            close("cosine", a.cosine, b.cosine);
            close("product", a.product, b.product);
            close("read sides", a.read.observed, b.read.observed);
            close("write sides", a.write.observed, b.write.observed);
            close("chance", a.write.chance, b.write.chance);
        }
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
