//! Triptych teaches an image model new concepts and combines them without the concepts spoiling each other.
//!
//! The order of modules is the path of the data:
//!
//! `model file → Checkpoint → model → adapters mounted → training → events → spectra → merge → preview → export`
//!
//! [`engine`] does all of it and knows no user interface; [`engine::session`] is its one door. [`cli`] is the command
//! line, [`ui`] the window.

pub mod cli;
pub mod engine;
pub mod ui;
