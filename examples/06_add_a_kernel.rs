//! A kernel of your own: WGSL on a GPU, the same formula in plain tensor operations elsewhere.
//!
//! In the crate the text goes to `shaders/ops/NAME.wgsl`, the rest to `src/engine/ops/NAME.rs`, and a row in `ops::OPS`
//! lets the tests try both against each other.

#![allow(clippy::print_stdout, reason = "an example prints what it proves")]

use std::f32::consts::TAU;

use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};
use triptych::engine::device::{self, Choice};
use triptych::engine::ops::wgsl::{self, Wgsl};
use triptych::engine::{Error, Result};

/// An invocation turns one pair `(x₂ᵢ, x₂ᵢ₊₁)` by an angle; the sizes come last, the angle as its bits.
const TURN: &str = "
struct Sizes { pairs: u32, angle: f32 }
@group(0) @binding(0) var<storage, read_write> x: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> sizes: Sizes;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if i >= sizes.pairs { return; }
    let turn = vec2(cos(sizes.angle), sin(sizes.angle));
    out[i] = vec2(turn.x * x[i].x - turn.y * x[i].y, turn.y * x[i].x + turn.x * x[i].y);
}";

#[backend_extension(Cube, Flex, Fusion)]
trait Turn: Backend {
    /// The plain twin: what the CPU runs, and what the shader is tested against.
    #[fusion(dtype = x, shape = x)]
    fn turn(x: FloatTensor<Self>, angle: f32) -> FloatTensor<Self> {
        let (s, c) = angle.sin_cos();
        let matrix = Self::float_from_data(TensorData::from([[c, s], [-s, c]]), &x.device());
        Self::float_matmul(x, matrix)
    }
}

impl Turn for Flex {}

impl Turn for CubeBackend {
    fn turn(x: CubeTensor, angle: f32) -> CubeTensor {
        let x = into_contiguous(x);
        let (pairs, out) = (x.shape()[0], wgsl::empty(&x, x.shape(), x.dtype));
        Wgsl { text: TURN, elements: vec![] }.launch(pairs.div_ceil(64), &[&x, &out], &[pairs as u32, angle.to_bits()]);
        out
    }
}

/// 1,000 pairs, turned by a third of a circle `times` times.
fn turned(times: usize, device: &Device) -> Result<Vec<f32>> {
    let values: Vec<f32> = (0..2000_u16).map(f32::from).collect();
    let mut x = Tensor::<2>::from_data(TensorData::new(values, [1000, 2]), device);
    for _ in 0..times {
        x = Tensor::from_dispatch(Dispatch::turn(x.into_dispatch(), TAU / 3.0));
    }
    x.into_data().try_to_vec().map_err(|e| Error::new(format!("The result is no list of numbers ({e:?})"), "Report it"))
}

fn main() -> Result<()> {
    let opened = device::open(Choice::Gpu(0)).or_else(|_| device::open(Choice::Cpu))?;
    let path = if opened.driver.is_some() { "through the shader" } else { "in plain operations, for want of a GPU" };
    println!("Turning 1,000 pairs {path} ({}).", opened.reason);

    // On average, as a share of the largest value: a maximum would overlook what is not a number.
    let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs() / 2000.0).sum::<f32>() / 2000.0;
    let (start, once) = (turned(0, &device::cpu())?, turned(1, &opened.device)?);
    let twin = off(&once, &turned(1, &device::cpu())?);
    let circle = off(&start, &turned(3, &opened.device)?);
    assert!(twin < 1e-5 && circle < 1e-5 && off(&once, &start) > 0.1, "off by {twin:.0e} and {circle:.0e}");
    println!("Proved: it agrees with the plain twin to {twin:.0e}, and three thirds make a circle to {circle:.0e}.");
    Ok(())
}
