//! `unet/config.json`, as far as a denoiser depends on it.

use serde::Deserialize;

use crate::engine::io::ldm::Blocks;

/// `addition_embed_type` of SDXL.
pub const SDXL_EMBED: &str = "text_time";
/// How many numbers tell a picture's sizes.
pub const SIZES: usize = 6;

/// `unet/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Height and width of the latents it was made for.
    #[serde(default)]
    pub sample_size: Option<usize>,
    pub layers_per_block: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub cross_attention_dim: usize,
    /// Number of heads, in spite of the name (diffusers issue 2011).
    pub attention_head_dim: PerBlock,
    #[serde(default)]
    pub num_attention_heads: Option<PerBlock>,
    #[serde(default = "default_groups")]
    pub norm_num_groups: usize,
    #[serde(default = "default_eps")]
    pub norm_eps: f64,
    #[serde(default)]
    pub use_linear_projection: bool,
    #[serde(default = "default_depth")]
    pub transformer_layers_per_block: PerBlock,
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    /// Channels of each sinusoid that tells a size.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Width of the pooled text with all sizes.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
    #[serde(default)]
    pub act_fn: Option<String>,
    #[serde(default)]
    pub center_input_sample: Option<bool>,
    #[serde(default)]
    pub flip_sin_to_cos: Option<bool>,
    #[serde(default)]
    pub freq_shift: Option<f64>,
    #[serde(default)]
    pub class_embed_type: Option<String>,
    /// A flag, or one for each block.
    #[serde(default)]
    pub only_cross_attention: serde_json::Value,
}

fn default_groups() -> usize {
    32
}

fn default_eps() -> f64 {
    1e-5
}

fn default_depth() -> PerBlock {
    PerBlock::All(1)
}

/// One number for all blocks or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    All(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    /// Zero where the list is too short; [`Config::check`] refuses that.
    pub(super) fn at(&self, block: usize) -> usize {
        match self {
            Self::All(n) => *n,
            Self::Each(list) => list.get(block).copied().unwrap_or(0),
        }
    }
}

impl Config {
    /// Attention heads of a level.
    pub fn heads(&self, block: usize) -> usize {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(block)
    }

    /// Whether a level has attention on its way down or up, or the middle behind it has.
    fn attends(&self, level: usize) -> bool {
        let levels = self.block_out_channels.len();
        let crosses = |kinds: &[String], at: usize| kinds[at].starts_with("Cross");
        crosses(&self.down_block_types, level)
            || crosses(&self.up_block_types, levels - 1 - level)
            || level + 1 == levels
    }

    /// What names in single files depend on.
    pub fn blocks(&self) -> Blocks {
        let attends = |kinds: &[String]| kinds.iter().map(|kind| kind.starts_with("Cross")).collect();
        let (down, up) = (attends(&self.down_block_types), attends(&self.up_block_types));
        Blocks { layers: self.layers_per_block, down, up }
    }

    /// Channels of each size's sinusoid, in SDXL alone.
    pub fn sizes_width(&self) -> Option<usize> {
        self.addition_embed_type.as_ref().and(self.addition_time_embed_dim)
    }

    /// Width of the pooled text that SDXL's denoiser reads.
    pub fn pooled_width(&self) -> Option<usize> {
        self.projection_class_embeddings_input_dim?.checked_sub(SIZES * self.sizes_width()?)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let levels = self.block_out_channels.len();
        if let Some(kind) = self.addition_embed_type.as_deref().filter(|kind| *kind != SDXL_EMBED) {
            return Err(format!("it takes “{kind}” conditioning, and only that of SDXL is known here"));
        }
        let even = self.sizes_width().is_some_and(|width| width > 0 && width.is_multiple_of(2) && width <= 4096);
        if self.addition_embed_type.is_some() && !(even && self.pooled_width().is_some()) {
            return Err("the widths of its pooled text and of its sizes do not fit together".into());
        }
        let differs = [
            ("act_fn", self.act_fn.as_deref().is_some_and(|act| !["silu", "swish"].contains(&act))),
            ("center_input_sample", self.center_input_sample == Some(true)),
            ("flip_sin_to_cos", self.flip_sin_to_cos == Some(false)),
            ("freq_shift", self.freq_shift.is_some_and(|shift| shift != 0.0)),
            ("class_embed_type", self.class_embed_type.is_some()),
            ("only_cross_attention", self.only_cross_attention.to_string().contains("true")),
            ("sample_size", self.sample_size.is_some_and(|side| !(1..=4096).contains(&side))),
            ("layers_per_block", self.layers_per_block > 64),
        ];
        if let Some((field, _)) = differs.into_iter().find(|(_, differs)| *differs) {
            return Err(format!("its {field} is not that of Stable Diffusion"));
        }
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            return Err(format!("{levels} channel counts do not match its lists of blocks"));
        }
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            if self.norm_num_groups == 0 || !channels.is_multiple_of(self.norm_num_groups) {
                return Err(format!("{channels} channels do not divide into {} groups", self.norm_num_groups));
            }
            // Only where there is attention do heads and depth count.
            if !self.attends(level) {
                continue;
            }
            if self.heads(level) == 0 || !channels.is_multiple_of(self.heads(level)) {
                return Err(format!("{channels} channels do not divide into {} heads", self.heads(level)));
            }
            if self.transformer_layers_per_block.at(level) == 0 {
                return Err("a block has no transformer layers".into());
            }
        }
        let known = ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"];
        match self.down_block_types.iter().chain(&self.up_block_types).find(|kind| !known.contains(&kind.as_str())) {
            Some(kind) => Err(format!("the block “{kind}” is not one of {}", known.join(", "))),
            None => Ok(()),
        }
    }
}
