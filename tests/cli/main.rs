//! The command line from outside: every command, what it prints, writes and returns.

#[path = "../command/mod.rs"]
mod command;
mod commands;
mod convert;
mod doctor;
mod inspect;
mod merge;
mod methods;
mod overlap;
mod project;
mod queue;
mod sample;
mod sdxl;
mod start;
mod train;
mod training;

use command::{Desk, Done, TRAIN};
use triptych::engine::io::lora_file::LoraLayer;

/// A small picture, quickly made.
const SAMPLE: &str = "sample --steps 2 --prompt 'a 3d emoji of robot'";

/// Trains `<word>` for three steps into `word.safetensors`.
fn train(desk: &Desk, word: &str, more: &str) -> Done {
    desk.run(&format!("{TRAIN} --steps 3 --token <{word}> --out {word}.safetensors {more}"))
}

/// `ΔW`, dense.
fn delta(layer: &LoraLayer) -> Vec<f32> {
    let width = layer.input();
    let column = |up: &[f32], i: usize| -> f32 {
        up.iter().enumerate().map(|(k, x)| x * layer.down[k * width + i]).sum::<f32>() * layer.scale()
    };
    layer.up.chunks(layer.rank).flat_map(|up| (0..width).map(|i| column(up, i)).collect::<Vec<_>>()).collect()
}

/// Largest difference as a share of the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().chain(b).fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn pixels(desk: &Desk, name: &str) -> Vec<u8> {
    image::open(desk.path(name)).unwrap_or_else(|e| panic!("{name}: {e}")).into_rgb8().into_raw()
}
