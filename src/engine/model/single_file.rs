//! A model in one file: its networks, and their configurations as far as the tensors tell them.
//!
//! Shapes tell channels, layers and widths. Heads and groups of a norm leave no trace in them, so a rule gives those; a
//! folder of the file's name beside it (`model/unet/config.json` beside `model.safetensors`) has the last word.

use std::path::Path;

use crate::engine::io::detect::Family;
use crate::engine::io::ldm::Layout;
use crate::engine::io::{Checkpoint, Folder};
use crate::engine::model::parts::{Parts, SecondText};
use crate::engine::model::sd::ScheduleConfig;
use crate::engine::model::unet::PerBlock;
use crate::engine::model::{clip, tokenizer, unet, vae};
use crate::engine::{Error, Result};

/// Channels on each level of SD 1.x and 2.x, and of SDXL.
const KNOWN: [&[usize]; 2] = [&[320, 640, 1280, 1280], &[320, 640, 1280]];
/// Of every norm in Stable Diffusion.
const GROUPS: usize = 32;
/// Of every attention in SD 1.x.
const HEADS: usize = 8;
/// Channels of an attention head in CLIP, SD 2.x and SDXL.
const WIDE_HEAD: usize = 64;
/// Narrower heads than this are in no model, so a small denoiser has fewer of them.
const NARROWEST_HEAD: usize = 8;

/// Of OpenAI's CLIP, and of OpenCLIP.
const QUICK_GELU: &str = "quick_gelu";
const GELU: &str = "gelu";
/// With which OpenCLIP fills prompts up: the first word of its vocabulary.
const OPEN_CLIP_PAD: &str = "!";
/// Latents of SDXL's autoencoder times this have about unit variance.
const SDXL_SCALING: f64 = 0.13025;

/// Opens a file in LDM layout.
pub fn open(path: &Path) -> Result<Parts> {
    let file = Checkpoint::open(path)?;
    let layout = Layout::of(&file);
    if let Some(mark) = OTHER_SCHEDULES.iter().find(|mark| file.entries().contains_key(**mark)) {
        return Err(Error::new(
            format!(
                "This model was taught on a schedule of its own, as CosXL and Playground 2.5 were ({mark} says so)"
            ),
            "Choose a model made from SDXL itself",
        )
        .at(path));
    }
    let networks = layout.networks(&file)?;
    let beside = Folder::Disk(path.with_extension(""));
    let schedule = config(&beside, "scheduler/scheduler_config.json", || schedule(&file, &networks.unet, &layout))?;
    let second = networks.second.map(|file| -> Result<SecondText> {
        let config = config(&beside, "text_encoder_2/config.json", || text(&file, GELU))?;
        Ok(SecondText { config, file, pad: tokenizer::pad_token(&beside, "tokenizer_2") })
    });
    let second = second.transpose()?;
    let pooled = second.as_ref().map(|second| second.config.projection_dim);
    let read_off = denoiser(&networks.unet, &layout, pooled, schedule.prediction_type == "v_prediction");
    let act = if layout.family() == Family::Sd2 { GELU } else { QUICK_GELU };
    let channels = &read_off.block_out_channels;
    if !KNOWN.contains(&&channels[..]) && !beside.has("unet/config.json") {
        tracing::warn!(
            "{} has other sizes than Stable Diffusion and does not say how many heads its attention has: {} are assumed. \
             If its pictures are wrong, put its unet/config.json and vae/config.json into the folder {}",
            path.display(),
            (0..channels.len()).map(|level| read_off.heads(level).to_string()).collect::<Vec<_>>().join(", "),
            beside.path().display(),
        );
    }
    Ok(Parts {
        text: (config(&beside, "text_encoder/config.json", || text(&networks.text, act))?, networks.text),
        unet: (config(&beside, "unet/config.json", || read_off)?, networks.unet),
        vae: (config(&beside, "vae/config.json", || autoencoder(&networks.vae, layout.family()))?, networks.vae),
        second,
        schedule,
        beside,
        // SD 2.x has OpenCLIP's text encoder, which fills prompts up as SDXL's second one does.
        pad: (layout.family() == Family::Sd2).then_some(OPEN_CLIP_PAD),
        is_single: true,
    })
}

