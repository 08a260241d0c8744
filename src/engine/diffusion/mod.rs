//! The diffusion process: pure functions over tensors and tables.

pub mod guidance;
pub mod loss;
pub mod sampler;
pub mod schedule;

pub use sampler::{SAMPLERS, Sampler};
pub use schedule::{Prediction, Schedule};
