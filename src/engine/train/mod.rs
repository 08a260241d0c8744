//! From a concept to an adapter file.

use std::path::{Path, PathBuf};

pub mod accumulate;
pub mod average;
pub mod checkpoint;
pub mod config;
pub mod configuration;
mod course;
pub mod data;
pub mod estimate;
pub mod evidence;
pub mod fields;
pub mod file;
mod group;
pub mod import;
pub mod job;
mod keep;
mod live;
pub mod metadata;
pub mod numbers;
pub mod optimizer;
pub mod order;
mod prepare;
pub mod presets;
mod prompts;
pub mod run;
pub mod samples;
mod shown;
mod steady;
pub mod step;
mod wishes;

pub use keep::{best, keep, kept};
pub use wishes::{Wished, Wishes};

/// `OUT.state`, `OUT.steps`, `OUT.samples` and the like: what a run that writes `out` keeps beside it.
pub fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Whether a run that did not end has left what can still become the adapter: a saved state, kept steps, a best one.
pub fn has_left(out: &Path) -> bool {
    checkpoint::folder(out).is_dir() || !kept(out).is_empty() || !best(out).is_empty()
}
