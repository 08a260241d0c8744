//! One file for each panel.

pub mod library;
#[cfg(test)]
mod looks;
pub mod merge;
pub mod preview;
pub mod spectrum;
pub mod train;
