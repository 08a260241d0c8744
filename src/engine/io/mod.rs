//! Files ↔ tensors.

pub mod atomic;
pub mod folder;
pub mod lock;
pub mod lora_file;
pub mod metadata;
pub mod names;
pub mod png;
pub mod safetensors;

pub use folder::Folder;
pub use safetensors::{Checkpoint, Dtype, Entry};
