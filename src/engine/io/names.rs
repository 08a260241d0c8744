//! Tables of other tools' tensor names.

/// Stored name of a text-encoder tensor → ours (transformers 4, `text_model.…`), or `None` for what is not a weight.
/// transformers 5 writes no `text_model.` level.
pub fn text_encoder(stored: &str) -> Option<String> {
    let name = stored.strip_prefix("text_model.").unwrap_or(stored);
    if name == "embeddings.position_ids" || name == "logit_scale" {
        return None;
    }
    Some(format!("text_model.{name}"))
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

/// The stretch of the network a kohya module belongs to: `down_blocks.0`, `mid_block`, `up_blocks.2`, `text`, or the
/// module's own first word (`conv`, `time`).
pub fn block(module: &str) -> String {
    let Some(path) = module.strip_prefix(KOHYA_UNET) else { return "text".into() };
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
    fn blocks_are_read_off_the_name() {
        assert_eq!(block("lora_unet_up_blocks_1_attentions_2_proj_in"), "up_blocks.1");
        assert_eq!(block("lora_unet_mid_block_attentions_0_proj_in"), "mid_block");
        assert_eq!(block("lora_unet_conv_in"), "conv");
        assert_eq!(block("lora_te_text_model_encoder_layers_0_mlp_fc1"), "text");
    }
}
