//! How fast a device does what pictures and trainings are made of: each kind of work for a fraction of a second.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use crate::engine::Result;
use crate::engine::device::wait;
use crate::engine::event::{Event, Watch};
use crate::engine::ops::{attend, convolve, low_rank, self_test};
use crate::engine::random::Philox;

/// Of each kind of work, after a first time that makes its kernels.
const BUDGET: Duration = Duration::from_millis(400);
/// Rank of the adapter.
const RANK: usize = 16;

/// What is measured of a device decides how large the work is: it should take longer than asking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Gpu,
    Cpu,
    /// What imitates a GPU on the processor, a hundred times slower than that alone.
    Software,
}

/// Multiplications and additions in a second, or bytes read and written.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    pub name: String,
    /// In `unit`, of the fastest time.
    pub rate: f64,
    pub unit: &'static str,
    /// The fastest of them.
    pub milliseconds: f64,
    /// Why there is no time.
    pub fault: Option<String>,
}

impl Speed {
    fn none(name: String, unit: &'static str, fault: String) -> Self {
        Self { name, rate: 0.0, unit, milliseconds: 0.0, fault: Some(fault) }
    }
}

/// How large each kind of work is.
struct Sizes {
    /// Rows and columns of both factors.
    matrix: usize,
    /// Pictures, channels, height and width.
    picture: [usize; 3],
    /// Pictures, places, width and heads.
    attention: [usize; 4],
    /// Rows, numbers in and out.
    layer: [usize; 3],
    numbers: usize,
}

impl Class {
    fn sizes(self) -> Sizes {
        match self {
            // The first level of Stable Diffusion at 512×512, guided.
            Self::Gpu => Sizes {
                matrix: 4096,
                picture: [2, 320, 64],
                attention: [2, 4096, 320, 8],
                layer: [8192, 320, 2560],
                // 64 MiB: every adapter lets a kernel bind 128.
                numbers: 1 << 24,
            },
            Self::Cpu => Sizes {
                matrix: 1024,
                picture: [4, 64, 32],
                attention: [4, 256, 64, 4],
                layer: [1024, 320, 1280],
                numbers: 1 << 24,
            },
            Self::Software => Sizes {
                matrix: 128,
                picture: [1, 16, 16],
                attention: [1, 64, 32, 2],
                layer: [64, 64, 64],
                numbers: 1 << 20,
            },
        }
    }
}

struct Task {
    name: String,
    /// Operations, or bytes, at a time.
    work: usize,
    unit: &'static str,
    /// What comes of it is kept until it is done: nothing may come to see that nobody wants it.
    run: Box<dyn Fn() -> Vec<Tensor<2>>>,
}

pub fn measure(device: &Device, class: Class, watch: &mut Watch<'_>) -> Result<Vec<Speed>> {
    let tasks = tasks(device, &class.sizes());
    let total = tasks.len();
    watch(Event::Stage { name: "measuring".into(), total })?;
    let measured = tasks.into_iter().zip(1..).map(|(task, done)| {
        let (name, unit) = (task.name.clone(), task.unit);
        // A kernel that cannot be made is a panic in cubecl 0.11; the report is for the machines where that happens.
        let speed = match catch_unwind(AssertUnwindSafe(|| task.measure(device))) {
            Ok(Ok(speed)) => speed,
            Ok(Err(error)) => Speed::none(name, unit, error.what),
            Err(panic) => Speed::none(name, unit, self_test::reason(panic.as_ref()).to_owned()),
        };
        watch(Event::Progress { done, total })?;
        Ok(speed)
    });
    measured.collect()
}

impl Task {
    fn measure(self, device: &Device) -> Result<Speed> {
        let once = || -> Result<Duration> {
            let begun = Instant::now();
            let kept = (self.run)();
            wait(device)?;
            let took = begun.elapsed();
            drop(kept);
            Ok(took)
        };
        once()?;
        let begun = Instant::now();
        let mut fastest = once()?;
        while begun.elapsed() < BUDGET {
            fastest = fastest.min(once()?);
        }
        let seconds = fastest.as_secs_f64().max(1e-9);
        let Self { name, work, unit, .. } = self;
        Ok(Speed { name, rate: work as f64 / seconds / 1e9, unit, milliseconds: seconds * 1e3, fault: None })
    }
}

fn tasks(device: &Device, sizes: &Sizes) -> Vec<Task> {
    let &Sizes { matrix: n, picture: [b, c, side], attention: [a, places, width, heads], layer, numbers } = sizes;
    let [rows, input, out] = layer;
    let operations = |name: String, work: usize, run: Box<dyn Fn() -> Vec<Tensor<2>>>| Task {
        name,
        work: 2 * work,
        unit: "GFLOP/s",
        run,
    };
    let [left, right] = [1, 2].map(|seed| fill([n, n], seed, device));
    let x = fill([b * c, side * side], 3, device).reshape([b, c, side, side]);
    let weight = fill([c, c * 9], 4, device).reshape([c, c, 3, 3]);
    let [q, k, v] = [5, 6, 7].map(|seed| fill([a * places, width], seed, device).reshape([a, places, width]));
    let flow = fill([rows, input], 8, device);
    let weight_oi = fill([out, input], 9, device);
    let [down, up] = [([RANK, input], 10), ([out, RANK], 11)].map(|(shape, seed)| fill(shape, seed, device));
    let long = fill([1, numbers], 12, device);
    let branch = RANK * (input + out);
    let scales: Arc<[f32]> = [0.5; RANK].into();
    vec![
        operations(
            format!("matrix product, {n}×{n}×{n}"),
            n * n * n,
            Box::new(move || vec![left.clone().matmul(right.clone())]),
        ),
        operations(
            format!("3×3 convolution, {b}×{c}×{side}×{side}"),
            b * side * side * c * c * 9,
            Box::new(move || vec![flat(convolve(x.clone(), weight.clone(), None, 1, 1))]),
        ),
        operations(
            format!("attention, {a}×{places} of {width} in {heads} heads"),
            2 * a * places * places * width,
            Box::new(move || vec![flat(attend(q.clone(), k.clone(), v.clone(), heads))]),
        ),
        operations(
            format!("training an adapted layer, {rows}×{input} → {out}"),
            // Forwards and back to its input; the branch's factors learn too.
            rows * (2 * input * out + 3 * branch),
            Box::new(move || {
                let leaf = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
                let [x, down, up] = [&flow, &down, &up].map(leaf);
                let y = x.clone().matmul(weight_oi.clone().transpose());
                let gradients = low_rank(x.clone(), y, down.clone(), up.clone(), &scales).sum().backward();
                [x, down, up].iter().filter_map(|leaf| leaf.grad(&gradients)).collect()
            }),
        ),
        Task {
            name: format!("copy, scaled, {} MiB", (numbers * size_of::<f32>()) >> 20),
            work: 2 * numbers * size_of::<f32>(),
            unit: "GB/s",
            run: Box::new(move || vec![long.clone() * 0.5]),
        },
    ]
}

fn fill(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
    let n = shape[0] * shape[1];
    // A prime number of values, repeated: drawing them all would take longer than the work.
    let values: Vec<f32> = Philox::new(seed).normal(0, n.min(4093)).into_iter().cycle().take(n).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let n = tensor.shape().num_elements();
    tensor.reshape([1, n])
}
