//! Tables of other tools' tensor names.

use crate::engine::io::ldm;

/// Stored name of a text-encoder tensor → ours (transformers 4, `text_model.…`), or `None` for what is not a weight.
/// transformers 5 writes no `text_model.` level.
pub fn text_encoder(stored: &str) -> Option<String> {
    let name = stored.strip_prefix("text_model.").unwrap_or(stored);
    if name == "embeddings.position_ids" || name == "logit_scale" {
        return None;
    }
    match name.starts_with("text_projection.") {
        true => Some(name.to_owned()),
        false => Some(format!("text_model.{name}")),
    }
}

/// Names that older diffusers folders give to the autoencoder's attention (`models/modeling_utils.py`).
const VAE_ATTENTION: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// Stored name of an autoencoder tensor → ours (diffusers, current).
pub fn vae(stored: &str) -> Option<String> {
    Some(VAE_ATTENTION.iter().fold(stored.to_owned(), |name, (old, new)| name.replace(old, new)))
}

/// kohya's prefix of a UNet module.
pub const KOHYA_UNET: &str = "lora_unet_";
/// kohya's prefix of an SD 1.x text-encoder module.
pub const KOHYA_TEXT: &str = "lora_te_";
/// kohya's prefixes of SDXL's text encoders.
pub const KOHYA_TEXT_1: &str = "lora_te1_";
pub const KOHYA_TEXT_2: &str = "lora_te2_";

/// kohya's name of a module: its path, flattened, behind the network's prefix.
pub fn flat(prefix: &str, path: &str) -> String {
    format!("{prefix}{}", path.replace('.', "_"))
}

/// Whether a kohya module belongs to a text encoder.
pub fn is_text(module: &str) -> bool {
    [KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2].iter().any(|prefix| module.starts_with(prefix))
}

/// Ours of an image classifier's module; kohya has none.
pub const VISION: &str = "lora_vision_";

/// Before every key that PEFT writes.
pub const PEFT: &str = "base_model.model.";

/// Modules of a vision transformer in its files, and what transformers 5 calls them once they are loaded: PEFT goes by that.
const VIT: [(&str, &str); 7] = [
    ("vit.encoder.layer.", "vit.layers."),
    (".attention.attention.query", ".attention.q_proj"),
    (".attention.attention.key", ".attention.k_proj"),
    (".attention.attention.value", ".attention.v_proj"),
    (".attention.output.dense", ".attention.o_proj"),
    (".intermediate.dense", ".mlp.fc1"),
    (".output.dense", ".mlp.fc2"),
];

/// A classifier's module path → PEFT's.
pub fn peft_vision(path: &str) -> String {
    VIT.iter().fold(path.to_owned(), |path, (file, loaded)| path.replace(file, loaded))
}

/// PEFT's path of a classifier's module, of whichever version of transformers → that in the model's file.
pub fn from_peft_vision(path: &str) -> String {
    VIT.iter().fold(path.to_owned(), |path, (file, loaded)| path.replace(loaded, file))
}

/// The stretch of the network a kohya module belongs to: `down_blocks.0`, `mid_block`, `up_blocks.2`, `text`, or the
/// module's own first word (`conv`, `time`).
pub fn block(module: &str) -> String {
    let Some(path) = module.strip_prefix(KOHYA_UNET) else { return "text".into() };
    let ours = ldm::flat_sdxl(path);
    let path = ours.as_deref().unwrap_or(path);
    for side in ["down_blocks", "up_blocks"] {
        if let Some(rest) = path.strip_prefix(side).and_then(|rest| rest.strip_prefix('_')) {
            return format!("{side}.{}", rest.split('_').next().unwrap_or_default());
        }
    }
    if path.starts_with("mid_block") { "mid_block".into() } else { path.split('_').next().unwrap_or_default().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifiers_are_called_as_they_are_loaded() {
        for (file, loaded) in [
            ("vit.encoder.layer.11.attention.attention.query", "vit.layers.11.attention.q_proj"),
            ("vit.encoder.layer.0.attention.output.dense", "vit.layers.0.attention.o_proj"),
            ("vit.encoder.layer.0.intermediate.dense", "vit.layers.0.mlp.fc1"),
            ("vit.encoder.layer.0.output.dense", "vit.layers.0.mlp.fc2"),
            ("vit.embeddings.patch_embeddings.projection", "vit.embeddings.patch_embeddings.projection"),
            (
                "resnet.encoder.stages.0.layers.0.shortcut.convolution",
                "resnet.encoder.stages.0.layers.0.shortcut.convolution",
            ),
        ] {
            assert_eq!(peft_vision(file), loaded);
            assert_eq!([loaded, file].map(from_peft_vision), [file; 2]);
        }
    }

    #[test]
    fn blocks_are_read_off_the_name() {
        assert_eq!(block("lora_unet_up_blocks_1_attentions_2_proj_in"), "up_blocks.1");
        assert_eq!(block("lora_unet_mid_block_attentions_0_proj_in"), "mid_block");
        assert_eq!(block("lora_unet_conv_in"), "conv");
        assert_eq!(block("lora_unet_input_blocks_6_0_op"), "down_blocks.1");
        assert_eq!(block("lora_unet_middle_block_1_proj_in"), "mid_block");
        assert_eq!(block("lora_unet_output_blocks_5_1_transformer_blocks_0_ff_net_2"), "up_blocks.1");
        assert_eq!(block("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "text");
        assert_eq!(block("lora_te_text_model_encoder_layers_0_mlp_fc1"), "text");
    }
}
