//! From a concept to an adapter file.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod estimate;
pub mod evidence;
mod fields;
mod file;
mod group;
pub mod job;
mod keep;
mod live;
pub mod metadata;
mod numbers;
pub mod optimizer;
mod order;
mod prompts;
pub mod run;
mod shown;
mod steady;
pub mod step;
mod wishes;

pub use keep::{keep, kept};
pub use wishes::{Wished, Wishes};
