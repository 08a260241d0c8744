//! The training reference: ten AdamW steps with every random number given.

use burn::tensor::{Device, Tensor};
use triptych::engine::adapter::Factors;
use triptych::engine::model::StableDiffusion;
use triptych::engine::train::step::{Batch, Rates, Text, Trainee};

use super::Reference;

/// As the reference's `metadata.optimizer` says.
pub const RATES: Rates = Rates { adapter: 1e-3, token: 0.0, decay: 1e-2, clip: 0.0 };

/// The reference's LoRA before its first step; parameters are named by PEFT's keys.
pub fn trainee(model: &StableDiffusion, r: &Reference) -> Trainee {
    let mut trainee = Trainee { parameters: Vec::new(), layers: Vec::new(), token: None };
    for (id, layer) in model.layer_ids() {
        let down = format!("init.{}.lora_A.weight", layer.path);
        if !r.names().any(|name| *name == down) {
            continue;
        }
        let rank = r.shape(&down)[0];
        let up = r.f32(&format!("init.{}.lora_B.weight", layer.path));
        let factors = Factors { down: r.f32(&down), up, rank, alpha: rank as f32, train_down: true };
        trainee.add_layer(id, &layer.path, factors, model);
    }
    trainee
}

pub fn batch(r: &Reference, step: usize, device: &Device) -> Batch {
    let timesteps: Vec<usize> = r.f32(&format!("timesteps.{step}")).iter().map(|&t| t as usize).collect();
    Batch {
        latents: r.tensor::<4>("latents").to_device(device),
        noise: r.tensor::<4>(&format!("noise.{step}")).to_device(device),
        weights: vec![1.0; timesteps.len()],
        timesteps,
        text: Text::Context(r.tensor::<3>("context").to_device(device)),
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
