//! Every pair of many adapters, in all layers at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use super::overlap::{energy, layer_overlap, share};
use super::{LayerOverlap, LowRank, Overlap, PairOverlap, overlap};
use crate::engine::device::{is_gpu, read};
use crate::engine::ops::{self, Factors, Spectra, WIDEST};
use crate::engine::{Error, Result};

/// Numbers of factors, and of inner products of pairs, that are on the GPU at a time: 64 MiB each.
const MOST: usize = 1 << 24;

/// Pairs `first < second` in the order 0 1, 0 2, 1 2, 0 3, …: on a GPU many layers at a time in f32, where directions
/// weaker than a thousandth of the strongest are left out; on the CPU one after the other in f64.
pub fn overlaps(adapters: &[BTreeMap<String, LowRank>], device: &Device) -> Result<Vec<PairOverlap>> {
    let pairs: Vec<[usize; 2]> = (1..adapters.len()).flat_map(|j| (0..j).map(move |i| [i, j])).collect();
    let widest = adapters.iter().flat_map(BTreeMap::values).map(|delta| delta.shape().rank).max().unwrap_or(0);
    if !is_gpu(device) || widest > WIDEST {
        return pairs.iter().map(|&[i, j]| overlap(&adapters[i], &adapters[j])).collect();
    }
    let mut layers = vec![Vec::new(); pairs.len()];
    let mut batch = Batch::default();
    let mut names: Vec<&String> = adapters.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    for name in names {
        let of: Vec<Option<usize>> = adapters.iter().map(|adapter| Some(batch.push(adapter.get(name)?))).collect();
        for (place, &[i, j]) in pairs.iter().enumerate() {
            if let ([Some(a), Some(b)], [Some(first), Some(second)]) =
                ([of[i], of[j]], [i, j].map(|adapter| adapters[adapter].get(name)))
            {
                first.same_layer(second).map_err(|e| Error { what: format!("{} (layer {name})", e.what), ..e })?;
                batch.meetings.push(Meeting { place, layer: name, among: [a, b], deltas: [first, second] });
            }
        }
        if batch.numbers.len() > MOST || batch.factors.len() >= Spectra::batch(widest) {
            std::mem::take(&mut batch).measure(device, &mut layers)?;
        }
    }
    batch.measure(device, &mut layers)?;
    let energies: Vec<f64> = adapters.iter().map(energy).collect();
    Ok(pairs.iter().zip(layers).map(|(pair, layers)| PairOverlap::of(layers, pair.map(|i| energies[i]))).collect())
}

/// Two adapters in a layer.
struct Meeting<'a> {
    /// The pair among all.
    place: usize,
    layer: &'a str,
    /// Their factors among those of the batch.
    among: [usize; 2],
    deltas: [&'a LowRank; 2],
}

/// What goes to the GPU together.
#[derive(Default)]
struct Batch<'a> {
    numbers: Vec<f32>,
    factors: Vec<Factors>,
    meetings: Vec<Meeting<'a>>,
}

impl Batch<'_> {
    /// Its place among the factors.
    fn push(&mut self, delta: &LowRank) -> usize {
        let (shape, scale) = (delta.shape(), delta.scale() as f32);
        let (out, rank, input) = (shape.out, shape.rank, shape.input);
        self.factors.push(Factors { at: self.numbers.len(), out, rank, input, scale });
        for side in [delta.up(), delta.down()] {
            self.numbers.extend(side.row_iter().flat_map(|row| row.iter().map(|&x| x as f32)));
        }
        self.factors.len() - 1
    }

    fn measure(self, device: &Device, layers: &mut [Vec<LayerOverlap>]) -> Result<()> {
        if self.meetings.is_empty() {
            return Ok(());
        }
        let n = self.numbers.len();
        let numbers = Tensor::<1>::from_data(TensorData::new(self.numbers, [n]), device);
        let factors: Arc<[Factors]> = self.factors.into();
        let Spectra { values, coefficients } = ops::spectra(numbers.clone(), Arc::clone(&factors));
        let [_, widest] = values.dims();
        let host = read(values.clone())?;
        let of = |i: usize| host[i * widest..(i + 1) * widest].iter().map(|&s| f64::from(s));
        let norm = |i: usize| of(i).map(|s| s * s).sum::<f64>().sqrt();
        let rank = |i: usize| of(i).filter(|&s| s > 0.0).count();
        for meetings in self.meetings.chunks((MOST / (2 * widest * widest)).max(1)) {
            let pairs = meetings.iter().map(|meeting| meeting.among).collect();
            let spectra = Spectra { values: values.clone(), coefficients: coefficients.clone() };
            let sums = read(ops::overlap(numbers.clone(), Arc::clone(&factors), spectra, pairs))?;
            for (&Meeting { place, layer, among: [i, j], deltas }, sums) in meetings.iter().zip(sums.chunks_exact(4)) {
                let weight = norm(i) * norm(j);
                // Too large for f32, or a GPU that fails: what is no number would pass for nothing shared.
                if !weight.is_finite() || !sums.iter().all(|sum| sum.is_finite()) {
                    layers[place].push(layer_overlap(layer, deltas[0], deltas[1])?);
                    continue;
                }
                let [dot, write, read, product] = [0, 1, 2, 3].map(|k| f64::from(sums[k]));
                let (fewer, more) = (rank(i).min(rank(j)), rank(i).max(rank(j)));
                let shared = |sum: f64, width: usize| match fewer {
                    0 => Overlap::default(),
                    _ => Overlap::new(sum / fewer as f64, more as f64 / width as f64),
                };
                layers[place].push(LayerOverlap {
                    layer: layer.to_owned(),
                    cosine: share(dot, weight),
                    read: shared(read, factors[i].input),
                    write: shared(write, factors[i].out),
                    product: share(product.sqrt(), weight),
                    weight,
                });
            }
        }
        Ok(())
    }
}
