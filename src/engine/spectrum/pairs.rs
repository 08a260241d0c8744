//! Every pair of many adapters, in all layers at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use super::overlap::{energy, share};
use super::{LayerOverlap, LowRank, Overlap, PairOverlap, overlap};
use crate::engine::device::{is_gpu, read};
use crate::engine::ops::{self, Factors, Spectra, WIDEST};
use crate::engine::{Error, Result};

/// Numbers of factors and of inner products that are on the GPU at a time: 256 MiB.
const MOST: usize = 1 << 26;

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
                batch.meetings.push((place, name, [a, b]));
            }
        }
        if batch.numbers.len() + 2 * batch.meetings.len() * widest * widest > MOST {
            std::mem::take(&mut batch).measure(device, &mut layers)?;
        }
    }
    batch.measure(device, &mut layers)?;
    let energies: Vec<f64> = adapters.iter().map(energy).collect();
    Ok(pairs.iter().zip(layers).map(|(pair, layers)| PairOverlap::of(layers, pair.map(|i| energies[i]))).collect())
}

/// What goes to the GPU together.
#[derive(Default)]
struct Batch<'a> {
    numbers: Vec<f32>,
    factors: Vec<Factors>,
    /// The pair of adapters, the layer, and which two of the factors meet there.
    meetings: Vec<(usize, &'a str, [usize; 2])>,
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
        let meetings = self.meetings.iter().map(|&(_, _, pair)| pair).collect();
        let spectra = Spectra { values: values.clone(), coefficients };
        let sums = read(ops::overlap(numbers, Arc::clone(&factors), spectra, meetings))?;
        let values = read(values)?;
        let values = |i: usize| values[i * widest..(i + 1) * widest].iter().map(|&s| f64::from(s));
        let norm = |i: usize| values(i).map(|s| s * s).sum::<f64>().sqrt();
        let rank = |i: usize| values(i).filter(|&s| s > 0.0).count();
        for ((place, name, [i, j]), sums) in self.meetings.into_iter().zip(sums.chunks_exact(4)) {
            let [dot, write, read, product] = [0, 1, 2, 3].map(|k| f64::from(sums[k]));
            let (fewer, more) = (rank(i).min(rank(j)), rank(i).max(rank(j)));
            let shared = |sum: f64, width: usize| match fewer {
                0 => Overlap::default(),
                _ => Overlap::new(sum / fewer as f64, more as f64 / width as f64),
            };
            let weight = norm(i) * norm(j);
            layers[place].push(LayerOverlap {
                layer: name.to_owned(),
                cosine: share(dot, weight),
                read: shared(read, factors[i].input),
                write: shared(write, factors[i].out),
                product: share(product.sqrt(), weight),
                weight,
            });
        }
        Ok(())
    }
}
