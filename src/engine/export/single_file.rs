//! A model as one file in LDM layout.

use std::collections::BTreeMap;

use crate::engine::Result;
use crate::engine::event::{Event, Watch};
use crate::engine::export::{NETWORKS, Sums, ours, with_sum};
use crate::engine::io::Folder;
use crate::engine::io::ldm::{Blocks, Layout};
use crate::engine::io::safetensors::{Checkpoint, Dtype, Tensor};
use crate::engine::model::StableDiffusion;
use crate::engine::model::single_file::MARKS;

/// What an earlier program said of other tensors.
const STALE: [&str; 3] = ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"];

/// Tensors and metadata.
type File = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

/// The content of the file. From a file, what is beside its weights is kept; from a folder, the names change.
pub(super) fn tensors(from: &Folder, model: &StableDiffusion, sums: &Sums, watch: &mut Watch<'_>) -> Result<File> {
    match from.path().is_file() {
        true => of_file(&Checkpoint::open(from.path())?, sums, watch),
        false => of_folder(from, model, sums, watch),
    }
}

/// Where the descriptions of a model lie.
pub(super) fn beside(from: &Folder) -> Folder {
    if from.path().is_file() { Folder::Disk(from.path().with_extension("")) } else { from.clone() }
}

fn of_file(file: &Checkpoint, sums: &Sums, watch: &mut Watch<'_>) -> Result<File> {
    let layout = Layout::of(file);
    let total = file.entries().len();
    watch(Event::Stage { name: "adding up the model".into(), total })?;
    let mut tensors = BTreeMap::new();
    for stored in file.entries().keys() {
        let sum = layout.ours(stored).and_then(|name| sums.get(&name));
        tensors.insert(stored.clone(), with_sum(file, stored, sum)?);
        watch(Event::Progress { done: tensors.len(), total })?;
    }
    let mut metadata = file.metadata().clone();
    metadata.retain(|key, _| !STALE.contains(&key.as_str()));
    Ok((tensors, metadata))
}

fn of_folder(from: &Folder, model: &StableDiffusion, sums: &Sums, watch: &mut Watch<'_>) -> Result<File> {
    let layout = layout(model);
    let total = NETWORKS.len();
    watch(Event::Stage { name: "adding up the model".into(), total })?;
    let mut tensors = BTreeMap::new();
    for (i, (network, folder, files)) in NETWORKS.into_iter().enumerate() {
        let file = from.checkpoint(folder, files)?;
        for stored in file.entries().keys() {
            let Some(ours) = ours(network, stored) else { continue };
            let Some(ldm) = layout.stored(network, &ours) else { continue };
            let mut tensor = with_sum(&file, stored, sums.get(&(network, ours)))?;
            // The file keeps the autoencoder's attention as 1×1 convolutions.
            if ldm.contains(".attn_1.") && tensor.shape.len() == 2 {
                tensor.shape.extend([1, 1]);
            }
            tensors.insert(ldm, tensor);
        }
        watch(Event::Progress { done: i + 1, total })?;
    }
    let marks = [model.schedule.prediction_type == "v_prediction", model.schedule.rescale_betas_zero_snr];
    for (mark, _) in MARKS.into_iter().zip(marks).filter(|(_, holds)| *holds) {
        tensors.insert(mark.to_owned(), Tensor::new(Dtype::F16, &[0], &[]));
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
