//! The singular values of many layers whose factors lie on a device.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{LowRank, Shape};
use crate::engine::Result;
use crate::engine::device::{is_gpu, read};
use crate::engine::model::Branch;
use crate::engine::ops::{Factors, Spectra, WIDEST, spectra};

/// Layer by layer, falling; empty where a layer has none because its numbers ran away.
///
/// On a GPU in f32 where the factors lie, as many layers at a time as its buffers take; what is weaker than a thousandth of
/// the strongest is rounding there, and 0. On the CPU, and for ranks that a GPU does not take, in f64.
pub fn singular_values(pairs: Vec<Branch>) -> Result<Vec<Vec<f32>>> {
    let mut values = Vec::new();
    let widest = pairs.iter().map(|pair| pair.up.dims()[1]).max().unwrap_or(0);
    let on_gpu = pairs.first().is_some_and(|pair| is_gpu(&pair.up.device())) && widest <= WIDEST;
    let batch = if on_gpu { Spectra::batch(widest) } else { pairs.len().max(1) };
    let mut pairs = pairs.into_iter().peekable();
    while pairs.peek().is_some() {
        let (mut layers, mut flat, mut at) = (Vec::new(), Vec::new(), 0);
        for Branch { up, down, scale } in pairs.by_ref().take(batch) {
            let ([out, rank], [_, input]) = (up.dims(), down.dims());
            let factors = Factors { at, out, rank, input, scale };
            at += factors.numbers();
            layers.push(factors);
            flat.extend([up, down].map(|factor| factor.flatten::<1>(0, 1)));
        }
        // One wait for the device, not one for each tensor.
        let flat = Tensor::cat(flat, 0);
        values.extend(if on_gpu { on_device(flat, &layers)? } else { on_host(&read(flat)?, &layers) });
    }
    Ok(values)
}

fn on_device(factors: Tensor<1>, layers: &[Factors]) -> Result<Vec<Vec<f32>>> {
    let values = spectra(factors, layers.into()).values;
    let [_, widest] = values.dims();
    let of = |(layer, values): (&Factors, &[f32])| {
        let values = &values[..layer.rank.min(layer.out).min(layer.input)];
        if values.iter().all(|value| value.is_finite()) { values.to_vec() } else { Vec::new() }
    };
    Ok(layers.iter().zip(read(values)?.chunks_exact(widest)).map(of).collect())
}

fn on_host(numbers: &[f32], layers: &[Factors]) -> Vec<Vec<f32>> {
    let of = |layer: &Factors| {
        let &Factors { at, out, rank, input, scale } = layer;
        let (up, down) = numbers[at..at + layer.numbers()].split_at(out * rank);
        let delta = LowRank::new(up, down, Shape { out, rank, input }, f64::from(scale)).ok()?;
        Some(delta.singular_values().ok()?.into_iter().map(|s| s as f32).collect())
    };
    layers.par_iter().map(|layer| of(layer).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::engine::device::cpu;

    #[test]
    fn every_layer_has_its_own_and_what_is_no_number_none() {
        let matrix = |values: Vec<f32>, shape: [usize; 2]| Tensor::from_data(TensorData::new(values, shape), &cpu());
        let pair = |up: Vec<f32>, scale: f32| Branch {
            up: matrix(up, [2, 2]),
            down: matrix(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [2, 3]),
            scale,
        };
        let found = singular_values(vec![
            pair(vec![3.0, 0.0, 0.0, -4.0], 0.5),
            pair(vec![f32::NAN, 0.0, 0.0, 1.0], 1.0),
            pair(vec![0.0, 1.0, 0.0, 0.0], 2.0),
        ])
        .unwrap();
        assert_eq!(found, [vec![2.0, 1.5], vec![], vec![2.0, 0.0]]);
    }
}