fn config<T: serde::de::DeserializeOwned>(beside: &Folder, name: &str, read_off: impl FnOnce() -> T) -> Result<T> {
    if beside.has(name) { beside.json(name) } else { Ok(read_off()) }
}

/// Empty tensors by which files say that the model predicts v, and was taught with zero terminal SNR (A1111, ComfyUI).
pub const MARKS: [&str; 2] = ["v_pred", "ztsnr"];

/// Tensors of models whose noise follows another schedule.
const OTHER_SCHEDULES: [&str; 3] = ["edm_vpred.sigma_max", "edm_mean", "edm_std"];

/// The schedule of Stable Diffusion. No weight of SD 1.x and SDXL tells what the model predicts. What says it, in this
/// order: a `model.yaml` beside the file, which the artist put there (A1111 and Forge read it so), an empty tensor that a
/// program put there, and the metadata, which merged files inherit from others.
fn schedule(file: &Checkpoint, unet: &Checkpoint, layout: &Layout) -> ScheduleConfig {
    let yaml = std::fs::read_to_string(file.path().with_extension("yaml")).unwrap_or_default();
    let stated = yaml.lines().find_map(|line| line.trim().strip_prefix("parameterization:"));
    let [v, zero_snr] = MARKS.map(|mark| file.entries().contains_key(mark));
    let stated = stated.or(v.then_some("v"));
    let stated = stated.or_else(|| file.metadata().get("modelspec.prediction_type").map(String::as_str));
    let stated = stated.map(|kind| kind.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']));
    let prediction_type = match stated {
        None if layout.family() == Family::Sd2 && shows_v(unet) => "v_prediction".to_owned(),
        None | Some("" | "eps" | "epsilon") => "epsilon".to_owned(),
        Some("v" | "v_prediction") => "v_prediction".to_owned(),
        // Told as unknown where the schedule is made.
        Some(other) => other.to_owned(),
    };
    let rescale_betas_zero_snr = zero_snr && prediction_type == "v_prediction";
    let usual = ScheduleConfig { steps_offset: 1, set_alpha_to_one: false, ..ScheduleConfig::default() };
    ScheduleConfig { prediction_type, rescale_betas_zero_snr, ..usual }
}

/// Whether an SD 2.x denoiser predicts v: a norm that has grown far more than where noise is predicted (ComfyUI,
/// `comfy/supported_models.py`).
fn shows_v(unet: &Checkpoint) -> bool {
    let norm = unet.f32("up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias").unwrap_or_default();
    let n = norm.len() as f32;
    let mean = norm.iter().sum::<f32>() / n;
    let variance = norm.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / (n - 1.0);
    variance.sqrt() > 0.09
}

/// Size of an axis; 0 where the tensor is missing, which the loader will say.
fn size(file: &Checkpoint, name: &str, axis: usize) -> usize {
    file.shape(name).ok().and_then(|shape| shape.get(axis)).copied().unwrap_or(0)
}

/// How many numbered modules follow `start`.
fn count(file: &Checkpoint, start: &str) -> usize {
    let has = |i: &usize| {
        let start = format!("{start}{i}.");
        file.entries().range(start.clone()..).next().is_some_and(|(name, _)| name.starts_with(&start))
    };
    (0..file.entries().len()).take_while(has).count()
}

fn denoiser(file: &Checkpoint, layout: &Layout, pooled: Option<usize>, predicts_v: bool) -> unet::Config {
    let blocks = layout.blocks();
    let levels = blocks.down.len();
    let channels: Vec<usize> =
        (0..levels).map(|i| size(file, &format!("down_blocks.{i}.resnets.0.conv1.weight"), 0)).collect();
    let block = |attends: &bool, way: &str| format!("{}{way}Block2D", if *attends { "CrossAttn" } else { "" });
    let middle = "mid_block.attentions.0";
    let projection = file.shape(&format!("{middle}.proj_in.weight")).unwrap_or_default();
    let depth = |i: usize| count(file, &format!("down_blocks.{i}.attentions.0.transformer_blocks."));
    // A level without attention is asked for its depth only where the middle has its width.
    let middle_depth = count(file, &format!("{middle}.transformer_blocks."));
    let is_linear = projection.len() == 2;
    let added = size(file, "add_embedding.linear_1.weight", 1);
    unet::Config {
        in_channels: size(file, "conv_in.weight", 1),
        out_channels: size(file, "conv_out.weight", 0),
        sample_size: Some(match (layout.family(), predicts_v) {
            (Family::Sdxl, _) => 128,
            (Family::Sd2, true) => 96,
            _ => 64,
        }),
        layers_per_block: blocks.layers,
        down_block_types: blocks.down.iter().map(|attends| block(attends, "Down")).collect(),
        up_block_types: blocks.up.iter().map(|attends| block(attends, "Up")).collect(),
        cross_attention_dim: size(file, &format!("{middle}.transformer_blocks.0.attn2.to_k.weight"), 1),
        // Where the projections are linear layers, heads are of one width; before that, of one number.
        attention_head_dim: match is_linear {
            true => PerBlock::Each(channels.iter().map(|&channels| wide_heads(channels)).collect()),
            false => PerBlock::All(heads(channels.first().copied().unwrap_or(0))),
        },
        num_attention_heads: None,
        norm_num_groups: groups(&channels),
        norm_eps: 1e-5,
        use_linear_projection: is_linear,
        transformer_layers_per_block: PerBlock::Each(
            (0..levels).map(|i| if blocks.down[i] { depth(i) } else { middle_depth }).collect(),
        ),
        block_out_channels: channels,
        addition_embed_type: pooled.map(|_| unet::SDXL_EMBED.to_owned()),
        addition_time_embed_dim: pooled.map(|pooled| added.saturating_sub(pooled) / unet::SIZES),
        projection_class_embeddings_input_dim: pooled.map(|_| added),
        class_embed_type: None,
        act_fn: None,
        center_input_sample: None,
        flip_sin_to_cos: None,
        freq_shift: None,
        only_cross_attention: serde_json::Value::Null,
    }
}

/// SD 1.x's eight, or as many as leave each the narrowest width.
fn heads(channels: usize) -> usize {
    (channels / NARROWEST_HEAD).clamp(1, HEADS)
}

/// As many as leave each 64 channels, or the narrowest width.
fn wide_heads(channels: usize) -> usize {
    let head = if channels.is_multiple_of(WIDE_HEAD) { WIDE_HEAD } else { NARROWEST_HEAD };
    (channels / head).max(1)
}

/// SD 1.x's 32, or as many as leave each two channels.
fn groups(channels: &[usize]) -> usize {
    let narrowest = channels.iter().copied().min().unwrap_or(0);
    (narrowest / 2).clamp(1, GROUPS)
}

fn autoencoder(file: &Checkpoint, family: Family) -> vae::Config {
    let levels = count(file, "encoder.down_blocks.");
    let channels: Vec<usize> =
        (0..levels).map(|i| size(file, &format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"), 0)).collect();
    vae::Config {
        in_channels: size(file, "encoder.conv_in.weight", 1),
        out_channels: size(file, "decoder.conv_out.weight", 0),
        latent_channels: size(file, "post_quant_conv.weight", 0),
        layers_per_block: count(file, "encoder.down_blocks.0.resnets."),
        norm_num_groups: groups(&channels),
        block_out_channels: channels,
        scaling_factor: if family == Family::Sdxl { SDXL_SCALING } else { vae::default_scaling() },
        shift_factor: None,
    }
}

fn text(file: &Checkpoint, act: &str) -> clip::Config {
    let width = size(file, "text_model.embeddings.token_embedding.weight", 1);
    clip::Config {
        vocab_size: size(file, "text_model.embeddings.token_embedding.weight", 0),
        hidden_size: width,
        intermediate_size: size(file, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers: count(file, "text_model.encoder.layers."),
        num_attention_heads: wide_heads(width),
        max_position_embeddings: size(file, "text_model.embeddings.position_embedding.weight", 0),
        hidden_act: act.to_owned(),
        layer_norm_eps: clip::default_eps(),
        projection_dim: size(file, "text_projection.weight", 0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::io::Dtype;
    use crate::engine::io::safetensors::{Tensor, save};

    /// The configuration that diffusers and transformers give SD 1.5 is read off its shapes.
    #[test]
    fn sd15_is_recognised_by_its_shapes() {
        let names = include_str!("../../../tests/reference/sd15_names.txt").lines().map(|line| {
            let mut words = line.split(' ').skip(2);
            let (name, shape) = (words.next().unwrap(), words.next().unwrap());
            (name.to_owned(), shape.split(',').map(|n| n.parse().unwrap()).collect())
        });
        let file = Checkpoint::shaped(names, Dtype::F16);
        let layout = Layout::of(&file);
        let networks = layout.networks(&file).unwrap();
        let unet = denoiser(&networks.unet, &layout, None, false);
        assert_eq!(unet.block_out_channels, [320, 640, 1280, 1280]);
        assert_eq!((unet.in_channels, unet.out_channels, unet.layers_per_block), (4, 4, 2));
        assert_eq!((unet.cross_attention_dim, unet.norm_num_groups), (768, 32));
        assert_eq!((0..4).map(|level| unet.heads(level)).collect::<Vec<_>>(), [8; 4]);
        assert_eq!(unet.down_block_types[2..], ["CrossAttnDownBlock2D", "DownBlock2D"]);
        assert_eq!(unet.up_block_types[..2], ["UpBlock2D", "CrossAttnUpBlock2D"]);
        assert!(!unet.use_linear_projection);
        let vae = autoencoder(&networks.vae, layout.family());
        assert_eq!((&vae.block_out_channels[..], vae.layers_per_block), (&[128, 256, 512, 512][..], 2));
        assert_eq!((vae.in_channels, vae.out_channels, vae.latent_channels, vae.norm_num_groups), (3, 3, 4, 32));
        let text = text(&networks.text, QUICK_GELU);
        assert_eq!((text.vocab_size, text.hidden_size, text.intermediate_size), (49_408, 768, 3072));
        assert_eq!((text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings), (12, 12, 77));
    }

    /// The tensors of SDXL and, out of others' lists, of SD 2.x; diffusers' and transformers' configurations of them.
    #[test]
    fn sdxl_and_sd2_are_recognised_by_their_shapes() {
        let lines = |text: &'static str| {
            text.lines().map(|line| {
                let [network, _, name, shape] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
                let shape: Vec<usize> = shape.split(',').map(|n| n.parse().unwrap()).collect();
                (network, name.to_owned(), shape)
            })
        };
        let sd15 = || lines(include_str!("../../../tests/reference/sd15_names.txt"));
        let xl = || lines(include_str!("../../../tests/reference/sdxl_names.txt"));
        let first =
            |name: String| name.replace("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.");
        let rest = sd15().filter(|(network, ..)| *network != "unet").map(|(_, name, shape)| (first(name), shape));
        let file = Checkpoint::shaped(xl().map(|(_, name, shape)| (name, shape)).chain(rest), Dtype::F16);
        let layout = Layout::of(&file);
        let networks = layout.networks(&file).unwrap();
        let second = text(&networks.second.unwrap(), GELU);
        assert_eq!((second.hidden_size, second.intermediate_size, second.num_hidden_layers), (1280, 5120, 32));
        assert_eq!((second.num_attention_heads, second.projection_dim), (20, 1280));
        let unet = denoiser(&networks.unet, &layout, Some(1280), false);
        assert_eq!(unet.block_out_channels, [320, 640, 1280]);
        assert_eq!((1..3).map(|level| unet.heads(level)).collect::<Vec<_>>(), [10, 20]);
        let PerBlock::Each(depth) = &unet.transformer_layers_per_block else { panic!("one depth for all") };
        assert_eq!(depth[1..], [2, 10]);
        assert_eq!((unet.cross_attention_dim, unet.use_linear_projection, unet.sample_size), (2048, true, Some(128)));
        assert_eq!((unet.sizes_width(), unet.pooled_width()), (Some(256), Some(1280)));
        assert!((autoencoder(&networks.vae, Family::Sdxl).scaling_factor - 0.13025).abs() < 1e-9);

        let linear = |(network, name, mut shape): (&str, String, Vec<usize>)| {
            if name.contains(".proj_") {
                shape.truncate(2);
            } else if name.contains("attn2.to_k.weight") || name.contains("attn2.to_v.weight") {
                shape[1] = 1024;
            }
            (network != "text").then_some((name, shape))
        };
        let of_text = xl()
            .filter(|(network, ..)| *network == "text2")
            .map(|(_, name, shape)| (name.replace("conditioner.embedders.1.model.", "cond_stage_model.model."), shape));
        let file = Checkpoint::shaped(sd15().filter_map(linear).chain(of_text), Dtype::F16);
        let layout = Layout::of(&file);
        let networks = layout.networks(&file).unwrap();
        assert_eq!((layout.family(), text(&networks.text, GELU).num_hidden_layers), (Family::Sd2, 31));
        let unet = denoiser(&networks.unet, &layout, None, true);
        assert_eq!((0..4).map(|level| unet.heads(level)).collect::<Vec<_>>(), [5, 10, 20, 20]);
        assert_eq!((unet.cross_attention_dim, unet.use_linear_projection, unet.sample_size), (1024, true, Some(96)));
        assert_eq!(unet.pooled_width(), None);
    }

    #[test]
    fn marks_metadata_and_a_yaml_beside_it_tell_what_is_predicted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let one = BTreeMap::from([("a".to_owned(), Tensor::new(Dtype::F32, &[1], &[0.0]))]);
        let marked = MARKS.map(|mark| (mark.to_owned(), Tensor::new(Dtype::F16, &[0], &[]))).into();
        let told = |file: &Checkpoint| schedule(file, file, &Layout::of(file));
        let schedule_of = |tensors: &BTreeMap<String, Tensor>, metadata: Option<&str>, yaml: Option<&str>| {
            let metadata = metadata.map(|kind| ("modelspec.prediction_type".to_owned(), kind.to_owned()));
            save(&path, tensors, &metadata.into_iter().collect()).unwrap();
            let beside = path.with_extension("yaml");
            match yaml {
                Some(yaml) => std::fs::write(beside, yaml).unwrap(),
                None => drop(std::fs::remove_file(beside)),
            }
            told(&Checkpoint::open(&path).unwrap())
        };
        let predicted = |metadata, yaml| schedule_of(&one, metadata, yaml).prediction_type;
        assert_eq!(predicted(None, None), "epsilon", "no tensor tells, and v is never guessed");
        assert_eq!(predicted(Some("v"), None), "v_prediction");
        assert_eq!(predicted(Some("epsilon"), None), "epsilon");
        assert_eq!(predicted(None, Some("model:\n  params:\n    parameterization: \"v\"  # note\n")), "v_prediction");
        assert_eq!(predicted(Some("v"), Some("model:\n  params:\n    parameterization: eps\n")), "epsilon");
        assert_eq!(predicted(Some("x0"), None), "x0");
        // A tensor is there on purpose; metadata may be another model's.
        for metadata in [None, Some("epsilon")] {
            let schedule = schedule_of(&marked, metadata, None);
            assert!(schedule.prediction_type == "v_prediction" && schedule.rescale_betas_zero_snr, "{metadata:?}");
        }
        let schedule = schedule_of(&marked, None, Some("parameterization: eps"));
        assert!(schedule.prediction_type == "epsilon" && !schedule.rescale_betas_zero_snr);
    }
}
