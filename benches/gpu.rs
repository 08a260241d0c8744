//! The kernels of `shaders/ops`, each beside the same thing put together from burn's operations: milliseconds as JSON.
//!
//! `cargo bench --profile dev --bench gpu -- [cpu|gpu|gpu:N] [small]`. On the CPU the same operations take their CPU way.
//! Sizes are a layer of Stable Diffusion 1.5's (640 wide, 1024 places, two pictures), or with `small` an eighth of it, for
//! drivers that only imitate a GPU. Ceilings are measured in the same run: a product of large matrices, and a copy.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

mod median;

use std::sync::Arc;

use burn::tensor::{Device, FloatDType, Tensor, TensorData, activation};
use median::median;
use serde_json::{Value, json};
use triptych::engine::device::{self, Choice, read};
use triptych::engine::ops::{self, Factors, Spectra, Then};
use triptych::engine::random::Philox;
use triptych::engine::spectrum::{LowRank, Shape, overlap};

const ADAPTERS: usize = 3;
const RANK: usize = 16;
const LAYERS: usize = 192;

struct Bench {
    device: Device,
    /// Width, places, and the side of the ceiling's matrices.
    width: usize,
    rows: usize,
    side: usize,
    layers: usize,
    table: Vec<Value>,
}

fn main() {
    triptych::engine::pages::keep();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let choice: Choice = arguments.iter().find(|a| *a != "small").map_or(Choice::Cpu, |a| a.parse().unwrap());
    let opened = device::open(choice).unwrap();
    let (width, rows, side, layers) =
        if arguments.iter().any(|a| a == "small") { (160, 256, 256, 24) } else { (640, 2048, 2048, LAYERS) };
    let mut bench = Bench { device: opened.device, width, rows, side, layers, table: Vec::new() };
    let run = || {
        bench.ceilings();
        bench.low_rank();
        bench.fuse();
        bench.group_norm();
        bench.orthogonality();
        bench.spectra();
        bench.overlap();
        bench.table
    };
    let table = device::on_workers("bench", device::cores(), run).unwrap();
    println!("{}", json!({ "device": opened.name, "driver": opened.driver, "table": table }));
}

