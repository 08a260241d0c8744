//! Room on the disk that a run needs beside what is there already.

use crate::engine::adapter::{Adapter, FileKind, Method};
use crate::engine::io::Dtype;
use crate::engine::model::{LayerId, StableDiffusion};
use crate::engine::train::config::Config;
use crate::engine::train::estimate::F32;

/// Bytes at the most: the adapter, kept steps and the best, the saved state, samples. A file is written beside the one
/// it replaces. `trained` is how many numbers train.
pub fn bytes(
    model: &StableDiffusion,
    method: &Method,
    adapter: &dyn Adapter,
    config: &Config,
    targets: &[LayerId],
    trained: usize,
) -> u64 {
    let stored: usize = targets
        .iter()
        .enumerate()
        .map(|(place, &id)| {
            let layer = model.layer(id);
            let count = adapter.count(layer, place as f32 / targets.len() as f32);
            match (method.file, adapter.basis()) {
                (FileKind::Difference, _) => layer.out * layer.input(),
                // The read side that the slot gave is in the file too.
                (_, Some(_)) => count + count / layer.out * layer.input(),
                (_, None) => count,
            }
        })
        .sum();
    let file = stored * if config.dtype == Dtype::F32 { F32 } else { F32 / 2 };
    let every = |n: usize| config.steps.checked_div(n).unwrap_or(0);
    let kept = match (every(config.keep_every), config.keep_last) {
        (kept, 0) => kept,
        (kept, last) => kept.min(last + 1),
    };
    let best = if config.keeps_best() { 2 } else { 0 };
    let state = F32 * trained * if config.ema.is_some() { 4 } else { 3 };
    let [width, height] = config.views.largest();
    let samples = every(config.sample_every) * config.sample_prompts().len().max(1) * 3 * width * height;
    ((2 + kept + best) * file + 2 * state + samples) as u64
}
