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

/// What a key holds of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Down,
    Up,
    Alpha,
    /// `ΔW` itself (LyCORIS `full`, ComfyUI's extraction).
    Difference,
    /// `Δb`.
    BiasDifference,
}

/// Endings of a key, in kohya, LyCORIS, PEFT and diffusers files (`utils/state_dict_utils.py`).
const ROLES: [(&str, Role); 13] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".alpha", Role::Alpha),
    (".diff", Role::Difference),
    (".diff_b", Role::BiasDifference),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
];

/// A LoRA file's key → kohya's module name and the role, or `None` for a key of another kind.
///
/// kohya's flat names are the common form: dots can be flattened, but not recovered without the model.
pub fn lora_key(stored: &str) -> Option<(String, Role)> {
    let key = stored.strip_prefix(PEFT).unwrap_or(stored).replace(".default.weight", ".weight");
    let (module, role) = ROLES.iter().find_map(|(ending, role)| Some((key.strip_suffix(ending)?.to_owned(), *role)))?;
    if let Some(rest) = module.strip_prefix("lora_te1_") {
        return Some((format!("{KOHYA_TEXT}{rest}"), role));
    }
    if [KOHYA_UNET, KOHYA_TEXT, VISION].iter().any(|prefix| module.starts_with(prefix)) {
        return Some((module, role));
    }
    let flat = |path: &str| path.replace('.', "_");
    if let Some(path) = module.strip_prefix("text_encoder.") {
        let path = path.strip_prefix("text_model.").unwrap_or(path);
        return Some((format!("{KOHYA_TEXT}text_model_{}", flat(path)), role));
    }
    let path = module.strip_prefix("unet.")?;
    // Files of diffusers before 0.20 hang the factors on the attention processor, where `to_out` has no index.
    let path = path.replace(".processor.", ".");
    let path = if path.ends_with(".to_out") { format!("{path}.0") } else { path };
    Some((format!("{KOHYA_UNET}{}", flat(&path)), role))
}

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
    fn every_spelling_leads_to_the_kohya_name() {
        let unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0";
        let text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj";
        for (stored, module, role) in [
            ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha", unet, Role::Alpha),
            ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight", unet, Role::Down),
            ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.up.weight", unet, Role::Up),
            (
                "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
                unet,
                Role::Down,
            ),
            (
                "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.weight",
                unet,
                Role::Up,
            ),
            ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", text, Role::Up),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
                text,
                Role::Down,
            ),
            ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", text, Role::Down),
        ] {
            assert_eq!(lora_key(stored), Some((module.to_owned(), role)), "{stored}");
        }
        assert_eq!(lora_key("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"), None);
    }

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
        assert_eq!(block("lora_te_text_model_encoder_layers_0_mlp_fc1"), "text");
    }
}