impl Bench {
    fn normal<const D: usize>(&self, seed: u64, shape: [usize; D]) -> Tensor<D> {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = Philox::new(seed).normal(0, n.min(65_521)).into_iter().cycle().take(n).collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// Until the device has done it.
    fn time<const D: usize>(&self, call: impl Fn() -> Tensor<D>) -> f64 {
        median(|| {
            let out = call();
            self.device.sync().unwrap();
            drop(out);
        })
    }

    /// `bytes` that must move, `flops` that must be done.
    fn row(&mut self, name: &str, kernel: f64, composed: Option<f64>, bytes: usize, flops: usize) {
        self.table.push(json!({
            "name": name,
            "kernel_ms": kernel * 1e3,
            "composed_ms": composed.map(|s| s * 1e3),
            "ratio": composed.map(|s| s / kernel),
            "gb_per_s": bytes as f64 / kernel / 1e9,
            "gflop_per_s": flops as f64 / kernel / 1e9,
        }));
        eprintln!("{}", self.table.last().unwrap());
    }

    fn ceilings(&mut self) {
        let n = self.side;
        let (a, b) = (self.normal::<2>(1, [n, n]), self.normal::<2>(2, [n, n]));
        let product = self.time(|| a.clone().matmul(b.clone()));
        self.row("ceiling: product", product, None, 12 * n * n, 2 * n * n * n);
        let x = self.normal::<2>(3, [8 * n, n]);
        let copy = self.time(|| x.clone() + 1.0);
        self.row("ceiling: copy", copy, None, 64 * n * n, 0);
    }

    /// Three adapters of rank 16 beside a layer, forwards; then backwards to the input and all factors.
    fn low_rank(&mut self) {
        let (rows, width, ranks) = (self.rows, self.width, ADAPTERS * RANK);
        let (x, y) = (self.normal::<2>(1, [rows, width]), self.normal::<2>(2, [rows, width]));
        let (down, up) = (self.normal::<2>(3, [ranks, width]), self.normal::<2>(4, [width, ranks]));
        let scales: Arc<[f32]> = (0..ranks).map(|r| 0.5 + (r / RANK) as f32).collect();
        let composed = |x: Tensor<2>, y: Tensor<2>, down: &Tensor<2>, up: &Tensor<2>| {
            (0..ADAPTERS).fold(y, |y, k| {
                let down = down.clone().narrow(0, k * RANK, RANK);
                let up = up.clone().narrow(1, k * RANK, RANK);
                y + x.clone().matmul(down.transpose()).matmul(up.transpose()) * (0.5 + k as f32)
            })
        };
        let ours = self.time(|| ops::low_rank(x.clone(), y.clone(), down.clone(), up.clone(), &scales));
        let theirs = self.time(|| composed(x.clone(), y.clone(), &down, &up));
        let (bytes, flops) = (4 * (3 * rows * width + 2 * ranks * width), 4 * rows * width * ranks);
        self.row("low_rank, 3 adapters", ours, Some(theirs), bytes, flops);

        let backwards = |call: &dyn Fn(Tensor<2>, &Tensor<2>, &Tensor<2>) -> Tensor<2>| {
            let [x, down, up] = [&x, &down, &up].map(|t| t.clone().autodiff().require_grad());
            let gradients = call(x.clone(), &down, &up).sum().backward();
            [x, down, up].map(|t| t.grad(&gradients).unwrap())[0].clone()
        };
        let y = y.clone().autodiff();
        let ours =
            self.time(|| backwards(&|x, down, up| ops::low_rank(x, y.clone(), down.clone(), up.clone(), &scales)));
        let theirs = self.time(|| backwards(&|x, down, up| composed(x, y.clone(), down, up)));
        self.row("low_rank and gradients", ours, Some(theirs), 3 * bytes, 3 * flops);
    }

    /// Three adapters of rank 16 into a weight.
    fn fuse(&mut self) {
        let (width, ranks) = (self.width, ADAPTERS * RANK);
        let weight = self.normal::<2>(1, [width, width]);
        let (up, down) = (self.normal::<2>(2, [width, ranks]), self.normal::<2>(3, [ranks, width]));
        let scales = self.normal::<1>(4, [ranks]);
        let ours = self.time(|| ops::fuse(weight.clone(), up.clone(), down.clone(), scales.clone(), FloatDType::F32));
        let theirs = self.time(|| {
            (0..ADAPTERS).fold(weight.clone(), |weight, k| {
                let up = up.clone().narrow(1, k * RANK, RANK);
                let down = down.clone().narrow(0, k * RANK, RANK);
                weight + up.matmul(down) * (0.5 + k as f32)
            })
        });
        self.row(
            "fuse, 3 adapters",
            ours,
            Some(theirs),
            4 * (2 * width * width + 2 * ranks * width),
            2 * ranks * width * width,
        );
    }

    fn group_norm(&mut self) {
        let (c, side) = (self.width, (self.rows / 2).isqrt());
        let (x, gain) = (self.normal::<4>(1, [2, c, side, side]), self.normal::<1>(2, [c]));
        let composed = |x: Tensor<4>, gain: Tensor<1>| {
            let grouped = x.reshape([2, 32, c / 32 * side * side]);
            let centred = grouped.clone() - grouped.mean_dim(2);
            let deviation = (centred.clone().powi_scalar(2).mean_dim(2) + 1e-5).sqrt();
            let z = (centred / deviation).reshape([2, c, side, side]);
            let gain = gain.reshape([1, c, 1, 1]);
            activation::silu(z * gain.clone() + gain)
        };
        let ours = self.time(|| ops::group_norm(x.clone(), gain.clone(), gain.clone(), 32, 1e-5, Then::Silu));
        let theirs = self.time(|| composed(x.clone(), gain.clone()));
        let bytes = 8 * 2 * c * side * side;
        self.row("group_norm and SiLU", ours, Some(theirs), bytes, 0);
        let backwards = |call: &dyn Fn(Tensor<4>, Tensor<1>) -> Tensor<4>| {
            let x = x.clone().autodiff().require_grad();
            let gradients = call(x.clone(), gain.clone().autodiff()).sum().backward();
            x.grad(&gradients).unwrap()
        };
        let ours = self.time(|| backwards(&|x, gain| ops::group_norm(x, gain.clone(), gain, 32, 1e-5, Then::Silu)));
        let theirs = self.time(|| backwards(&composed));
        self.row("group_norm and SiLU and gradient", ours, Some(theirs), bytes * 5 / 2, 0);
    }

    /// The loss of one side of a layer, as SORSA asks for it.
    fn orthogonality(&mut self) {
        let n = self.width;
        let q = self.normal::<3>(1, [1, n, RANK]);
        let one = Tensor::<2>::eye(RANK, &self.device).unsqueeze::<3>().autodiff();
        let backwards = |call: &dyn Fn(Tensor<3>) -> Tensor<1>| {
            let q = q.clone().autodiff().require_grad();
            q.grad(&call(q.clone()).sum().backward()).unwrap()
        };
        let ours = self.time(|| backwards(&ops::orthogonality));
        let theirs = self.time(|| {
            backwards(&|q| (q.clone().swap_dims(1, 2).matmul(q) - one.clone()).powi_scalar(2).sum().reshape([1]))
        });
        self.row("orthogonality and gradient", ours, Some(theirs), 4 * 3 * n * RANK, 4 * n * RANK * RANK);
    }

    /// Factors of so many layers and adapters in a row.
    fn factors(&self, adapters: usize) -> (Tensor<1>, Arc<[Factors]>) {
        let one = 2 * RANK * self.width;
        let factor = |i| Factors { at: i * one, out: self.width, rank: RANK, input: self.width, scale: 1.0 };
        let layers: Arc<[Factors]> = (0..adapters * self.layers).map(factor).collect();
        (self.normal(1, [layers.len() * one]), layers)
    }

    fn on_host(numbers: &[f32], layers: &[Factors]) -> Vec<LowRank> {
        let layer = |f: &Factors| {
            let (up, down) = numbers[f.at..f.at + f.numbers()].split_at(f.out * f.rank);
            LowRank::new(up, down, Shape { out: f.out, rank: f.rank, input: f.input }, 1.0).unwrap()
        };
        layers.iter().map(layer).collect()
    }

    /// Singular values of all layers; the other way is to read the factors back and decompose them on the CPU.
    fn spectra(&mut self) {
        let (factors, layers) = self.factors(1);
        let ours = self.time(|| ops::spectra(factors.clone(), Arc::clone(&layers)).values);
        let theirs = median(|| {
            let numbers = read(factors.clone()).unwrap();
            for layer in Self::on_host(&numbers, &layers) {
                layer.singular_values().unwrap();
            }
        });
        let n = layers.len();
        let (bytes, flops) = (4 * n * 2 * RANK * self.width, 4 * n * RANK * RANK * self.width);
        self.row(&format!("spectra of {n} layers"), ours, Some(theirs), bytes, flops);
    }

    /// All pairs of four adapters in all layers; the other way is the CPU's, in f64.
    fn overlap(&mut self) {
        let (factors, all) = self.factors(4);
        let n = self.layers;
        let pairs: Arc<[[usize; 2]]> = (0..n)
            .flat_map(|layer| (1..4).flat_map(move |j| (0..j).map(move |i| [i * n + layer, j * n + layer])))
            .collect();
        let ours = self.time(|| {
            let Spectra { values, coefficients } = ops::spectra(factors.clone(), Arc::clone(&all));
            ops::overlap(factors.clone(), Arc::clone(&all), Spectra { values, coefficients }, Arc::clone(&pairs))
        });
        let theirs = median(|| {
            let numbers = read(factors.clone()).unwrap();
            let host = Self::on_host(&numbers, &all);
            let adapter = |i: usize| (0..n).map(|layer| (layer.to_string(), host[i * n + layer].clone())).collect();
            let adapters: Vec<_> = (0..4).map(adapter).collect();
            for j in 1..4 {
                (0..j).for_each(|i| drop(overlap(&adapters[i], &adapters[j]).unwrap()));
            }
        });
        let (bytes, flops) = (4 * factors.dims()[0], 4 * pairs.len() * RANK * RANK * self.width);
        self.row(&format!("overlap of 4 adapters in {n} layers"), ours, Some(theirs), bytes, flops);
    }
}
