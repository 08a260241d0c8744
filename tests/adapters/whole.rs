//! The reference model with an adapter on every layer of its denoiser and its text encoder.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use triptych::engine::adapter::mount::{Strength, mount};
use triptych::engine::adapter::{Adapter, Method, Spot, Start, Stored};
use triptych::engine::device::read;
use triptych::engine::io::lora_file::{Difference, LoraFile, LoraLayer, Matrix};
use triptych::engine::io::{Dtype, metadata};
use triptych::engine::model::mount::Place;
use triptych::engine::model::tokenizer::Word;
use triptych::engine::model::{LayerId, Mounts, Signal, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::train::step::{Batch, Group, Text, TrainedLayer, Trainee};

use crate::case::{flat, moved};
use crate::reference::Reference;
use crate::{settings, tensor};

/// Before training.
pub fn begun(model: &StableDiffusion, adapter: &Arc<dyn Adapter>) -> Trainee {
    on_every_layer(model, adapter, 1.0, |_, starts| starts)
}

/// As training might leave it: everything that trains has moved.
pub fn trained(model: &StableDiffusion, adapter: &Arc<dyn Adapter>, seed: u64) -> Trainee {
    on_every_layer(model, adapter, 1.0, |id, starts| moved(starts, 1000 * seed + id.0 as u64))
}

/// The same as if every layer were the first.
pub fn trained_at_depth_0(model: &StableDiffusion, adapter: &Arc<dyn Adapter>, seed: u64) -> Trainee {
    on_every_layer(model, adapter, 0.0, |id, starts| moved(starts, 1000 * seed + id.0 as u64))
}

fn on_every_layer(
    model: &StableDiffusion,
    adapter: &Arc<dyn Adapter>,
    deepest: f32,
    to: impl Fn(LayerId, Vec<Start>) -> Vec<Start>,
) -> Trainee {
    let mut trainee = Trainee::new(Arc::clone(adapter));
    for (id, layer) in model.layer_ids() {
        let depth = deepest * id.0 as f32 / model.layers.len() as f32;
        let spot = Spot { layer, weight: model.weight(id), depth, random: Philox::new(id.0 as u64) };
        trainee.add_layer(id, &layer.module(), to(id, adapter.begin(&spot).unwrap()), &model.device);
    }
    trainee
}

/// With a trigger token of one vector.
pub fn with_token(model: &StableDiffusion, mut trainee: Trainee) -> Trainee {
    let width = model.text.config.hidden_size;
    let start = tensor(&Philox::new(8).normal(0, width), [1, width]) * 0.02;
    trainee.tokens = vec![trainee.add("<sks>".into(), start, Group::Token)];
    trainee
}

/// What the text encoder and then the denoiser say.
pub fn outputs(model: &StableDiffusion, mounts: &Mounts) -> [Vec<f32>; 2] {
    let prompt = &Reference::open("sd_reference").prompts()[0];
    let prompt = model.tokenizer.encode(prompt, &[]).unwrap();
    let context = model.condition(&[prompt], &[], mounts);
    let out = model.unet.forward(latents(model, 5), &[321.0], &context.clone().into(), mounts);
    [read(context).unwrap(), read(out).unwrap()]
}

/// Latents of two by two on the lowest level: attention over a single place would have nothing to learn.
pub fn latents(model: &StableDiffusion, seed: u64) -> Tensor<4> {
    let (channels, side) = (model.unet.config.in_channels, 1 << model.unet.config.block_out_channels.len());
    tensor(&Philox::new(seed).normal(0, channels * side * side), [1, channels, side, side])
}

pub fn batch(model: &StableDiffusion) -> Batch {
    let word = Word { text: "<sks>".into(), vectors: 1 };
    let prompt = model.tokenizer.encode("a photo of <sks> cat", &[word]).unwrap();
    Batch {
        latents: latents(model, 6),
        noise: latents(model, 7),
        timesteps: vec![321],
        text: Text::Prompts(vec![prompt], vec![0]),
        framings: Vec::new(),
        weights: vec![1.0],
        mask: None,
        measure: triptych::engine::diffusion::loss::Measure::Square,
        prior: None,
    }
}

/// What each layer leaves for a file.
pub fn stored<'a>(
    model: &'a StableDiffusion,
    trainee: &'a Trainee,
) -> impl Iterator<Item = (&'a TrainedLayer, Vec<Tensor<2>>, Stored)> {
    let values = trainee.values();
    trainee.layers.iter().map(move |layer| {
        let t = Trainee::tensors(layer, &values);
        let stored = trainee.adapter.store(&t, model.weight(layer.id)).unwrap();
        (layer, t, stored)
    })
}

/// The file a run would write.
pub fn file(model: &StableDiffusion, row: &Method, changes: &[(&str, &str)], trainee: &Trainee) -> LoraFile {
    let mut file = LoraFile { dtype: Some(Dtype::F32), ..LoraFile::default() };
    for (trained, t, stored) in stored(model, trainee) {
        let (layer, module) = (model.layer(trained.id), model.layer(trained.id).module());
        match stored {
            Stored::Lora { down, up, rank, alpha, bias } => {
                let (down_shape, up_shape) = (layer.down_shape(rank), layer.up_shape(rank));
                file.layers.insert(module.clone(), LoraLayer { down, up, rank, alpha, down_shape, up_shape });
                if bias.is_some() {
                    file.differences.insert(module, Difference { bias, ..Difference::default() });
                }
            }
            Stored::Difference(weight) => {
                let shape = layer.down_shape(layer.out);
                file.differences.insert(module, Difference { weight, shape, bias: None });
            }
            Stored::Own => {
                let matrix = |t: &Tensor<2>| Matrix { values: read(t.clone()).unwrap(), shape: t.dims() };
                let parts: BTreeMap<_, _> =
                    trained.names.iter().zip(&t).map(|(&name, t)| (name.to_owned(), matrix(t))).collect();
                file.own.insert(module, parts);
            }
            Stored::Nothing => {}
        }
    }
    if let Some(parts) = file.own.values().next() {
        let names = parts.keys().cloned().collect::<Vec<_>>().join(",");
        file.metadata.insert(metadata::OWN.into(), names);
    }
    let recipe = serde_json::json!({ "method": settings(row, changes) });
    file.metadata.insert(metadata::METHOD.into(), row.name.into());
    file.metadata.insert(metadata::RECIPE.into(), recipe.to_string());
    file
}

/// Written and read again.
pub fn through_disk(file: &LoraFile) -> LoraFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file.save(&path).unwrap();
    LoraFile::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// As it stands on disk.
pub fn bytes(file: &LoraFile) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file.save(&path).unwrap();
    std::fs::read(&path).unwrap()
}

pub fn mounted(model: &StableDiffusion, file: &LoraFile, strength: &Strength) -> Mounts {
    let mut mounts = Mounts::none();
    mount(&mut mounts, model, file, strength).unwrap_or_else(|e| panic!("{e}"));
    mounts
}

/// What is added to one layer's answer to three random rows.
pub fn heard(model: &StableDiffusion, mounts: &Mounts, id: LayerId) -> Vec<f32> {
    let (input, weight) = (model.layer(id).input(), model.weight(id));
    let x = Signal::Tokens(tensor(&Philox::new(9).normal(0, 3 * input), [3, input]));
    let place = Place { id, weight_oi: weight.oi.clone(), bias: weight.bias.as_ref(), shape: None };
    let [with, without] = [mounts, &Mounts::none()].map(|mounts| flat(mounts.run(&place, &x)));
    read(with - without).unwrap()
}
