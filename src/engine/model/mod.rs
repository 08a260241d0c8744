//! The networks, their weights and the layers an adapter can sit on.

pub mod blocks;
pub mod chunks;
pub mod clip;
pub mod context;
pub mod conv_norm;
pub mod layer;
pub mod loader;
pub mod mobilenet;
pub mod mount;
pub mod parts;
pub mod pooled;
pub mod precision;
pub mod prompt;
mod reading;
pub mod recompute;
pub mod residual;
pub mod resnet;
pub mod sd;
pub mod sdxl;
pub mod signal;
pub mod single_file;
pub mod stored;
mod tiles;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod vit;

pub use blocks::ConvShape;
pub use context::Context;
pub use layer::{Layer, LayerId, Part, Table, Weight};
pub use mount::{Branch, Change, Mounts, Site};
pub use pooled::{Framing, Pooled};
pub use precision::{Hold, Matrices, Precision};
pub use sd::StableDiffusion;
pub use signal::Signal;
