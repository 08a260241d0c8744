//! Seconds and memory of Stable Diffusion 1.5's real shapes, as JSON.
//!
//! `cargo bench --profile dev --bench full_size -- MODEL PRECISION WHAT [cpu|gpu|gpu:N]` with a model of
//! `benches/compare/make_sd15.py`; `benches/compare/full_size.py` does the same work with PyTorch, diffusers and PEFT on
//! the CPU and prints both. WHAT is `load`, `step` (the denoiser once at 512×512), `train` (a LoRA step on one picture,
//! prior preservation off), `prior` (with it) or `decode`. Each is measured in a process of its own, as the peak of memory
//! is a process's. With `SIDE=32` latents are 32 on a side instead of 64, with `RECOMPUTE=0` activations are kept.
//!
//! With `CUBECL_DEBUG_OPTION=profile CUBECL_DEBUG_LOG=FILE` cubecl times every kernel of a GPU;
//! `python benches/compare/kernel_table.py FILE` adds them up.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

mod peak;

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use peak::{Peak, anonymous};
use serde_json::json;
use triptych::engine::adapter::{self, Context, Spot, target};
use triptych::engine::device::{self, Choice, read};
use triptych::engine::diffusion::Schedule;
use triptych::engine::diffusion::loss::Measure;
use triptych::engine::field::Settings;
use triptych::engine::model::{Mounts, Precision, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::train::step::{Batch, Prior, Rates, Text, Trainee};

const RATES: Rates = Rates { adapter: 1e-4, token: 1e-4, decay: 1e-2, clip: 1.0 };

fn main() {
    triptych::engine::pages::keep();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, precision, what, device @ ..] = &arguments[..] else {
        println!("full_size MODEL PRECISION load|step|train|prior|decode [cpu|gpu|gpu:N]");
        return;
    };
    let choice: Choice = device.first().map_or(Choice::Cpu, |device| device.parse().unwrap());
    let device = device::open(choice).unwrap().device;
    let idle = anonymous();
    let (peak, start) = (Peak::watch(), Instant::now());
    let folder = StableDiffusion::folder(folder);
    let model = StableDiffusion::open_as(&folder, &device, precision.parse::<Precision>().unwrap()).unwrap();
    let load = start.elapsed().as_secs_f64();
    let (held, loading) = (anonymous() - idle, peak.read() - idle);
    let peak = Peak::watch();
    let seconds: Vec<f64> = match what.as_str() {
        "step" => (0..2).map(|_| denoise(&model)).collect(),
        "train" => train(&model, 0),
        "prior" => train(&model, 1),
        "decode" => vec![decode(&model)],
        _ => Vec::new(),
    };
    let [held, loading, peak] = [held, loading, peak.read() - idle].map(|bytes| bytes / 1_000_000);
    println!(
        "{}",
        json!({ "what": what, "load_s": load, "held_mb": held, "load_peak_mb": loading, "peak_mb": peak, "seconds": seconds })
    );
}

fn latents() -> [usize; 4] {
    let side = std::env::var("SIDE").map_or(64, |side| side.parse().unwrap());
    [1, 4, side, side]
}

fn noise(model: &StableDiffusion, shape: [usize; 4]) -> Tensor<4> {
    Tensor::from_data(TensorData::new(Philox::new(1).normal(0, shape.iter().product()), shape), &model.device)
}

fn context(model: &StableDiffusion) -> Tensor<3> {
    model.condition(&[model.tokenizer.encode("a photo of a robot", &[]).unwrap()], &[], &Mounts::none())
}

fn timed(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

fn denoise(model: &StableDiffusion) -> f64 {
    let (x, context) = (noise(model, latents()), context(model));
    timed(|| {
        read(model.unet.forward(x, &[500.0], &context.into(), &Mounts::none())).unwrap();
    })
}

fn decode(model: &StableDiffusion) -> f64 {
    let x = noise(model, latents());
    timed(|| {
        read(model.vae.decode(x)).unwrap();
    })
}

/// Two steps on rank 16, on one picture and as many of prior preservation.
fn train(model: &StableDiffusion, prior: usize) -> Vec<f64> {
    let schedule = Schedule::new(&model.schedule).unwrap();
    let row = adapter::method("lora").unwrap();
    let settings = Settings::new(row.fields, [("rank", "16")]).unwrap();
    let adapter = (row.build)(&settings, &Context { seed: 0, slot: 0, block: 16 }).unwrap();
    let mut trainee = Trainee::new(adapter.into());
    trainee.recompute = std::env::var("RECOMPUTE").map_or(true, |on| on == "1");
    for id in target::select(target::DEFAULT, &model.layers).unwrap() {
        let spot = Spot { layer: model.layer(id), weight: model.weight(id), depth: 0.0, random: Philox::new(0) };
        let tensors = trainee.adapter.begin(&spot).unwrap();
        trainee.add_layer(id, &spot.layer.module(), tensors, &model.device);
    }
    let step = |trainee: &mut Trainee| {
        let batch = Batch {
            latents: noise(model, latents()),
            noise: noise(model, latents()),
            timesteps: vec![500],
            text: Text::Context(context(model).into()),
            framings: Vec::new(),
            weights: vec![1.0],
            mask: None,
            measure: Measure::Square,
            prior: (prior > 0).then(|| Prior { context: context(model).into(), prompts: None, weight: 2.0 }),
        };
        let outcome = trainee.gradients(model, &schedule, &batch);
        trainee.update(outcome.gradients, RATES);
        read(outcome.loss).unwrap();
    };
    (0..2).map(|_| timed(|| step(&mut trainee))).collect()
}
