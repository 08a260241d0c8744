//! How tools spell the key of a tensor: a layer's name, and the part of the layer.
//!
//! kohya's flat names are the common form: dots can be flattened, but not recovered without the model. Sources:
//! `kohya networks/lora.py`, `diffusers/utils/state_dict_utils.py`, `ComfyUI/comfy/lora.py`, LyCORIS, PEFT.

use crate::engine::io::names::{KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_UNET, PEFT, VISION};

/// Endings of a key, and the part they stand for. Of two that fit, the longer stands first.
const PARTS: [(&str, &str); 54] = [
    (".lora_down.weight", "lora_down"),
    (".lora_up.weight", "lora_up"),
    (".lora_mid.weight", "lora_mid"),
    (".lora_A.weight", "lora_down"),
    (".lora_B.weight", "lora_up"),
    (".lora_linear_layer.down.weight", "lora_down"),
    (".lora_linear_layer.up.weight", "lora_up"),
    (".lora.down.weight", "lora_down"),
    (".lora.up.weight", "lora_up"),
    ("_lora.down.weight", "lora_down"),
    ("_lora.up.weight", "lora_up"),
    (".alpha", "alpha"),
    (".hada_w1_a", "hada_w1_a"),
    (".hada_w1_b", "hada_w1_b"),
    (".hada_w2_a", "hada_w2_a"),
    (".hada_w2_b", "hada_w2_b"),
    (".hada_t1", "hada_t1"),
    (".hada_t2", "hada_t2"),
    (".lokr_w1", "lokr_w1"),
    (".lokr_w2", "lokr_w2"),
    (".lokr_w1_a", "lokr_w1_a"),
    (".lokr_w1_b", "lokr_w1_b"),
    (".lokr_w2_a", "lokr_w2_a"),
    (".lokr_w2_b", "lokr_w2_b"),
    (".lokr_t2", "lokr_t2"),
    (".oft_blocks", "oft_blocks"),
    (".oft_diag", "oft_diag"),
    (".rescale", "rescale"),
    (".oft_R.weight", "oft_R"),
    (".oft_R", "oft_R"),
    (".oft_R.scaled_oft", "oft_scaled"),
    (".boft_R", "boft_R"),
    (".boft_s", "boft_s"),
    (".ia3_l", "ia3_l"),
    (".on_input", "on_input"),
    (".a1.weight", "a1"),
    (".a2.weight", "a2"),
    (".b1.weight", "b1"),
    (".b2.weight", "b2"),
    (".diff", "diff"),
    (".diff_b", "diff_b"),
    (".w_norm", "w_norm"),
    (".b_norm", "b_norm"),
    (".dora_scale", "dora_scale"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".lora_magnitude_vector", "magnitude"),
    (".magnitude", "magnitude"),
    // (IA)³'s own, which ends like any model's.
    (".weight", "weight"),
    // PEFT's names of some parameters differ between versions by an ending.
    (".hada_w1_a.weight", "hada_w1_a"),
    (".hada_w1_b.weight", "hada_w1_b"),
    (".hada_w2_a.weight", "hada_w2_a"),
    (".hada_w2_b.weight", "hada_w2_b"),
    (".boft_R.weight", "boft_R"),
    (".ia3_l.weight", "ia3_l"),
];

/// What other tools put before kohya's flat name.
const FLAT: [(&str, &str); 7] = [
    (KOHYA_UNET, KOHYA_UNET),
    (KOHYA_TEXT, KOHYA_TEXT),
    (KOHYA_TEXT_1, KOHYA_TEXT),
    (KOHYA_TEXT_2, KOHYA_TEXT_2),
    (VISION, VISION),
    // kohya's OFT; its bound always holds.
    ("oft_unet_", KOHYA_UNET),
    // SimpleTuner.
    ("lycoris_", KOHYA_UNET),
];

/// What stands before a path with dots.
const DOTTED: [(&str, &str); 6] = [
    ("unet.", KOHYA_UNET),
    ("diffusion_model.", KOHYA_UNET),
    ("text_encoder.", KOHYA_TEXT),
    ("text_encoder_2.", KOHYA_TEXT_2),
    ("text_encoders.clip_l.transformer.", KOHYA_TEXT),
    ("text_encoders.clip_g.transformer.", KOHYA_TEXT_2),
];

/// Beginnings of paths in a network that a tool saved alone.
const UNET: [&str; 7] =
    ["down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding."];
const TEXT: [&str; 2] = ["text_model.", "encoder.layers."];

/// A tensor's place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// kohya's name of the layer.
    pub module: String,
    pub part: &'static str,
    /// The layer's name as the file spells it.
    pub path: String,
}

