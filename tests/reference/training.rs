//! The training reference: ten AdamW steps with every random number given.

use burn::tensor::{Device, Tensor};
use triptych::engine::adapter::{self, Context, Start};
use triptych::engine::field::Settings;
use triptych::engine::model::{Layer, StableDiffusion};
use triptych::engine::train::step::{Batch, Rates, Text, Trainee};

use super::Reference;

/// As the reference's `metadata.optimizer` says.
pub const RATES: Rates = Rates { adapter: 1e-3, token: 0.0, decay: 1e-2, clip: 0.0 };

/// The reference's LoRA before its first step; parameters are named by PEFT's paths.
pub fn trainee(model: &StableDiffusion, r: &Reference) -> Trainee {
    let of = |layer: &Layer, factor: &str| format!("init.{}.{factor}.weight", layer.path);
    let adapted = || model.layer_ids().filter(|(_, layer)| r.names().any(|name| *name == of(layer, "lora_A")));
    let (_, first) = adapted().next().expect("a layer");
    // Alpha is the rank.
    let row = adapter::method("lora").expect("LoRA is a method");
    let rank = r.shape(&of(first, "lora_A"))[0].to_string();
    let settings = Settings::new(row.fields, [("rank", rank.as_str())]).expect("its rank is one");
    let mut trainee =
        Trainee::new((row.build)(&settings, &Context { seed: 0, slot: 0, block: 1 }).expect("LoRA builds").into());
    for (id, layer) in adapted() {
        let start = |name, factor: &str| {
            let name_in_file = of(layer, factor);
            let [rows, columns] = r.shape(&name_in_file)[..] else { panic!("{name_in_file} is no matrix") };
            Start::trained(name, [rows, columns], r.f32(&name_in_file))
        };
        let tensors = vec![start("lora_down", "lora_A"), start("lora_up", "lora_B")];
        trainee.add_layer(id, &layer.path, tensors, &model.device);
    }
    trainee
}

pub fn batch(r: &Reference, step: usize, device: &Device) -> Batch {
    let timesteps: Vec<usize> = r.f32(&format!("timesteps.{step}")).iter().map(|&t| t as usize).collect();
    Batch {
        latents: r.tensor::<4>("latents").to_device(device),
        noise: r.tensor::<4>(&format!("noise.{step}")).to_device(device),
        framings: Vec::new(),
        weights: vec![1.0; timesteps.len()],
        mask: None,
        measure: triptych::engine::diffusion::loss::Measure::Square,
        timesteps,
        text: Text::Context(r.tensor::<3>("context").to_device(device).into()),
        prior: None,
    }
}

pub fn assert_relative(part: &str, found: f32, expected: f32, tolerance: f32) {
    let difference = (found - expected).abs() / expected.abs();
    assert!(difference <= tolerance, "{part}: {found} instead of {expected} ({difference:e} relative)");
}

/// Relative norm of the difference over all tensors together.
pub fn assert_norm(part: &str, trainee: &Trainee, found: Vec<Tensor<2>>, r: &Reference, prefix: &str, tolerance: f64) {
    let (mut difference, mut norm, mut count) = (0.0, 0.0, 0);
    for (parameter, found) in trainee.parameters.iter().zip(found) {
        let (path, side) = parameter.name.rsplit_once('.').expect("layer and side");
        let factor = if side == "lora_down" { "lora_A" } else { "lora_B" };
        let expected = r.f32(&format!("{prefix}.{path}.{factor}.weight"));
        let found = found.into_data().try_to_vec::<f32>().expect("f32");
        assert_eq!(found.len(), expected.len(), "{}", parameter.name);
        difference += found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        norm += expected.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>();
        count += 1;
    }
    let stored = r.names().filter(|name| name.starts_with(&format!("{prefix}."))).count();
    assert_eq!(count, stored, "{part}: every tensor of the reference is compared");
    let relative = (difference / norm).sqrt();
    println!("{part}: {relative:.2e} relative norm over {count} tensors");
    assert!(relative <= tolerance, "{part}: {relative:e}");
}
