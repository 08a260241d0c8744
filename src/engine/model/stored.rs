//! A model's layers as its files have them: nothing is read before it is asked for.

use std::collections::BTreeMap;

use crate::engine::Result;
use crate::engine::io::Folder;
use crate::engine::io::detect::Family;
use crate::engine::io::ldm::{self, Blocks, Network};
use crate::engine::io::lora_file::relative::Base;
use crate::engine::io::names::{self, KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_UNET};
use crate::engine::io::safetensors::Checkpoint;
use crate::engine::model::parts::Parts;

pub struct Stored {
    pub parts: Parts,
    /// Module paths of everything with a weight, by kohya's name.
    paths: BTreeMap<String, Place>,
}

/// Where a module's tensors are.
pub struct Place {
    pub network: Network,
    /// Our path of it.
    pub path: String,
    /// Its path in the file.
    stored: String,
}

impl Stored {
    /// Reads configurations and headers only.
    pub fn open(folder: &Folder) -> Result<Self> {
        let parts = Parts::open(folder)?;
        let ldm = ldm::unet(&parts.unet.0.blocks());
        let mut paths = BTreeMap::new();
        for network in [Network::Unet, Network::Text, Network::Text2] {
            let all = of(&parts, network).into_iter().flat_map(|file| file.entries().keys());
            for stored in all.filter_map(|name| name.strip_suffix(".weight")) {
                // Folders may have older names.
                let named = match network {
                    Network::Text | Network::Text2 => names::text_encoder(stored),
                    _ => None,
                };
                let path = named.as_deref().unwrap_or(stored);
                // As diffusers' paths are flattened, and as kohya and ComfyUI name SDXL's layers.
                let also = match network {
                    Network::Unet => ldm.ldm(path).map(|ldm| names::flat(KOHYA_UNET, &ldm)),
                    Network::Text => Some(names::flat(KOHYA_TEXT_1, path)),
                    _ => None,
                };
                let prefix = match network {
                    Network::Text => KOHYA_TEXT,
                    Network::Text2 => KOHYA_TEXT_2,
                    Network::Unet | Network::Vae => KOHYA_UNET,
                };
                for module in [Some(names::flat(prefix, path)), also].into_iter().flatten() {
                    let place = Place { network, path: path.to_owned(), stored: stored.to_owned() };
                    paths.insert(module, place);
                }
            }
        }
        Ok(Self { parts, paths })
    }

    /// Blocks of the denoiser, as far as names depend on them.
    pub fn blocks(&self) -> Blocks {
        self.parts.unet.0.blocks()
    }

    pub fn family(&self) -> Family {
        Family::of_model(self.parts.second.is_some(), self.parts.unet.0.cross_attention_dim)
    }

    /// The shape of a layer's weight: `[out, in]`, `[out, channels, kh, kw]`, and `[n]` of a norm.
    pub fn shape(&self, module: &str) -> Option<&[usize]> {
        let Place { network, stored, .. } = self.paths.get(module)?;
        of(&self.parts, *network)?.shape(&format!("{stored}.weight")).ok()
    }

    /// Whether a layer has a bias.
    pub fn has_bias(&self, module: &str) -> bool {
        self.paths.get(module).is_some_and(|Place { network, stored, .. }| {
            of(&self.parts, *network).is_some_and(|file| file.entries().contains_key(&format!("{stored}.bias")))
        })
    }

    /// Of every layer.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.paths.keys().filter_map(|module| Some((module.clone(), self.shape(module)?.to_vec()))).collect()
    }

    pub fn place(&self, module: &str) -> Option<&Place> {
        self.paths.get(module)
    }

    /// A layer's numbers.
    pub fn base(&self, module: &str) -> Result<Option<Base>> {
        let Some(Place { network, stored, .. }) = self.paths.get(module) else { return Ok(None) };
        let Some(file) = of(&self.parts, *network) else { return Ok(None) };
        let (weight, bias) = (format!("{stored}.weight"), format!("{stored}.bias"));
        let bias = file.entries().contains_key(&bias).then(|| file.f32(&bias)).transpose()?;
        Ok(Some(Base { weight: file.f32(&weight)?, shape: file.shape(&weight)?.to_vec(), bias }))
    }
}

fn of(parts: &Parts, network: Network) -> Option<&Checkpoint> {
    match network {
        Network::Unet => Some(&parts.unet.1),
        Network::Text => Some(&parts.text.1),
        Network::Text2 => parts.second.as_ref().map(|second| &second.file),
        Network::Vae => Some(&parts.vae.1),
    }
}