/// `None` for a key of another kind.
pub fn key(stored: &str) -> Option<Key> {
    named(stored, &module)
}

/// The same where `module` knows how layers are called.
pub fn named(stored: &str, module: &dyn Fn(&str) -> Option<String>) -> Option<Key> {
    let (path, part) = cut(stored)?;
    let module = module(path.strip_prefix(PEFT).unwrap_or(&path))?;
    // Without kohya's prefix, a name that ends so is a model's.
    let is_layers = part != "weight" || FLAT.iter().any(|(start, _)| path.starts_with(start));
    is_layers.then_some(Key { module, part, path })
}

/// The part of a layer that a key's ending names, whatever the layer: of a model of another family, too.
pub fn part(stored: &str) -> Option<&'static str> {
    cut(stored).map(|(_, part)| part)
}

/// What stands before a part, and the part.
fn cut(stored: &str) -> Option<(String, &'static str)> {
    // PEFT's name of an adapter, where one was saved with it.
    let plain = stored.strip_suffix(".default").map_or_else(|| stored.replace(".default.", "."), str::to_owned);
    let ends = PARTS.iter().filter(|(ending, _)| plain.ends_with(ending));
    let &(ending, part) = ends.max_by_key(|(ending, _)| ending.len())?;
    Some((plain.strip_suffix(ending)?.to_owned(), part))
}

/// kohya's name of a layer, however it is spelt.
pub fn module(path: &str) -> Option<String> {
    if let Some((start, ours)) = FLAT.iter().find(|(start, _)| path.starts_with(start)) {
        return Some(format!("{ours}{}", &path[start.len()..])).filter(|_| !path.contains('.'));
    }
    let (ours, path) = match DOTTED.iter().find(|(start, _)| path.starts_with(start)) {
        Some((start, ours)) => (*ours, &path[start.len()..]),
        None if UNET.iter().any(|start| path.starts_with(start)) || path == "conv_in" || path == "conv_out" => {
            (KOHYA_UNET, path)
        }
        None if TEXT.iter().any(|start| path.starts_with(start)) => (KOHYA_TEXT, path),
        None => return None,
    };
    let flat = |path: &str| path.replace('.', "_");
    if ours != KOHYA_UNET {
        let path = path.strip_prefix("text_model.").unwrap_or(path);
        return Some(format!("{ours}text_model_{}", flat(path)));
    }
    // Files of diffusers before 0.20 hang the factors on the attention processor, where `to_out` has no index.
    let path = path.replace(".processor.", ".");
    let path = if path.ends_with(".to_out") { format!("{path}.0") } else { path };
    Some(format!("{KOHYA_UNET}{}", flat(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_leads_to_the_kohya_name() {
        let unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0";
        let text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj";
        let block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1";
        for (stored, module, part) in [
            (format!("{unet}.alpha"), unet, "alpha"),
            (format!("{unet}.weight"), unet, "weight"),
            (format!("{unet}.lokr_w1_a"), unet, "lokr_w1_a"),
            (unet.replace("lora_unet", "oft_unet") + ".oft_blocks", unet, "oft_blocks"),
            (unet.replace("lora_unet", "lycoris") + ".hada_t1", unet, "hada_t1"),
            (format!("unet.{block}.to_out.0.lora_A.weight"), unet, "lora_down"),
            (format!("unet.{block}.to_out.0.lora.up.weight"), unet, "lora_up"),
            (format!("unet.{block}.processor.to_out_lora.down.weight"), unet, "lora_down"),
            (format!("base_model.model.unet.{block}.to_out.0.lora_B.weight"), unet, "lora_up"),
            (format!("base_model.model.{block}.to_out.0.lora_B.default.weight"), unet, "lora_up"),
            (format!("base_model.model.{block}.to_out.0.hada_w1_a.default"), unet, "hada_w1_a"),
            (format!("{block}.to_out.0.lora_magnitude_vector"), unet, "magnitude"),
            ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight".into(), text, "lora_up"),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight".into(),
                text,
                "lora_down",
            ),
            ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight".into(), text, "lora_down"),
            (
                "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight".into(),
                text,
                "lora_down",
            ),
            (
                "diffusion_model.input_blocks.4.1.proj_in.lora_B.weight".into(),
                "lora_unet_input_blocks_4_1_proj_in",
                "lora_up",
            ),
        ] {
            let found = key(&stored).map(|key| (key.module, key.part));
            assert_eq!(found, Some((module.to_owned(), part)), "{stored}");
        }
        for other in ["conv_in.weight", "unet.conv_in.weight", "betas", "lora_unet_x.y.lora_up.weight"] {
            assert_eq!(key(other), None, "{other}");
        }
    }
}
