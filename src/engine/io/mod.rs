//! Files ↔ tensors.

pub mod atomic;
pub mod decode;
pub mod detect;
pub mod dotted;
pub mod folder;
pub mod ldm;
pub mod lock;
pub mod lora_file;
pub mod metadata;
pub mod names;
pub mod open_clip;
pub mod peft;
pub mod pickle;
pub mod png;
pub mod safetensors;
pub mod shards;
pub mod token_vectors;

pub use folder::Folder;
pub use safetensors::{Checkpoint, Dtype, Entry};
