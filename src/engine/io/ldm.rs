//! Names in single-file checkpoints (the layout of latent diffusion, LDM) ↔ ours (diffusers, transformers).
//!
//! Source: `diffusers/loaders/single_file_utils.py`, kohya's `library/model_util.py` and `library/sdxl_model_util.py`. The
//! networks of SD 1.x, SD 2.x and SDXL; [`super::open_clip`] has the names inside of OpenCLIP's text encoders.

mod layout;

use std::collections::BTreeMap;
use std::sync::LazyLock;

pub use layout::{Layout, Network, Networks};

/// Blocks of a denoiser, as far as names depend on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Residual blocks on each level of the way down; one more on the way up.
    pub layers: usize,
    /// For each level of the way down, whether it has attention.
    pub down: Vec<bool>,
    /// The same of the way up, the smallest pictures first.
    pub up: Vec<bool>,
}

/// Module paths in both layouts. A name's longest known beginning is exchanged, and the rest is alike.
#[derive(Clone, Debug, Default)]
pub struct Names {
    to_ours: BTreeMap<String, String>,
    to_ldm: BTreeMap<String, String>,
}

impl Names {
    fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let (mut to_ours, mut to_ldm) = (BTreeMap::new(), BTreeMap::new());
        for (ours, ldm) in pairs {
            to_ours.insert(ldm.clone(), ours.clone());
            to_ldm.insert(ours, ldm);
        }
        Self { to_ours, to_ldm }
    }

    /// Of a module, or of a tensor in one.
    pub fn ours(&self, ldm: &str) -> Option<String> {
        exchange(&self.to_ours, ldm, '.')
    }

    /// Likewise.
    pub fn ldm(&self, ours: &str) -> Option<String> {
        exchange(&self.to_ldm, ours, '.')
    }
}

/// `between` stands between the words of a name.
fn exchange(table: &BTreeMap<String, String>, name: &str, between: char) -> Option<String> {
    let mut ends = std::iter::once(name.len()).chain(name.rmatch_indices(between).map(|(end, _)| end));
    ends.find_map(|end| Some(format!("{}{}", table.get(&name[..end])?, &name[end..])))
}

/// The flat path that a layer of SDXL's denoiser has in diffusers, from LDM's, by which kohya calls it:
/// `input_blocks_4_1_proj_in` → `down_blocks_1_attentions_0_proj_in`. `None` where it is none of LDM's.
pub fn flat_sdxl(path: &str) -> Option<String> {
    static OURS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        // Of more blocks than SDXL has: its own lie in the same places.
        let Names { to_ours, .. } = unet(&Blocks { layers: 2, down: vec![true; 4], up: vec![true; 4] });
        to_ours.into_iter().map(|(ldm, ours)| (ldm.replace('.', "_"), ours.replace('.', "_"))).collect()
    });
    exchange(&OURS, path, '_')
}

/// Inside a residual block of the denoiser; attention is alike in both layouts.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// The denoiser's modules.
pub fn unet(blocks: &Blocks) -> Names {
    let Blocks { layers, down, up } = blocks;
    // Each level takes a slot for every layer, and one more: for the step to the next level, or the third layer upwards.
    let slots = layers + 1;
    let mut pairs: Vec<(String, String)> = [
        ("conv_in", "input_blocks.0.0"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("mid_block.attentions.0", "middle_block.1"),
    ]
    .map(|(ours, ldm)| (ours.to_owned(), ldm.to_owned()))
    .into();
    let mut resnet = |ours: &str, ldm: &str| {
        pairs.extend(RESNET.map(|(mine, theirs)| (format!("{ours}.{mine}"), format!("{ldm}.{theirs}"))));
    };
    (0..2).for_each(|j| resnet(&format!("mid_block.resnets.{j}"), &format!("middle_block.{}", 2 * j)));
    for i in 0..down.len() {
        (0..*layers).for_each(|j| {
            resnet(&format!("down_blocks.{i}.resnets.{j}"), &format!("input_blocks.{}.0", slots * i + j + 1));
        });
    }
    for i in 0..up.len() {
        (0..slots).for_each(|j| {
            resnet(&format!("up_blocks.{i}.resnets.{j}"), &format!("output_blocks.{}.0", slots * i + j));
        });
    }
    for (i, &attends) in down.iter().enumerate() {
        if attends {
            pairs.extend(
                (0..*layers).map(|j| {
                    (format!("down_blocks.{i}.attentions.{j}"), format!("input_blocks.{}.1", slots * i + j + 1))
                }),
            );
        }
        if i + 1 < down.len() {
            let ldm = format!("input_blocks.{}.0.op", slots * (i + 1));
            pairs.push((format!("down_blocks.{i}.downsamplers.0.conv"), ldm));
        }
    }
    for (i, &attends) in up.iter().enumerate() {
        if attends {
            pairs.extend(
                (0..slots)
                    .map(|j| (format!("up_blocks.{i}.attentions.{j}"), format!("output_blocks.{}.1", slots * i + j))),
            );
        }
        if i + 1 < up.len() {
            // It comes after what the last slot of the level holds.
            let place = if attends { 2 } else { 1 };
            let ldm = format!("output_blocks.{}.{place}.conv", slots * i + layers);
            pairs.push((format!("up_blocks.{i}.upsamplers.0.conv"), ldm));
        }
    }
    Names::new(pairs)
}

/// Inside the autoencoder's attention. Files keep the four as 1×1 convolutions.
const VAE_ATTENTION: [(&str, &str); 5] =
    [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];

/// The autoencoder's modules, with `levels` sizes of pictures and `layers` residual blocks on each when encoding.
pub fn vae(levels: usize, layers: usize) -> Names {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let alike = |name: String| (name.clone(), name);
    pairs.extend(["quant_conv", "post_quant_conv"].map(|name| alike(name.to_owned())));
    for half in ["encoder", "decoder"] {
        pairs.extend(["conv_in", "conv_out"].map(|name| alike(format!("{half}.{name}"))));
        pairs.push((format!("{half}.conv_norm_out"), format!("{half}.norm_out")));
        pairs.extend((0..2).map(|j| (format!("{half}.mid_block.resnets.{j}"), format!("{half}.mid.block_{}", j + 1))));
        pairs.extend(VAE_ATTENTION.map(|(mine, theirs)| {
            (format!("{half}.mid_block.attentions.0.{mine}"), format!("{half}.mid.attn_1.{theirs}"))
        }));
    }
    for i in 0..levels {
        // The decoder counts its levels from the largest pictures, which it makes last.
        let (down, up) = (format!("encoder.down.{i}"), format!("decoder.up.{}", levels - 1 - i));
        let sides = [("encoder.down_blocks", down, "down", layers), ("decoder.up_blocks", up, "up", layers + 1)];
        for (ours, ldm, way, count) in sides {
            for j in 0..count {
                let (mine, theirs) = (format!("{ours}.{i}.resnets.{j}"), format!("{ldm}.block.{j}"));
                pairs.push((format!("{mine}.conv_shortcut"), format!("{theirs}.nin_shortcut")));
                pairs.push((mine, theirs));
            }
            if i + 1 < levels {
                pairs.push((format!("{ours}.{i}.{way}samplers.0.conv"), format!("{ldm}.{way}sample.conv")));
            }
        }
    }
    Names::new(pairs)
}
