//! Seconds per training step and per sampling step of the starter model on the CPU, as JSON.
//!
//! `cargo bench --profile dev --bench steps [-- NAME…]`; `benches/compare/steps.py` does the same work with PyTorch,
//! diffusers and PEFT and prints both.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

mod median;

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use median::median;
use serde_json::json;
use triptych::engine::adapter::{self, Context, Spot, target};
use triptych::engine::device::{self, read};
use triptych::engine::diffusion::Schedule;
use triptych::engine::field::Settings;
use triptych::engine::model::tokenizer::Word;
use triptych::engine::model::{Branch, Change, Mounts, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::train::step::{Batch, Group, Prior, Rates, Text, Trainee};

const RATES: Rates = Rates { adapter: 1e-3, token: 1e-3, decay: 1e-2, clip: 1.0 };

fn main() {
    triptych::engine::pages::keep();
    let device = device::cpu();
    let begun = Instant::now();
    let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &device).unwrap();
    let load = begun.elapsed().as_secs_f64();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut result = json!({ "load": load });
    for (name, seconds) in WORK {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            result[name] = device::on_workers("bench", device::cores(), || seconds(&model)).unwrap().into();
        }
    }
    println!("{result}");
}

type Seconds = fn(&StableDiffusion) -> f64;

const WORK: &[(&str, Seconds)] = &[
    ("train_b4", |model| train(model, "lora", 4, 0)),
    ("train_b4_prior4", |model| train(model, "lora", 4, 4)),
    ("train_b8", |model| train(model, "lora", 8, 0)),
    ("train_orthogonal_b4_prior4", |model| train(model, "orthogonal", 4, 4)),
    ("sample_b1", |model| sample(model, 1, &Mounts::none())),
    ("sample_b6", |model| sample(model, 6, &Mounts::none())),
    ("sample_b1_three_adapters", |model| sample(model, 1, &three(model))),
    ("sample_b1_three_at_rest", |model| sample(model, 1, &three(model).rest(&model.weights))),
    ("resting", |model| median(|| drop(three(model).rest(&model.weights)))),
];

fn noise(model: &StableDiffusion, shape: [usize; 4]) -> Tensor<4> {
    Tensor::from_data(TensorData::new(Philox::new(1).normal(0, shape.iter().product()), shape), &model.device)
}

fn context(model: &StableDiffusion, rows: usize) -> Tensor<3> {
    let prompt = model.tokenizer.encode("a 3d emoji of robot", &[]).unwrap();
    model.condition(&vec![prompt; rows], &[], &Mounts::none())
}

/// One step on rank 8, with a trained token and `p` pictures of prior preservation.
fn train(model: &StableDiffusion, method: &str, b: usize, p: usize) -> f64 {
    let schedule = Schedule::new(&model.schedule).unwrap();
    let row = adapter::method(method).unwrap();
    let settings = Settings::new(row.fields, []).unwrap();
    let adapter = (row.build)(&settings, &Context { seed: 0, slot: 0, block: 8 }).unwrap();
    let mut trainee = Trainee::new(adapter.into());
    for id in target::select(target::DEFAULT, &model.layers).unwrap() {
        let spot = Spot { layer: model.layer(id), weight: model.weight(id), depth: 0.0, random: Philox::new(0) };
        let tensors = trainee.adapter.begin(&spot).unwrap();
        trainee.add_layer(id, &spot.layer.module(), tensors, &model.device);
    }
    let start = model.text.embed(&[vec![5]]).squeeze_dim(0);
    trainee.tokens = vec![trainee.add("<sks>".into(), start, Group::Token)];
    let word = Word { text: "<sks>".into(), vectors: 1 };
    let prompt = model.tokenizer.encode("a 3d emoji of <sks> robot", &[word]).unwrap();
    let (latents, prior) = (noise(model, [b, 4, 16, 16]), (p > 0).then(|| context(model, p)));
    median(|| {
        let batch = Batch {
            latents: latents.clone(),
            noise: latents.clone(),
            timesteps: vec![500; b],
            text: Text::Prompts(vec![prompt.clone()], vec![0; b]),
            framings: Vec::new(),
            weights: vec![1.0; b],
            mask: None,
            measure: triptych::engine::diffusion::loss::Measure::Square,
            prior: prior.clone().map(|context| Prior { context: context.into(), prompts: None, weight: 2.0 }),
        };
        let outcome = trainee.gradients(model, &schedule, &batch);
        trainee.update(outcome.gradients, RATES);
        read(outcome.loss).unwrap();
    })
}

/// One guided step: the network on `2n` latents.
fn sample(model: &StableDiffusion, n: usize, mounts: &Mounts) -> f64 {
    let (x, context) = (noise(model, [2 * n, 4, 16, 16]), context(model, 2 * n).into());
    median(|| {
        read(model.unet.forward(x.clone(), &vec![500.0; 2 * n], &context, mounts)).unwrap();
    })
}

/// Three rank-8 adapters on the usual layers.
fn three(model: &StableDiffusion) -> Mounts {
    let mut mounts = Mounts::none();
    for id in target::select(target::DEFAULT, &model.layers).unwrap() {
        let layer = model.layer(id);
        let side = |shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(vec![0.01_f32; shape[0] * shape[1]], shape), &model.device)
        };
        for _ in 0..3 {
            let (down, up) = (side([8, layer.input()]), side([layer.out, 8]));
            mounts.add(id, Change::LowRank(Branch { down, up, scale: 1.0 }));
        }
    }
    mounts
}
