//! What the adapters say about one layer, gathered and checked: where every method begins.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;

use crate::engine::event::{Event, Watch};
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

/// Layers between two reports: few enough to stop soon, enough to keep all threads at work.
const AT_ONCE: usize = 32;

/// Does `work` for each layer that any source changes, on all threads; errors name the layer. Silent sources are not
/// there, and at least one source is in each layer. An error of `watch` stops between layers.
pub fn each_layer<T: Send>(
    sources: &[Source],
    watch: &mut Watch<'_>,
    work: impl Fn(&str, &[Term<'_>]) -> Result<T> + Sync,
) -> Result<BTreeMap<String, T>> {
    let modules: BTreeSet<&String> = sources.iter().flat_map(|source| source.file.modules()).collect();
    let modules: Vec<&String> = modules.into_iter().collect();
    let total = modules.len();
    watch(Event::Stage { name: "merging layers".into(), total })?;
    let mut done = BTreeMap::new();
    for (i, some) in modules.chunks(AT_ONCE).enumerate() {
        done.extend(layers(sources, some, &work)?);
        watch(Event::Progress { done: i * AT_ONCE + some.len(), total })?;
    }
    if done.is_empty() {
        let empty = sources.iter().all(|source| source.file.modules().is_empty());
        return Err(match empty {
            true => Error::new("The adapters change no layer, so there is nothing to merge", "Train them for longer"),
            false => Error::usage("Every strength is 0, so nothing is left to merge", "Raise at least one strength"),
        });
    }
    Ok(done)
}

fn layers<T: Send>(
    sources: &[Source],
    modules: &[&String],
    work: &(impl Fn(&str, &[Term<'_>]) -> Result<T> + Sync),
) -> Result<BTreeMap<String, T>> {
    modules
        .par_iter()
        .map(|&module| {
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
        .collect()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::adapter::mount::Strength;
    use crate::engine::error::Kind;
    use crate::engine::io::lora_file::LoraFile;

    #[test]
    fn a_merge_tells_how_far_it_is_and_stops_between_layers() {
        let layer = || LoraLayer {
            down: vec![1.0],
            up: vec![1.0],
            rank: 1,
            alpha: 1.0,
            down_shape: vec![1, 1],
            up_shape: vec![1, 1],
        };
        let total = 2 * AT_ONCE + 3;
        let layers = (0..total).map(|i| (format!("lora_unet_{i:03}"), layer())).collect();
        let file = LoraFile { layers, ..LoraFile::default() };
        let sources = [Source { file, strength: Strength::default() }];
        let worked = AtomicUsize::new(0);
        let work = |_: &str, terms: &[Term<'_>]| {
            worked.fetch_add(1, Ordering::Relaxed);
            Ok(terms.len())
        };
        let mut heard = Vec::new();
        let mut watch = |event| {
            if let Event::Progress { done, .. } = event {
                heard.push(done);
            }
            Ok(())
        };
        assert_eq!(each_layer(&sources, &mut watch, work).unwrap().len(), total);
        assert_eq!(heard, [AT_ONCE, 2 * AT_ONCE, total]);
        worked.store(0, Ordering::Relaxed);
        let mut stop = |event| if matches!(event, Event::Progress { .. }) { Err(Error::cancelled()) } else { Ok(()) };
        assert_eq!(each_layer(&sources, &mut stop, work).unwrap_err().kind, Kind::Cancelled);
        assert_eq!(worked.load(Ordering::Relaxed), AT_ONCE);
    }
}
