//! Tables of other tools' tensor names.

use std::collections::BTreeMap;

use crate::engine::io::ldm::RESNET;

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

/// Whether a kohya module belongs to a text encoder.
pub fn is_text(module: &str) -> bool {
    [KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2].iter().any(|prefix| module.starts_with(prefix))
}

/// Whether only SDXL has a kohya module of this name: only there are layers named as LDM does.
pub fn is_sdxl(module: &str) -> bool {
    let ldm = ["input_blocks_", "middle_block_", "output_blocks_"];
    let unet = module.strip_prefix(KOHYA_UNET);
    module.starts_with(KOHYA_TEXT_2) || unet.is_some_and(|path| ldm.iter().any(|start| path.starts_with(start)))
}

/// Gives the first of two text encoders its number back: of one encoder alone both spellings are read as one.
pub fn number_first_encoder<T>(layers: &mut BTreeMap<String, T>) {
    let numbered = |module: String| match module.strip_prefix(KOHYA_TEXT) {
        Some(rest) => format!("{KOHYA_TEXT_1}{rest}"),
        None => module,
    };
    *layers = std::mem::take(layers).into_iter().map(|(module, layer)| (numbered(module), layer)).collect();
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
    let key = stored.strip_prefix("base_model.model.").unwrap_or(stored).replace(".default.weight", ".weight");
    let (module, role) = ROLES.iter().find_map(|(ending, role)| Some((key.strip_suffix(ending)?.to_owned(), *role)))?;
    if let Some(rest) = module.strip_prefix(KOHYA_TEXT_1) {
        return Some((format!("{KOHYA_TEXT}{rest}"), role));
    }
    if module.starts_with(KOHYA_UNET) || is_text(&module) {
        return Some((module, role));
    }
    let flat = |path: &str| path.replace('.', "_");
    for (part, prefix) in [("text_encoder.", KOHYA_TEXT), ("text_encoder_2.", KOHYA_TEXT_2)] {
        if let Some(path) = module.strip_prefix(part) {
            let path = path.strip_prefix("text_model.").unwrap_or(path);
            return Some((format!("{prefix}text_model_{}", flat(path)), role));
        }
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
    let ours = sdxl_path(path);
    let path = ours.as_deref().unwrap_or(path);
    for side in ["down_blocks", "up_blocks"] {
        if let Some(rest) = path.strip_prefix(side).and_then(|rest| rest.strip_prefix('_')) {
            return format!("{side}.{}", rest.split('_').next().unwrap_or_default());
        }
    }
    if path.starts_with("mid_block") { "mid_block".into() } else { path.split('_').next().unwrap_or_default().into() }
}

/// What is outside of SDXL's blocks, by LDM's and by diffusers' flat path.
const SDXL_ENDS: [(&str, &str); 6] = [
    ("input_blocks_0_0", "conv_in"),
    ("time_embed_0", "time_embedding_linear_1"),
    ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"),
    ("label_emb_0_2", "add_embedding_linear_2"),
    ("out_2", "conv_out"),
];

/// The flat path that SDXL's layers have in diffusers, from LDM's, in which a level has three slots:
/// `input_blocks_4_1_proj_in` → `down_blocks_1_attentions_0_proj_in`. `None` where it is none of LDM's.
pub fn sdxl_path(path: &str) -> Option<String> {
    const SLOTS: usize = 3;
    if let Some((_, ours)) = SDXL_ENDS.iter().find(|(ldm, _)| *ldm == path) {
        return Some((*ours).to_owned());
    }
    let number = |text: &str| -> Option<(usize, String)> {
        let (digits, rest) = text.split_once('_')?;
        Some((digits.parse().ok()?, rest.to_owned()))
    };
    let resnet = |rest: &str| {
        let inside = RESNET.iter().find(|(_, ldm)| ldm.replace('.', "_") == rest);
        inside.map_or_else(|| rest.to_owned(), |(ours, _)| (*ours).to_owned())
    };
    if let Some((module, rest)) = path.strip_prefix("middle_block_").and_then(number) {
        return Some(match module {
            1 => format!("mid_block_attentions_0_{rest}"),
            _ => format!("mid_block_resnets_{}_{}", module / 2, resnet(&rest)),
        });
    }
    let (side, first, slots) = [("down", 1, "input_blocks_"), ("up", 0, "output_blocks_")]
        .into_iter()
        .find_map(|(side, first, start)| Some((side, first, path.strip_prefix(start)?)))?;
    let (slot, rest) = number(slots)?;
    let (module, rest) = number(&rest)?;
    let slot = slot.checked_sub(first)?;
    let (level, j) = (slot / SLOTS, slot % SLOTS);
    let inside = match (rest.as_str(), module) {
        ("op" | "conv", _) => format!("{side}samplers_0_conv"),
        (_, 0) => format!("resnets_{j}_{}", resnet(&rest)),
        _ => format!("attentions_{j}_{rest}"),
    };
    Some(format!("{side}_blocks_{level}_{inside}"))
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
