//! Where the networks of a family lie in a single file, and what each of its tensors is.

use std::collections::BTreeSet;

use crate::engine::io::detect::Family;
use crate::engine::io::ldm::{Blocks, Names, unet, vae};
use crate::engine::io::{Checkpoint, names, open_clip};
use crate::engine::{Error, Result};

const UNET: &str = "model.diffusion_model.";
/// The second is ComfyUI's.
const VAE: [&str; 2] = ["first_stage_model.", "vae."];
const TEXT: &str = "cond_stage_model.transformer.";
/// Of the text encoder of SD 2.x, which is OpenCLIP's.
const OPEN_TEXT: &str = "cond_stage_model.model.";
/// Of SDXL's two.
const TEXT_1: &str = "conditioner.embedders.0.transformer.";
const TEXT_2: &str = "conditioner.embedders.1.model.";

/// What files hold beside weights: moving averages, the noise schedule written out, marks of other programs.
const BESIDE: [&str; 19] = [
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "logvar",
    "denoiser.sigmas",
    "embedding_manager",
    "first_stage_model.loss.",
    "cond_stage_model.logit_scale",
    "cond_stage_model.model.logit_scale",
    "conditioner.embedders.0.logit_scale",
    "conditioner.embedders.1.model.logit_scale",
    "cond_stage_model.text_projection",
    "cond_stage_model.transformer.text_projection",
    "cond_stage_model.transformer.logit_scale",
    "v_pred",
    "ztsnr",
];

/// The networks of a single file under our names.
#[derive(Clone, Debug)]
pub struct Networks {
    pub unet: Checkpoint,
    pub vae: Checkpoint,
    pub text: Checkpoint,
    /// In SDXL.
    pub second: Option<Checkpoint>,
}

/// One of a file's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    Unet,
    Vae,
    Text,
    /// SDXL's second text encoder.
    Text2,
}

/// What each tensor of a single file is.
pub struct Layout {
    family: Family,
    blocks: Blocks,
    unet: Names,
    vae: Names,
}

impl Layout {
    /// Of a denoiser of these blocks, and an autoencoder as [`vae`] counts it.
    pub fn new(family: Family, blocks: Blocks, vae_levels: usize, vae_layers: usize) -> Self {
        Self { family, unet: unet(&blocks), vae: vae(vae_levels, vae_layers), blocks }
    }

