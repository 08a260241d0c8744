//! Does this device compute what the CPU computes?
//!
//! Kernels that are picked by timing have been wrong on some shapes and drivers (burn #5237, #5626, cubek #519). So
//! before a device is trusted, the operations that the networks use run on it, small, and are compared with the CPU.

use std::io::Write as _;
use std::path::Path;

use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor, TensorData, activation, module};
use sha2::{Digest as _, Sha256};

use crate::engine::device::read;
use crate::engine::io::{atomic, safetensors};
use crate::engine::random::Philox;

/// Largest difference, as a share of the largest value. Drivers may fuse and reorder; a wrong kernel is far off.
const TOLERANCE: f32 = 1e-3;

type Op = fn(&Device) -> Tensor<2>;

/// Channel counts are those of the starter model and Stable Diffusion's narrowest level, not powers of two alone.
const OPS: &[(&str, Op)] = &[
    ("matrix product", |d| input::<2>([77, 128], 1, d).matmul(input([128, 96], 2, d))),
    ("transposed matrix product", |d| input::<2>([64, 96], 1, d).matmul(input::<2>([64, 96], 2, d).transpose())),
    ("batched matrix product", |d| flat(input::<3>([1, 96, 64], 1, d).matmul(input([2, 64, 256], 2, d)))),
    ("3×3 convolution", |d| flat(convolve(d, 1))),
    ("3×3 convolution of stride 2", |d| flat(convolve(d, 2))),
    ("3×3 convolution of each channel", |d| {
        let options = ConvOptions::new([2, 2], [1, 1], [1, 1], 48);
        flat(module::conv2d(input([1, 48, 9, 9], 1, d), input([48, 1, 3, 3], 2, d), None, options))
    }),
    ("bicubic resize", |d| {
        let options =
            InterpolateOptions::new(InterpolateMode::Bicubic).with_output_size([24, 24]).with_align_corners(false);
        flat(module::interpolate(input([1, 3, 8, 8], 1, d), options))
    }),
    ("softmax", |d| flat(activation::softmax(input::<4>([2, 4, 64, 77], 1, d) * 4.0, 3))),
    ("layer norm", |d| {
        flat(module::layer_norm(input::<3>([2, 64, 96], 1, d), input([96], 2, d), Some(input([96], 3, d)), 1e-5))
    }),
    ("group mean", |d| flat(input::<3>([2, 32, 768], 1, d).powi_scalar(2).mean_dim(2))),
    ("GELU", |d| activation::gelu(input([64, 96], 1, d) * 3.0)),
    ("SiLU", |d| activation::silu(input([64, 96], 1, d) * 3.0)),
    ("gradient of a convolution", |d| {
        let x = input::<4>([1, 32, 8, 8], 1, d).autodiff().require_grad();
        let y =
            module::conv2d(x.clone(), input([32, 32, 3, 3], 2, d), None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
        let gradients = (y * input([1, 32, 8, 8], 3, d)).sum().backward();
        flat(x.grad(&gradients).unwrap_or_else(|| Tensor::zeros([1, 32, 8, 8], d)))
    }),
];

fn convolve(device: &Device, stride: usize) -> Tensor<4> {
    let options = ConvOptions::new([stride; 2], [1, 1], [1, 1], 1);
    module::conv2d(
        input([2, 64, 8, 8], 1, device),
        input([96, 64, 3, 3], 2, device),
        Some(input([96], 3, device)),
        options,
    )
}

fn input<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let n = shape.iter().product::<usize>();
    // A prime number of values, repeated: drawing the weights of a wide layer would take longer than its product.
    let values: Vec<f32> = Philox::new(seed).normal(0, n.min(4093)).into_iter().cycle().take(n).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let n = tensor.shape().num_elements();
    tensor.reshape([1, n])
}

/// The weight of one layer: the same shape is the same kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerShape {
    pub out: usize,
    pub channels: usize,
    /// `None` for a linear layer.
    pub kernel: Option<[usize; 2]>,
}

impl LayerShape {
    /// The layer on a few tokens or pixels.
    fn run(self, device: &Device) -> Tensor<2> {
        let Self { out, channels, kernel } = self;
        match kernel {
            None | Some([1, 1]) => input::<2>([16, channels], 1, device).matmul(input([channels, out], 2, device)),
            Some([h, w]) => {
                let options = ConvOptions::new([1, 1], [h / 2, w / 2], [1, 1], 1);
                flat(module::conv2d(
                    input([1, channels, 8, 8], 1, device),
                    input([out, channels, h, w], 2, device),
                    None,
                    options,
                ))
            }
        }
    }
}

/// The first operation, or layer of these shapes, that differs from the CPU, as a message.
pub fn run(device: &Device, layers: &[LayerShape]) -> Result<(), String> {
    for (name, op) in OPS {
        compare(name, op, device)?;
    }
    layers.iter().try_for_each(|layer| compare(&format!("{layer:?}"), |device| layer.run(device), device))
}

fn compare(name: &str, op: impl Fn(&Device) -> Tensor<2>, device: &Device) -> Result<(), String> {
    let values = |device: &Device| read(op(device).inner()).map_err(|e| format!("{name}: {}", e.what));
    let (expected, found) = (values(&crate::engine::device::cpu())?, values(device)?);
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let difference = expected
        .iter()
        .zip(&found)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0_f32, |m, x| if x > m || x.is_nan() { x } else { m });
    if difference.is_nan() || difference > TOLERANCE * largest || found.len() != expected.len() {
        return Err(format!("{name} is off by {difference} of {largest}"));
    }
    Ok(())
}

/// [`run`], once for each driver version and set of shapes: a pass is remembered in `cache`.
pub fn cached(device: &Device, driver: &str, layers: &[LayerShape], cache: Option<&Path>) -> Result<(), String> {
    let identity = format!("{driver} {} {layers:?}", env!("CARGO_PKG_VERSION"));
    let key = safetensors::hex(&Sha256::digest(identity.as_bytes()));
    let mark = cache.map(|folder| folder.join("self_test").join(&key[..32]));
    if mark.as_deref().is_some_and(Path::is_file) {
        return Ok(());
    }
    run(device, layers)?;
    if let Some(mark) = mark
        && let Err(error) = atomic::write(&mark, |out| out.write_all(driver.as_bytes()))
    {
        tracing::warn!("{error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let layers = [None, Some([3, 3])].map(|kernel| LayerShape { out: 24, channels: 40, kernel });
        run(&crate::engine::device::cpu(), &layers).unwrap();
    }
}
