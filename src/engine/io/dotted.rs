//! Paths with dots from kohya's flat names.
//!
//! Flattening forgets which lines stood for dots; the words of which module names are made tell it again.

/// Names that hold a line themselves, in diffusers', transformers' and LDM's networks.
const NAMES: [&str; 43] = [
    "add_embedding",
    "conv_in",
    "conv_norm_out",
    "conv_out",
    "conv_shortcut",
    "down_blocks",
    "emb_layers",
    "final_layer_norm",
    "group_norm",
    "in_layers",
    "input_blocks",
    "k_proj",
    "label_emb",
    "layer_norm1",
    "layer_norm2",
    "linear_1",
    "linear_2",
    "mid_block",
    "middle_block",
    "out_layers",
    "out_proj",
    "output_blocks",
    "position_embedding",
    "proj_in",
    "proj_out",
    "q_proj",
    "self_attn",
    "skip_connection",
    "text_model",
    "text_projection",
    "time_emb_proj",
    "time_embed",
    "time_embedding",
    "to_k",
    "to_out",
    "to_q",
    "to_v",
    "token_embedding",
    "transformer_blocks",
    "up_blocks",
    "v_proj",
    "visual_projection",
    "post_quant_conv",
];

/// `mid_block_attentions_0_proj_in` → `mid_block.attentions.0.proj_in`.
pub fn dotted(flat: &str) -> String {
    let mut words = Vec::new();
    let mut rest = flat;
    while !rest.is_empty() {
        let starts =
            |name: &str| rest.strip_prefix(name).is_some_and(|after| after.is_empty() || after.starts_with('_'));
        let known = NAMES.iter().filter(|name| starts(name)).max_by_key(|name| name.len()).map(|name| name.len());
        let end = known.unwrap_or_else(|| rest.find('_').unwrap_or(rest.len()));
        words.push(&rest[..end]);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    words.join(".")
}

#[cfg(test)]
mod tests {
    use super::dotted;

    /// Every module of Stable Diffusion 1.5, in both layouts.
    #[test]
    fn flattened_names_of_a_whole_model_come_back() {
        let names = include_str!("../../../tests/reference/sd15_names.txt").lines().filter_map(|line| {
            let [network, ours, ldm, _] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
            (network != "vae").then_some([ours, ldm.strip_prefix("model.diffusion_model.").unwrap_or(ours)])
        });
        let mut count = 0;
        for name in names.flatten() {
            let module = name.rsplit_once('.').unwrap().0;
            assert_eq!(dotted(&module.replace('.', "_")), module);
            count += 1;
        }
        assert!(count > 1500, "{count}");
    }
}
