//! From a concept to an adapter file.

pub mod accumulate;
pub mod average;
pub mod checkpoint;
pub mod config;
pub mod configuration;
mod course;
pub mod data;
pub mod estimate;
pub mod evidence;
mod fields;
mod file;
mod group;
pub mod import;
pub mod job;
mod keep;
mod live;
pub mod metadata;
mod numbers;
pub mod optimizer;
mod order;
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
