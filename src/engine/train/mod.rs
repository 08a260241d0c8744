//! From a concept to an adapter file.

pub mod optimizer;
pub mod step;
