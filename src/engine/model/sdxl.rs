//! What tools call SDXL's layers: kohya's trainer took them from the single file, in which blocks are numbered through.

use crate::engine::io::{ldm, names};
use crate::engine::model::{Layer, Part, unet};

/// Gives each layer of an SDXL model kohya's name: `lora_unet_input_blocks_4_1_proj_in`, `lora_te1_…`, `lora_te2_…`.
pub fn name_modules(layers: &mut [Layer], config: &unet::Config) {
    let in_ldm = ldm::unet(&config.blocks());
    for layer in layers {
        layer.module = match layer.part {
            Part::Text => Some(names::flat(names::KOHYA_TEXT_1, &layer.path)),
            Part::Unet => in_ldm.ldm(&layer.path).map(|path| names::flat(names::KOHYA_UNET, &path)),
            Part::Text2 | Part::Vae | Part::Vision => None,
        };
    }
}