    /// Read off the names in the file.
    pub fn of(file: &Checkpoint) -> Self {
        let unet: BTreeSet<&str> = file.entries().keys().filter_map(|name| name.strip_prefix(UNET)).collect();
        let vae: BTreeSet<&str> = file.entries().keys().filter_map(|name| of_vae(name)).collect();
        let has = |names: &BTreeSet<&str>, start: &str| {
            names.range(start..).next().is_some_and(|name| name.starts_with(start))
        };
        let count = |names: &BTreeSet<&str>, start: &str| {
            (0..names.len()).take_while(|i| has(names, &format!("{start}{i}."))).count()
        };
        let slots = count(&unet, "input_blocks.");
        let levels = 1 + (0..slots).filter(|i| has(&unet, &format!("input_blocks.{i}.0.op."))).count();
        let layers = (slots / levels).saturating_sub(1);
        let attends = |side: &str, slot: usize| has(&unet, &format!("{side}.{slot}.1.transformer_blocks."));
        let blocks = Blocks {
            layers,
            down: (0..levels).map(|i| attends("input_blocks", (layers + 1) * i + 1)).collect(),
            up: (0..levels).map(|i| attends("output_blocks", (layers + 1) * i)).collect(),
        };
        let starts = |prefix: &str| file.entries().keys().any(|name| name.starts_with(prefix));
        let family = match () {
            () if starts("conditioner.") => Family::Sdxl,
            () if starts(OPEN_TEXT) => Family::Sd2,
            () => Family::Sd1,
        };
        Self::new(family, blocks, count(&vae, "encoder.down."), count(&vae, "encoder.down.0.block."))
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// A stored name → its network and our names, of which a fused tensor has three; `None` for what no network uses.
    pub fn ours(&self, stored: &str) -> Option<(Network, Vec<String>)> {
        if BESIDE.iter().any(|start| stored.starts_with(start)) {
            return None;
        }
        // A name that the tables do not know stays as it is, and is told as a fault of its network.
        if let Some(name) = stored.strip_prefix(UNET) {
            return Some((Network::Unet, vec![self.unet.ours(name).unwrap_or_else(|| name.to_owned())]));
        }
        if let Some(name) = of_vae(stored) {
            return Some((Network::Vae, vec![self.vae.ours(name).unwrap_or_else(|| name.to_owned())]));
        }
        let mut of_family = TEXTS.iter().filter(|(family, ..)| *family == self.family);
        let (network, prefix, name) =
            of_family.find_map(|(_, network, prefix)| Some((*network, prefix, stored.strip_prefix(prefix)?)))?;
        match is_open(prefix) {
            true => Some((network, open_clip::ours(name))),
            false => Some((network, vec![names::text_encoder(name)?])),
        }
    }

    /// The name that a single file gives to one of our tensors.
    pub fn stored(&self, network: Network, ours: &str) -> Option<String> {
        let text = || TEXTS.iter().find(|(family, of, _)| (*family, *of) == (self.family, network));
        match network {
            Network::Unet => Some(format!("{UNET}{}", self.unet.ldm(ours)?)),
            Network::Vae => Some(format!("{}{}", VAE[0], self.vae.ldm(ours)?)),
            Network::Text | Network::Text2 => {
                let (_, _, prefix) = text()?;
                let name = if is_open(prefix) { open_clip::stored(ours)? } else { ours.to_owned() };
                Some(format!("{prefix}{name}"))
            }
        }
    }

    /// The networks of the file, each under our names. A tensor that belongs nowhere is a fault.
    pub fn networks(&self, file: &Checkpoint) -> Result<Networks> {
        let prefixes = TEXTS.iter().filter(|(family, ..)| *family == self.family).map(|(_, _, prefix)| *prefix);
        let known: Vec<&str> = [UNET].into_iter().chain(VAE).chain(BESIDE).chain(prefixes).collect();
        let belongs = |stored: &str| known.iter().any(|start| stored.starts_with(start));
        let strays: Vec<&str> = file.entries().keys().map(String::as_str).filter(|name| !belongs(name)).collect();
        if let Some(first) = strays.first() {
            let counted = if strays.len() == 1 { "a tensor".to_owned() } else { format!("{} tensors", strays.len()) };
            return Err(Error::new(
                format!("The file holds {counted} that no {} model has, such as {first}", self.family.title()),
                "It is of another kind: `triptych inspect` says what it looks like",
            )
            .at(file.path()));
        }
        let part = |network| {
            file.renamed(|stored| match self.ours(stored)? {
                (of, mut ours) if of == network => ours.pop(),
                _ => None,
            })
        };
        let text = |prefix: &str| file.renamed(|stored| Some(stored.strip_prefix(prefix)?.to_owned()));
        let (first, second) = match self.family {
            Family::Sdxl => {
                let second = text(TEXT_2);
                (part(Network::Text), Some(open_clip::read(&second, open_clip::layers(&second), true)?))
            }
            Family::Sd2 => {
                // SD 2.x was taught on the last layer but one, and its folders end with it.
                let text = text(OPEN_TEXT);
                (open_clip::read(&text, open_clip::layers(&text).saturating_sub(1), false)?, None)
            }
            _ => (part(Network::Text), None),
        };
        Ok(Networks { unet: part(Network::Unet), vae: part(Network::Vae), text: first, second })
    }
}

/// Where the text encoders of a family lie.
const TEXTS: [(Family, Network, &str); 4] = [
    (Family::Sd1, Network::Text, TEXT),
    (Family::Sd2, Network::Text, OPEN_TEXT),
    (Family::Sdxl, Network::Text, TEXT_1),
    (Family::Sdxl, Network::Text2, TEXT_2),
];

/// Whether the tensors there have OpenCLIP's names.
fn is_open(prefix: &str) -> bool {
    [OPEN_TEXT, TEXT_2].contains(&prefix)
}

fn of_vae(stored: &str) -> Option<&str> {
    VAE.iter().find_map(|prefix| stored.strip_prefix(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::{Dtype, ldm};

    /// Every tensor of SD 1.5: its network, our name, the name in a single file, the shape there.
    fn sd15() -> Vec<(Network, &'static str, &'static str, Vec<usize>)> {
        let line = |line: &'static str| {
            let [network, ours, ldm, shape] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let network = match network {
                "unet" => Network::Unet,
                "vae" => Network::Vae,
                _ => Network::Text,
            };
            (network, ours, ldm, shape.split(',').map(|n| n.parse().unwrap()).collect())
        };
        include_str!("../../../../tests/reference/sd15_names.txt").lines().map(line).collect()
    }

    /// Every tensor of SDXL likewise; its autoencoder and first text encoder are SD 1.5's. Queries, keys and values of the
    /// second text encoder share a line's name in the file.
    fn sdxl() -> Vec<(Network, String, String, Vec<usize>)> {
        let line = |line: &'static str| {
            let [network, ours, ldm, shape] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let network = if network == "unet" { Network::Unet } else { Network::Text2 };
            (network, ours.to_owned(), ldm.to_owned(), shape.split(',').map(|n| n.parse().unwrap()).collect())
        };
        let alike = sd15().into_iter().filter(|(network, ..)| *network != Network::Unet);
        let alike =
            alike.map(|(network, ours, ldm, shape)| (network, ours.to_owned(), ldm.replace(TEXT, TEXT_1), shape));
        include_str!("../../../../tests/reference/sdxl_names.txt").lines().map(line).chain(alike).collect()
    }

    fn parameters(network: &Checkpoint) -> (usize, usize) {
        let count = network.entries().values().map(|entry| entry.shape.iter().product::<usize>()).sum();
        (network.entries().len(), count)
    }

    fn file(names: impl Iterator<Item = (String, Vec<usize>)>) -> Checkpoint {
        Checkpoint::shaped(names, Dtype::F16)
    }

    /// diffusers' and transformers' own list: ours ↔ theirs is one to one, and nothing is lost or counted twice.
    #[test]
    fn names_of_sd15_go_there_and_back() {
        let file = file(sd15().into_iter().map(|(_, _, ldm, shape)| (ldm.to_owned(), shape)));
        let layout = Layout::of(&file);
        for (network, ours, ldm, _) in sd15() {
            assert_eq!(layout.ours(ldm), Some((network, vec![ours.to_owned()])), "{ldm}");
            assert_eq!(layout.stored(network, ours).as_deref(), Some(ldm), "{ours}");
        }
        let Networks { unet, vae, text, .. } = layout.networks(&file).unwrap();
        let counts = [&unet, &vae, &text].map(parameters);
        assert_eq!(counts, [(686, 859_520_964), (248, 83_653_863), (196, 123_060_480)]);
        assert_eq!(file.entries().len(), 1130);
    }

    #[test]
    fn names_of_sdxl_go_there_and_back() {
        let file = file(sdxl().into_iter().map(|(_, _, ldm, shape)| (ldm, shape)));
        let layout = Layout::of(&file);
        assert_eq!((layout.family(), file.entries().len()), (Family::Sdxl, 2513));
        for (network, ours, ldm, _) in sdxl() {
            let (found, names) = layout.ours(&ldm).unwrap();
            assert!(found == network && names.contains(&ours), "{ldm}: {names:?}");
            for name in names {
                assert_eq!(layout.stored(network, &name).as_ref(), Some(&ldm), "{name}");
            }
        }
        let Networks { unet, vae, text, second } = layout.networks(&file).unwrap();
        let counts = [unet, vae, text, second.unwrap()].map(|network| parameters(&network));
        let expected = [(1680, 2_567_463_684), (248, 83_653_863), (196, 123_060_480), (517, 694_659_840)];
        assert_eq!(counts, expected);
    }

    /// kohya's flat names of SDXL's layers, back to those that follow from diffusers' paths.
    #[test]
    fn flat_names_of_sdxl_are_told_apart() {
        let file = file(sdxl().into_iter().map(|(_, _, ldm, shape)| (ldm, shape)));
        let layout = Layout::of(&file);
        let modules = sdxl().into_iter().filter(|(network, .., shape)| *network == Network::Unet && shape.len() > 1);
        for (_, ours, ..) in modules {
            let ours = ours.strip_suffix(".weight").unwrap();
            let ldm = layout.unet.ldm(ours).unwrap();
            let flat = |path: &str| path.replace('.', "_");
            assert_eq!(ldm::flat_sdxl(&flat(&ldm)), Some(flat(ours)), "{ldm}");
            assert_eq!(ldm::flat_sdxl(&flat(ours)), None, "{ours}");
        }
    }

    /// OpenCLIP-H has a layer more than SD 2.x reads, and a projection that it does not.
    #[test]
    fn sd2_ends_before_its_text_encoders_last_layer() {
        let names = sdxl().into_iter().filter(|(network, ..)| *network == Network::Text2);
        let file = file(names.map(|(_, _, ldm, shape)| (ldm.replace(TEXT_2, OPEN_TEXT), shape)));
        let layout = Layout::of(&file);
        assert_eq!(layout.family(), Family::Sd2);
        let text = layout.networks(&file).unwrap().text;
        assert_eq!(text.entries().len(), 517 - 1 - 16);
        assert!(text.entries().keys().all(|name| !name.contains("layers.31.") && !name.contains("projection")));
        let name = "text_model.encoder.layers.3.self_attn.k_proj.bias";
        let stored = "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias";
        assert_eq!(layout.stored(Network::Text, name).as_deref(), Some(stored));
    }

    /// Whatever levels there are, and wherever they have attention.
    #[test]
    fn the_tables_are_one_to_one_in_models_of_all_shapes() {
        let flags = |bits: usize, levels: usize| (0..levels).map(|level| bits >> level & 1 == 1).collect::<Vec<_>>();
        for (layers, levels) in [(1, 1), (1, 3), (2, 3), (2, 4), (3, 2)] {
            for (down, up) in (0..1 << levels).flat_map(|down| (0..1 << levels).map(move |up| (down, up))) {
                let blocks = Blocks { layers, down: flags(down, levels), up: flags(up, levels) };
                let names = unet(&blocks);
                assert_eq!(names.to_ours.len(), names.to_ldm.len(), "{blocks:?}");
                for (ours, ldm) in &names.to_ldm {
                    for end in ["weight", "transformer_blocks.7.attn1.to_out.0.bias"] {
                        let stored = format!("{ldm}.{end}");
                        let mine = names.ours(&stored).unwrap();
                        assert_eq!((&mine, names.ldm(&mine)), (&format!("{ours}.{end}"), Some(stored)), "{blocks:?}");
                    }
                }
            }
        }
    }

    /// Two levels of one layer; attention on the way down on the first only, on the way up on both.
    #[test]
    fn other_numbers_of_blocks_go_there_and_back() {
        let blocks = Blocks { layers: 1, down: vec![true, false], up: vec![true, true] };
        let (unet, vae) = (unet(&blocks), vae(2, 1));
        assert_eq!(unet.ldm("down_blocks.0.downsamplers.0.conv.bias").unwrap(), "input_blocks.2.0.op.bias");
        assert_eq!(unet.ldm("up_blocks.0.upsamplers.0.conv.bias").unwrap(), "output_blocks.1.2.conv.bias");
        assert_eq!(unet.ldm("down_blocks.1.attentions.0.norm.bias"), None);
        assert_eq!(vae.ours("decoder.up.0.block.1.norm1.bias").unwrap(), "decoder.up_blocks.1.resnets.1.norm1.bias");
        let names = [(Network::Unet, &unet, UNET), (Network::Vae, &vae, VAE[0])]
            .map(|(network, names, prefix)| (network, names.to_ldm.clone(), prefix));
        let stored = names.iter().flat_map(|(_, names, prefix)| {
            // A transformer's own tensors tell that there is attention.
            let end = |ours: &str| if ours.contains("attentions") { "transformer_blocks.0.norm1.bias" } else { "bias" };
            names.iter().map(move |(ours, ldm)| format!("{prefix}{ldm}.{}", end(ours)))
        });
        let file = file(stored.map(|name| (name, vec![1])));
        let layout = Layout::of(&file);
        assert_eq!(layout.blocks(), &blocks);
        for name in file.entries().keys() {
            let (network, ours) = layout.ours(name).unwrap();
            assert_eq!(layout.stored(network, &ours[0]).as_ref(), Some(name));
        }
    }

    #[test]
    fn what_is_no_weight_is_left_aside_and_strays_are_named() {
        let beside = [
            "model_ema.diffusion_modelinput_blocks00bias",
            "alphas_cumprod_prev",
            "sqrt_one_minus_alphas_cumprod",
            "posterior_mean_coef1",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "cond_stage_model.logit_scale",
            "embedding_manager.embedder.x",
        ];
        let weights = sd15().into_iter().map(|(_, _, ldm, shape)| (ldm.to_owned(), shape));
        let with = |more: &[&str]| {
            let more: Vec<_> = more.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
            file(weights.clone().chain(more))
        };
        let whole = with(&beside);
        let networks = Layout::of(&whole).networks(&whole).unwrap();
        let parts = [&networks.unet, &networks.vae, &networks.text];
        assert_eq!(parts.map(|part| part.entries().len()), [686, 248, 196]);
        let whole = with(&["optimizer.step"]);
        let error = Layout::of(&whole).networks(&whole).unwrap_err();
        assert!(error.what.contains("a tensor that no SD 1.x model has, such as optimizer.step"), "{error}");
    }

    /// Files from before transformers 4 have no `text_model.` level.
    #[test]
    fn old_names_of_the_text_encoder_are_read() {
        let file = file(std::iter::once(("cond_stage_model.transformer.final_layer_norm.bias".to_owned(), vec![4])));
        let ours = Layout::of(&file).ours("cond_stage_model.transformer.final_layer_norm.bias").unwrap();
        assert_eq!(ours, (Network::Text, vec!["text_model.final_layer_norm.bias".to_owned()]));
    }
}
