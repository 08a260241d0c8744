//! A model as one file in LDM layout.

use std::collections::BTreeMap;

use crate::engine::Result;
use crate::engine::export::{Sums, network, with_sum};
use crate::engine::io::ldm::{Blocks, Layout, Network};
use crate::engine::io::safetensors::{Checkpoint, Tensor};
use crate::engine::io::{Folder, names};
use crate::engine::model::{Part, StableDiffusion, sd};

/// What an earlier program said of other tensors.
const STALE: [&str; 3] = ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"];

/// Tensors and metadata.
type File = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

/// The content of the file. From a file, what is beside its weights is kept; from a folder, the names change.
pub(super) fn tensors(from: &Folder, model: &StableDiffusion, sums: &Sums) -> Result<File> {
    if from.path().is_file() { of_file(&Checkpoint::open(from.path())?, sums) } else { of_folder(from, model, sums) }
}

/// Where the descriptions of a model lie.
pub(super) fn beside(from: &Folder) -> Folder {
    if from.path().is_file() { Folder::Disk(from.path().with_extension("")) } else { from.clone() }
}

fn of_file(file: &Checkpoint, sums: &Sums) -> Result<File> {
    let layout = Layout::of(file);
    let mut tensors = BTreeMap::new();
    for stored in file.entries().keys() {
        let key = layout.ours(stored).and_then(|(network, ours)| Some((part(network)?, ours)));
        tensors.insert(stored.clone(), with_sum(file, stored, key.and_then(|key| sums.get(&key)))?);
    }
    let mut metadata = file.metadata().clone();
    metadata.retain(|key, _| !STALE.contains(&key.as_str()));
    Ok((tensors, metadata))
}

fn of_folder(from: &Folder, model: &StableDiffusion, sums: &Sums) -> Result<File> {
    let layout = layout(model);
    let mut tensors = BTreeMap::new();
    for (network_of, name, files) in [
        (Network::Text, "text_encoder", sd::TEXT_WEIGHTS),
        (Network::Unet, "unet", sd::WEIGHTS),
        (Network::Vae, "vae", sd::WEIGHTS),
    ] {
        let file = network(from, name, files)?;
        for stored in file.entries().keys() {
            let ours = match network_of {
                Network::Text => names::text_encoder(stored),
                Network::Vae => names::vae(stored),
                Network::Unet => Some(stored.clone()),
            };
            let Some(ours) = ours else { continue };
            let Some(ldm) = layout.stored(network_of, &ours) else { continue };
            let sum = part(network_of).and_then(|part| sums.get(&(part, ours)));
            let mut tensor = with_sum(&file, stored, sum)?;
            // The file keeps the autoencoder's attention as 1×1 convolutions.
            if ldm.contains(".attn_1.") && tensor.shape.len() == 2 {
                tensor.shape.extend([1, 1]);
            }
            tensors.insert(ldm, tensor);
        }
    }
    let prediction = if model.schedule.prediction_type == "v_prediction" { "v" } else { "epsilon" };
    let metadata = [
        ("format", "pt"),
        ("modelspec.architecture", "stable-diffusion-v1"),
        ("modelspec.prediction_type", prediction),
    ];
    Ok((tensors, metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into()))
}

fn layout(model: &StableDiffusion) -> Layout {
    let (unet, vae) = (&model.unet.config, &model.vae.config);
    let attends = |kinds: &[String]| kinds.iter().map(|kind| kind.starts_with("Cross")).collect();
    let blocks = Blocks {
        layers: unet.layers_per_block,
        down: attends(&unet.down_block_types),
        up: attends(&unet.up_block_types),
    };
    Layout::new(blocks, vae.block_out_channels.len(), vae.layers_per_block)
}

/// The part of a network's layers that adapters can sit on.
fn part(network: Network) -> Option<Part> {
    match network {
        Network::Text => Some(Part::Text),
        Network::Unet => Some(Part::Unet),
        Network::Vae => None,
    }
}
