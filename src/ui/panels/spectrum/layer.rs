//! A layer's place in the model, and its name in words, read off kohya's name.

use crate::engine::io::ldm;
use crate::engine::io::names::{self, KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_UNET};

/// Endings of names in the order in which data passes them, and what they mean.
const PARTS: [(&str, &str); 24] = [
    ("conv1", "first convolution"),
    ("time_emb_proj", "time step"),
    ("conv2", "second convolution"),
    ("conv_shortcut", "shortcut"),
    ("conv", "convolution"),
    ("proj_in", "projection in"),
    ("attn1_to_q", "self attention · queries"),
    ("attn1_to_k", "self attention · keys"),
    ("attn1_to_v", "self attention · values"),
    ("attn1_to_out_0", "self attention · output"),
    ("attn2_to_q", "cross attention · queries"),
    ("attn2_to_k", "cross attention · keys"),
    ("attn2_to_v", "cross attention · values"),
    ("attn2_to_out_0", "cross attention · output"),
    ("ff_net_0_proj", "feed-forward · in"),
    ("ff_net_2", "feed-forward · out"),
    ("proj_out", "projection out"),
    ("self_attn_q_proj", "self attention · queries"),
    ("self_attn_k_proj", "self attention · keys"),
    ("self_attn_v_proj", "self attention · values"),
    ("self_attn_out_proj", "self attention · output"),
    ("mlp_fc1", "feed-forward · in"),
    ("mlp_fc2", "feed-forward · out"),
    ("linear_2", "second layer"),
];

/// Parts of a block: how kohya calls them, in words, and their place among those of the same number.
const UNITS: [(&str, &str, usize); 4] = [
    ("resnets_", "residual", 0),
    ("attentions_", "attention", 1),
    ("downsamplers_", "halving", 2),
    ("upsamplers_", "doubling", 2),
];

/// Past every number.
const LAST: usize = usize::MAX;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// kohya's name.
    pub module: String,
    /// The stretch of the model: `text`, `down 0`, `mid`, `up 1`.
    pub group: String,
    /// The same where there is little room: `te`, `d0`, `m`, `u1`.
    pub short: String,
    /// Group and all that follows.
    pub words: String,
    /// Stage, block, number, unit, transformer, part.
    place: [usize; 6],
}

impl Layer {
    pub fn new(module: &str) -> Self {
        if let Some(path) = module.strip_prefix(KOHYA_UNET) {
            // SDXL's names follow another count of the same blocks.
            return Self::unet(module, ldm::flat_sdxl(path).as_deref().unwrap_or(path));
        }
        let encoders = [(KOHYA_TEXT_1, 0, "text encoder 1"), (KOHYA_TEXT_2, 1, "text encoder 2")];
        let numbered =
            encoders.iter().find_map(|&(prefix, stage, name)| Some((stage, name, module.strip_prefix(prefix)?)));
        let alone = || (0, "text encoder", module.strip_prefix(KOHYA_TEXT).unwrap_or(module));
        let (stage, name, path) = numbered.unwrap_or_else(alone);
        Self::text(module, stage, name, path)
    }

    /// In the order in which data passes the model; layers of unknown names come by name after those of their block.
    pub fn sort(layers: &mut [(Self, usize)]) {
        layers.sort_by(|(a, _), (b, _)| a.place.cmp(&b.place).then_with(|| a.module.cmp(&b.module)));
    }

    fn text(module: &str, stage: usize, encoder: &str, path: &str) -> Self {
        let numbered = path.split_once("layers_").and_then(|(_, rest)| number(rest));
        let (layer, rest) = numbered.map_or((LAST, path), |(layer, rest)| (layer, rest));
        let (part, name) = part(rest);
        let layer_name = if layer == LAST { String::new() } else { format!(" · layer {layer}") };
        Self {
            module: module.into(),
            group: "text".into(),
            short: "te".into(),
            words: format!("{encoder}{layer_name} · {name}"),
            place: [stage, 0, layer, 0, 0, part],
        }
    }

    fn unet(module: &str, path: &str) -> Self {
        let sides = [("down_blocks_", "down", 3), ("up_blocks_", "up", 5)];
        let side = sides.iter().find_map(|&(start, name, stage)| {
            let (block, rest) = number(path.strip_prefix(start)?)?;
            Some((stage, block, format!("{name} {block}"), format!("{}{block}", &name[..1]), rest))
        });
        let mid = || path.strip_prefix("mid_block_").map(|rest| (4, 0, "mid".to_owned(), "m".to_owned(), rest));
        let Some((stage, block, group, short, rest)) = side.or_else(mid) else { return Self::outside(module, path) };

        let unit = UNITS.iter().find_map(|&(start, name, unit)| {
            let (j, rest) = number(rest.strip_prefix(start)?)?;
            let name = if unit == 2 { format!(" · {name}") } else { format!(" · {name} {j}") };
            Some((if unit == 2 { LAST - 1 } else { j }, unit, name, rest))
        });
        let (j, unit, unit_name, rest) = unit.unwrap_or((LAST, 0, String::new(), rest));
        let inner = rest.strip_prefix("transformer_blocks_").and_then(number);
        let (transformer, rest) = inner.map_or_else(
            || (if rest == "proj_out" { LAST } else { 0 }, rest),
            |(transformer, rest)| (transformer + 1, rest),
        );
        let (part, name) = part(rest);
        // The first of several, or the only one, is not worth a word.
        let transformer_name = if (2..LAST).contains(&transformer) {
            format!(" · transformer {}", transformer - 1)
        } else {
            String::new()
        };
        let words = format!("{group}{unit_name}{transformer_name} · {name}");
        Self { module: module.into(), group, short, words, place: [stage, block, j, unit, transformer, part] }
    }

