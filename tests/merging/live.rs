//! P11: what is heard live is what is written.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use triptych::engine::adapter::mount::{Strength, mount};
use triptych::engine::device::read;
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::merge::Source;
use triptych::engine::model::{Mounts, Part, StableDiffusion};
use triptych::engine::random::Philox;

use crate::builders::*;
use crate::reference::{self, Reference};

/// A random adapter on every layer of a model.
pub fn on_every_layer(model: &StableDiffusion, rank: usize, alpha: f32, seed: u64) -> LoraFile {
    let mut dice = Dice::new(seed);
    let layers = model.layers.iter().map(|l| {
        let down = dice.normal(rank * l.input()).into_iter().map(|x| x / (l.input() as f32).sqrt()).collect();
        let up = dice.normal(l.out * rank).into_iter().map(|x| 0.04 * x).collect();
        let (down_shape, up_shape) = (l.down_shape(rank), l.up_shape(rank));
        (l.module(), LoraLayer { down, up, rank, alpha, down_shape, up_shape })
    });
    LoraFile {
        layers: layers.collect(),
        dtype: Some(Dtype::F32),
        path: format!("every{seed}").into(),
        ..LoraFile::default()
    }
}

/// What the text encoder and then the denoiser say with `sources` mounted.
fn outputs(model: &StableDiffusion, sources: &[Source]) -> [Vec<f32>; 2] {
    let mut mounts = Mounts::none();
    for Source { file, strength } in sources {
        mount(&mut mounts, model, file, strength).unwrap();
    }
    let prompt = model.tokenizer.encode(&Reference::open("sd_reference").prompts()[0], &[]).unwrap();
    let context = model.condition(&[prompt], &[], &mounts);
    let (channels, side) = (model.unet.config.in_channels, 1 << model.unet.config.block_out_channels.len());
    let noise = TensorData::new(Philox::new(5).normal(0, channels * side * side), [1, channels, side, side]);
    let out = model.unet.forward(Tensor::from_data(noise, &model.device), &[321.0], &context.clone().into(), &mounts);
    [read(context).unwrap(), read(out).unwrap()]
}

#[test]
fn the_written_file_is_the_live_stack() {
    let model = reference::model();
    assert!(model.layers.iter().any(|layer| layer.part == Part::Text), "both networks are tested");
    let blocks = BTreeMap::from([("mid_block".to_owned(), 0.0), ("up_blocks.1".to_owned(), 1.5)]);
    let faders = Strength { unet: 0.7, text: 0.4, blocks };
    let sources = [
        at(&on_every_layer(&model, 2, 3.0, 1), 1.0),
        Source { file: on_every_layer(&model, 3, 2.0, 2), strength: faders },
        at(&on_every_layer(&model, 1, 1.0, 3), -0.8),
    ];
    let file = stored(&merged(&sources, &sum()), Dtype::F32);
    let shuffled = [2, 0, 1].map(|i| sources[i].clone());
    let [base, live, again, baked] = [&[][..], &sources, &shuffled, &[at(&file, 1.0)]].map(|s| outputs(&model, s));
    let apart = |a: &[f32], b: &[f32]| {
        let largest = b.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        a.iter().zip(b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs())) / largest
    };
    for (i, part) in ["text", "unet"].into_iter().enumerate() {
        let [file, order, effect] = [&baked, &again, &base].map(|other| apart(&other[i], &live[i]));
        println!("{part}: {file:.1e}; another order {order:.1e}; the adapters move {effect:.1e}");
        assert!(file < 1e-5, "{part}: {file}");
        assert!(effect > 0.01, "{part}: {effect}");
    }
}
