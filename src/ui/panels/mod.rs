//! One file for each panel.

pub mod library;
pub mod merge;
pub mod preview;
pub mod spectrum;
pub mod train;
