//! What a step is made of, one piece at a time, on the CPU: median seconds, as JSON.
//!
//! `cargo bench --profile dev --bench kernels`; `benches/compare/kernels.py` does the same work with PyTorch and diffusers
//! and prints both.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

mod median;

use std::hint::black_box;

use burn::tensor::{Tensor, TensorData};
use median::median;
use serde_json::{Value, json};
use triptych::engine::device::{self, cpu};
use triptych::engine::model::StableDiffusion;
use triptych::engine::ops::{self, Step, Then};
use triptych::engine::random::Philox;
use triptych::engine::spectrum::{LowRank, Shape};

/// Batch, channels before and behind, height and width: the starter's levels, Stable Diffusion 1.5's, its decoder's last.
const CONVOLUTIONS: [[usize; 4]; 8] = [
    [8, 64, 64, 16],
    [8, 96, 96, 8],
    [8, 128, 128, 4],
    [1, 320, 320, 64],
    [1, 640, 640, 32],
    [1, 1280, 1280, 16],
    [1, 1280, 1280, 8],
    [1, 128, 128, 256],
];
/// Rows, inner, columns.
const PRODUCTS: [[usize; 3]; 4] = [[2048, 64, 512], [512, 96, 768], [4096, 320, 320], [1024, 1024, 1024]];
/// Batch, heads, places, width of a head.
const ATTENTIONS: [[usize; 4]; 2] = [[8, 4, 256, 16], [1, 8, 4096, 40]];

fn main() {
    triptych::engine::pages::keep();
    let mut seconds = json!({});
    device::on_workers("bench", device::cores(), || {
        products(&mut seconds);
        convolutions(&mut seconds);
        attentions(&mut seconds);
        rest(&mut seconds);
        model(&mut seconds);
        spectra(&mut seconds);
    })
    .unwrap();
    println!("{seconds}");
}

fn products(seconds: &mut Value) {
    for [rows, inner, columns] in PRODUCTS {
        let (a, b) = (normal([rows, inner]), normal([columns, inner]));
        seconds[format!("product {rows}x{inner}x{columns}")] =
            median(|| run(a.clone().matmul(b.clone().transpose()))).into();
    }
}

fn convolutions(seconds: &mut Value) {
    for [batch, input, out, side] in CONVOLUTIONS {
        let name = format!("{batch}x{input}-{out} at {side}");
        let (x, w) = (normal([batch, input, side, side]), normal([out, input, 3, 3]));
        let forward = median(|| run(ops::convolve(x.clone(), w.clone(), None, 1, 1)));
        seconds[format!("convolution {name}")] = forward.into();
        let w = w.autodiff();
        let both = median(|| gradient(x.clone(), |x| ops::convolve(x, w.clone(), None, 1, 1)));
        seconds[format!("convolution and gradient {name}")] = both.into();
    }
}

fn attentions(seconds: &mut Value) {
    for [batch, heads, places, width] in ATTENTIONS {
        let x = normal([batch, places, heads * width]);
        let attend = |x: Tensor<3>| ops::attend(x.clone(), x.clone(), x, heads);
        let name = format!("{batch}x{heads}x{places}x{width}");
        seconds[format!("attention {name}")] = median(|| run(attend(x.clone()))).into();
        seconds[format!("attention and gradient {name}")] = median(|| gradient(x.clone(), attend)).into();
    }
}

fn rest(seconds: &mut Value) {
    let (x, channel) = (normal([8, 64, 16, 16]), normal([64]));
    let norm = |x: Tensor<4>, channel: Tensor<1>| ops::group_norm(x, channel.clone(), channel, 32, 1e-5, Then::Silu);
    seconds["group norm and SiLU"] = median(|| run(norm(x.clone(), channel.clone()))).into();
    let tracked = channel.clone().autodiff();
    seconds["group norm and SiLU and gradient"] = median(|| gradient(x.clone(), |x| norm(x, tracked.clone()))).into();
    let gate = normal([8, 256, 512]);
    seconds["gate and gradient"] = median(|| gradient(gate.clone(), ops::geglu)).into();
    let [value, mean, slope] = [(); 3].map(|()| normal([1, 170_112]));
    let square = slope.clone() * slope.clone();
    let step = Step { rate: 1e-3, decay: 1e-2, number: 3 };
    let adamw = || {
        let [value, ..] = ops::adamw(value.clone(), mean.clone(), square.clone(), slope.clone(), step);
        run(value);
    };
    seconds["AdamW"] = median(adamw).into();
}

fn model(seconds: &mut Value) {
    let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &cpu()).unwrap();
    let latents = normal([1, 4, 16, 16]);
    seconds["decoding"] = median(|| run(model.vae.decode(latents.clone()))).into();
    let ids = model.tokenizer.encode("a 3d emoji of robot", &[]).unwrap().ids;
    seconds["embedding"] = median(|| run(model.text.embed(std::slice::from_ref(&ids)))).into();
}

/// As many layers as Stable Diffusion 1.5 has to adapt.
fn spectra(seconds: &mut Value) {
    let draw = |draw: u32, n: usize| Philox::new(7).normal(draw, n);
    let layers: Vec<LowRank> = (0..192)
        .map(|i: u32| {
            let (out, input) = ([320, 640, 1280][i as usize % 3], [320, 640, 1280][i as usize / 3 % 3]);
            let (up, down) = (draw(2 * i, out * 16), draw(2 * i + 1, input * 16));
            LowRank::new(&up, &down, Shape { out, rank: 16, input }, 1.0).unwrap()
        })
        .collect();
    let spectra = || layers.iter().for_each(|layer| drop(black_box(layer.singular_values().unwrap())));
    seconds["192 spectra of rank 16"] = median(spectra).into();
}

fn normal<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let n = shape.iter().product();
    Tensor::from_data(TensorData::new(Philox::new(1).normal(0, n), shape), &cpu())
}

/// The CPU has computed it by now: nothing waits to be read.
fn run<const D: usize>(x: Tensor<D>) {
    black_box(x);
}

/// Forwards and backwards, to `x` alone.
fn gradient<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<D>) -> Tensor<D>) {
    let x = x.autodiff().require_grad();
    let gradients = f(x.clone()).sum().backward();
    run(x.grad(&gradients).unwrap());
}