    /// Before the first block, or after the last.
    fn outside(module: &str, path: &str) -> Self {
        let (stage, group) = if path.contains("out") { (6, "out") } else { (2, "in") };
        let words = match path {
            "conv_in" => "first convolution".into(),
            "conv_out" => "last convolution".into(),
            "time_embedding_linear_1" => "time step · first layer".into(),
            "time_embedding_linear_2" => "time step · second layer".into(),
            _ => format!("{} · {}", names::block(module), path.replace('_', " ")),
        };
        Self { module: module.into(), group: group.into(), short: group.into(), words, place: [stage, 0, 0, 0, 0, 0] }
    }
}

/// `12_rest` as 12 and `rest`.
fn number(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('_')?;
    Some((digits.parse().ok()?, rest))
}

fn part(ending: &str) -> (usize, String) {
    let known = PARTS.iter().position(|(name, _)| *name == ending);
    known.map_or_else(|| (LAST, ending.replace('_', " ")), |place| (place, PARTS[place].1.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_words() {
        for (module, group, short, words) in [
            (
                "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v",
                "up 1",
                "u1",
                "up 1 · attention 0 · cross attention · values",
            ),
            (
                "lora_unet_down_blocks_2_attentions_1_transformer_blocks_3_ff_net_0_proj",
                "down 2",
                "d2",
                "down 2 · attention 1 · transformer 3 · feed-forward · in",
            ),
            ("lora_unet_mid_block_attentions_0_proj_in", "mid", "m", "mid · attention 0 · projection in"),
            ("lora_unet_middle_block_1_proj_in", "mid", "m", "mid · attention 0 · projection in"),
            ("lora_unet_input_blocks_3_0_op", "down 0", "d0", "down 0 · halving · convolution"),
            (
                "lora_te2_text_model_encoder_layers_3_mlp_fc1",
                "text",
                "te",
                "text encoder 2 · layer 3 · feed-forward · in",
            ),
            ("lora_unet_down_blocks_0_downsamplers_0_conv", "down 0", "d0", "down 0 · halving · convolution"),
            ("lora_unet_mid_block_resnets_1_time_emb_proj", "mid", "m", "mid · residual 1 · time step"),
            (
                "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
                "text",
                "te",
                "text encoder · layer 11 · self attention · output",
            ),
            ("lora_unet_time_embedding_linear_2", "in", "in", "time step · second layer"),
            ("lora_unet_conv_out", "out", "out", "last convolution"),
            ("something_else", "text", "te", "text encoder · something else"),
        ] {
            let layer = Layer::new(module);
            assert_eq!((layer.group.as_str(), layer.short.as_str()), (group, short), "{module}");
            assert_eq!(layer.words, words);
        }
    }

    #[test]
    fn order_is_the_models() {
        let expected = [
            "lora_te_text_model_encoder_layers_2_self_attn_q_proj",
            "lora_te_text_model_encoder_layers_2_self_attn_k_proj",
            "lora_te_text_model_encoder_layers_2_mlp_fc1",
            "lora_te_text_model_encoder_layers_10_self_attn_q_proj",
            "lora_unet_conv_in",
            "lora_unet_down_blocks_0_resnets_0_conv1",
            "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
            "lora_unet_down_blocks_0_resnets_0_conv2",
            "lora_unet_down_blocks_0_attentions_0_proj_in",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_1_attn1_to_q",
            "lora_unet_down_blocks_0_attentions_0_proj_out",
            "lora_unet_down_blocks_0_resnets_1_conv1",
            "lora_unet_down_blocks_0_downsamplers_0_conv",
            "lora_unet_down_blocks_1_resnets_0_conv1",
            "lora_unet_mid_block_resnets_0_conv1",
            "lora_unet_mid_block_attentions_0_proj_in",
            "lora_unet_mid_block_resnets_1_conv1",
            "lora_unet_up_blocks_0_resnets_0_conv1",
            "lora_unet_up_blocks_0_upsamplers_0_conv",
            "lora_unet_up_blocks_1_resnets_0_conv1",
            "lora_unet_conv_out",
        ];
        let mut layers: Vec<_> = expected.iter().enumerate().map(|(i, name)| (Layer::new(name), i)).collect();
        layers.sort_by(|(a, _), (b, _)| a.module.cmp(&b.module));
        Layer::sort(&mut layers);
        assert_eq!(layers.iter().map(|(layer, _)| layer.module.as_str()).collect::<Vec<_>>(), expected);
    }
}
