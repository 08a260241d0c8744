//! Which layers get an adapter: named groups or patterns.

use globset::GlobBuilder;
use serde::Serialize;

use crate::engine::model::{Layer, LayerId, Part};
use crate::engine::{Error, Result};

/// A name for a set of layers.
#[derive(Clone, Copy, Serialize)]
pub struct Group {
    pub name: &'static str,
    pub help: &'static str,
    #[serde(skip)]
    contains: fn(&Layer) -> bool,
}

pub const GROUPS: &[Group] = &[
    Group {
        name: "attention",
        help: "queries, keys, values and outputs of all attention",
        contains: |l| unet(l, &[".attn1.", ".attn2."]),
    },
    Group { name: "self_attention", help: "attention of the picture to itself", contains: |l| unet(l, &[".attn1."]) },
    Group {
        name: "cross_attention",
        help: "attention of the picture to the prompt",
        contains: |l| unet(l, &[".attn2."]),
    },
    Group {
        name: "keys_values",
        help: "keys and values of the attention to the prompt",
        contains: |l| unet(l, &[".attn2.to_k", ".attn2.to_v"]),
    },
    Group {
        name: "feed_forward",
        help: "the feed-forward layers between attentions",
        contains: |l| unet(l, &[".ff."]),
    },
    Group {
        name: "projections",
        help: "in- and outlet of each transformer (proj_in, proj_out)",
        contains: |l| unet(l, &[".proj_in", ".proj_out"]),
    },
    Group {
        name: "resnet",
        help: "convolutions of the residual blocks",
        contains: |l| unet(l, &[".conv1", ".conv2", ".conv_shortcut"]),
    },
    Group { name: "resample", help: "down- and up-sampling convolutions", contains: |l| unet(l, &["samplers."]) },
    Group {
        name: "time",
        help: "what the residual blocks read of the timestep",
        contains: |l| unet(l, &[".time_emb_proj"]),
    },
    Group {
        name: "text",
        help: "the text encoders' attention and feed-forward layers",
        // No program reads an adapter of the second encoder's projection.
        contains: |l| l.part.is_text() && l.path != "text_projection",
    },
];

/// Where concepts are learnt best in Stable Diffusion.
pub const DEFAULT: &str = "attention,feed_forward,projections";

fn unet(layer: &Layer, pieces: &[&str]) -> bool {
    layer.part == Part::Unet && pieces.iter().any(|piece| layer.path.contains(piece))
}

/// The layers that `targets` names: groups and patterns such as `*.attn2.to_?`, separated by commas.
///
/// Patterns match the module path (`mid_block.attentions.0.proj_in`). An entry that matches nothing is an error.
pub fn select(targets: &str, layers: &[Layer]) -> Result<Vec<LayerId>> {
    let mut chosen = vec![false; layers.len()];
    for entry in targets.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let group = GROUPS.iter().find(|group| group.name == entry);
        let pattern = match group {
            Some(_) => None,
            None => Some(
                GlobBuilder::new(entry)
                    .build()
                    .map_err(|e| {
                        Error::usage(
                            format!("The target “{entry}” is not a pattern ({e})"),
                            "Use * and ? as in file names",
                        )
                    })?
                    .compile_matcher(),
            ),
        };
        let mut any = false;
        for (layer, chosen) in layers.iter().zip(&mut chosen) {
            let hit = group.is_some_and(|group| (group.contains)(layer))
                || pattern.as_ref().is_some_and(|p| p.is_match(&layer.path));
            *chosen |= hit;
            any |= hit;
        }
        if !any {
            let names = GROUPS.iter().map(|group| group.name).collect::<Vec<_>>().join(", ");
            return Err(Error::usage(
                format!("The target “{entry}” matches no layer of this model"),
                format!("Use a group ({names}) or a pattern such as *.attn2.to_k"),
            ));
        }
    }
    let ids: Vec<LayerId> = (0..layers.len()).map(LayerId).filter(|id| chosen[id.0]).collect();
    if ids.is_empty() {
        return Err(Error::usage("No layer was chosen to train", format!("The usual targets are {DEFAULT}")));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<Layer> {
        [
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
            "mid_block.attentions.0.proj_in",
            "mid_block.resnets.0.conv1",
        ]
        .map(|path| Layer { part: Part::Unet, path: path.into(), out: 4, channels: 4, kernel: None, module: None })
        .to_vec()
    }

    #[test]
    fn groups_and_patterns_select() {
        assert_eq!(select("attention", &layers()).unwrap(), [LayerId(0)]);
        assert_eq!(select("*.conv?, projections", &layers()).unwrap(), [LayerId(1), LayerId(2)]);
        assert!(select("attn3", &layers()).is_err_and(|e| e.advice.contains("cross_attention")));
        assert!(select(" , ", &layers()).is_err());
    }
}
