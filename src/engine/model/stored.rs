//! A model's layers as its files have them: nothing is read before it is asked for.

use std::collections::BTreeMap;

use crate::engine::Result;
use crate::engine::io::Folder;
use crate::engine::io::ldm::{Blocks, Network};
use crate::engine::io::lora_file::relative::Base;
use crate::engine::io::names::{KOHYA_TEXT, KOHYA_UNET};
use crate::engine::io::safetensors::Checkpoint;
use crate::engine::model::parts::Parts;

pub struct Stored {
    pub parts: Parts,
    /// Module paths of everything with a weight, by kohya's name.
    paths: BTreeMap<String, (Network, String)>,
}

impl Stored {
    /// Reads configurations and headers only.
    pub fn open(folder: &Folder) -> Result<Self> {
        let parts = Parts::open(folder)?;
        let mut paths = BTreeMap::new();
        for network in [Network::Unet, Network::Text] {
            let names = of(&parts, network).entries().keys();
            for path in names.filter_map(|name| name.strip_suffix(".weight")) {
                paths.insert(module(network, path), (network, path.to_owned()));
            }
        }
        Ok(Self { parts, paths })
    }

    /// Blocks of the denoiser, as far as names depend on them.
    pub fn blocks(&self) -> Blocks {
        let config = &self.parts.unet.0;
        let attends = |kinds: &[String]| kinds.iter().map(|kind| kind.starts_with("Cross")).collect();
        Blocks {
            layers: config.layers_per_block,
            down: attends(&config.down_block_types),
            up: attends(&config.up_block_types),
        }
    }

    /// The shape of a layer's weight: `[out, in]`, `[out, channels, kh, kw]`, and `[n]` of a norm.
    pub fn shape(&self, module: &str) -> Option<&[usize]> {
        let (network, path) = self.paths.get(module)?;
        of(&self.parts, *network).shape(&format!("{path}.weight")).ok()
    }

    /// Of every layer.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.paths.keys().filter_map(|module| Some((module.clone(), self.shape(module)?.to_vec()))).collect()
    }

    /// The network of a layer, and our path of it there.
    pub fn path(&self, module: &str) -> Option<&(Network, String)> {
        self.paths.get(module)
    }

    /// A layer's numbers.
    pub fn base(&self, module: &str) -> Result<Option<Base>> {
        let Some((network, path)) = self.paths.get(module) else { return Ok(None) };
        let file = of(&self.parts, *network);
        let (weight, bias) = (format!("{path}.weight"), format!("{path}.bias"));
        let bias = file.entries().contains_key(&bias).then(|| file.f32(&bias)).transpose()?;
        Ok(Some(Base { weight: file.f32(&weight)?, shape: file.shape(&weight)?.to_vec(), bias }))
    }
}

/// kohya's name of a module.
pub fn module(network: Network, path: &str) -> String {
    let prefix = if network == Network::Text { KOHYA_TEXT } else { KOHYA_UNET };
    format!("{prefix}{}", path.replace('.', "_"))
}

fn of(parts: &Parts, network: Network) -> &Checkpoint {
    match network {
        Network::Unet => &parts.unet.1,
        Network::Text => &parts.text.1,
        Network::Vae => &parts.vae.1,
    }
}
