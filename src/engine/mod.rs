//! The engine: everything but the command line and the window. It knows no user interface and has no globals.

pub mod adapter;
pub mod cache;
pub mod concept;
pub mod contact_sheet;
pub mod convert;
pub mod device;
pub mod diffusion;
pub mod doctor;
pub mod error;
pub mod event;
pub mod export;
pub mod field;
pub mod inspect;
pub mod io;
pub mod merge;
pub mod model;
pub mod ops;
pub mod pages;
pub mod parameters;
pub mod prepare;
pub mod preview;
pub mod project;
pub mod queue;
pub mod random;
pub mod session;
pub mod similarity;
pub mod spectrum;
pub mod train;
pub mod tuning;
pub mod vision;
pub mod words;

pub use error::{Error, Result};
