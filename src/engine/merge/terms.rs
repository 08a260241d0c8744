//! What the adapters say about one layer, gathered and checked: where every method begins.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;

use crate::engine::io::lora_file::LoraLayer;
use crate::engine::merge::Source;
use crate::engine::spectrum::{LowRank, Shape};
use crate::engine::{Error, Result};

/// One adapter's share of a layer.
pub struct Term<'a> {
    /// Index into the sources.
    pub source: usize,
    pub layer: Cow<'a, LoraLayer>,
    /// Its strength here, never 0.
    pub w: f32,
    path: &'a Path,
}

impl Term<'_> {
    /// `ΔW` at strength 1.
    pub fn unit(&self) -> Result<LowRank> {
        let layer = &self.layer;
        let shape = Shape { out: layer.out(), rank: layer.rank, input: layer.input() };
        LowRank::new(&layer.up, &layer.down, shape, f64::from(layer.scale())).map_err(|e| e.at(self.path))
    }

    /// `w·ΔW`.
    pub fn delta(&self) -> Result<LowRank> {
        Ok(self.unit()?.scaled(f64::from(self.w)))
    }
}

/// Does `work` for each layer that any source changes, on all threads; errors name the layer. Silent sources are not
/// there, and at least one source is in each layer.
pub fn each_layer<T: Send>(
    sources: &[Source],
    work: impl Fn(&str, &[Term<'_>]) -> Result<T> + Sync,
) -> Result<BTreeMap<String, T>> {
    let modules: BTreeSet<&String> = sources.iter().flat_map(|source| source.file.modules()).collect();
    let done: BTreeMap<String, T> = modules
        .into_par_iter()
        .map(|module| {
            let terms: Vec<Term<'_>> = sources
                .iter()
                .enumerate()
                .filter_map(|(source, Source { file, strength })| {
                    Some(Term { source, layer: file.pair(module)?, w: strength.of(module), path: &file.path })
                })
                .filter(|term| term.w != 0.0)
                .collect();
            let Some(first) = terms.first() else { return Ok(None) };
            let size = |layer: &LoraLayer| (layer.out(), inputs(layer).to_vec());
            if terms.iter().any(|term| size(&term.layer) != size(&first.layer)) {
                return Err(Error::new(
                    format!("The adapters are for different models: layer {module} has another size in each"),
                    "Merge adapters of one model family only",
                ));
            }
            let result =
                work(module, &terms).map_err(|e| Error { what: format!("{} (layer {module})", e.what), ..e })?;
            Ok(Some((module.clone(), result)))
        })
        .filter_map(Result::transpose)
        .collect::<Result<_>>()?;
    if done.is_empty() {
        let empty = sources.iter().all(|source| source.file.modules().is_empty());
        return Err(match empty {
            true => Error::new("The adapters change no layer, so there is nothing to merge", "Train them for longer"),
            false => Error::usage("Every strength is 0, so nothing is left to merge", "Raise at least one strength"),
        });
    }
    Ok(done)
}

/// Shape of the inputs. Tools disagree on whether `proj_in` is a 1×1 convolution or a linear layer: the same here.
fn inputs(layer: &LoraLayer) -> &[usize] {
    match &layer.down_shape[1..] {
        [channels, 1, 1] => std::slice::from_ref(channels),
        shape => shape,
    }
}

/// The shapes of a merged layer's `down` and `up`: the convolution's where there is one, which every reader takes.
pub fn file_shapes(terms: &[Term<'_>], rank: usize) -> (Vec<usize>, Vec<usize>) {
    let convolution = terms.iter().map(|term| &term.layer).find(|layer| layer.down_shape.len() == 4);
    let like = convolution.unwrap_or(&terms[0].layer);
    let (mut down_shape, mut up_shape) = (like.down_shape.clone(), like.up_shape.clone());
    (down_shape[0], up_shape[1]) = (rank, rank);
    (down_shape, up_shape)
}
