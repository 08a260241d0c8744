//! From a concept to an adapter file.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod evidence;
pub mod job;
pub mod metadata;
pub mod optimizer;
pub mod run;
pub mod step;
