//! A model as one file in LDM layout.

use std::collections::BTreeMap;

use crate::engine::event::{Event, Watch};
use crate::engine::export::{Sums, networks, ours, with_sum};
use crate::engine::io::detect::Family;
use crate::engine::io::ldm::Layout;
use crate::engine::io::safetensors::{Checkpoint, Dtype, Tensor};
use crate::engine::io::{Folder, open_clip};
use crate::engine::model::StableDiffusion;
use crate::engine::model::single_file::MARKS;
use crate::engine::{Error, Result};

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
        let sum = sum_of(&layout, file, stored, sums);
        tensors.insert(stored.clone(), with_sum(file, stored, sum.as_ref())?);
        watch(Event::Progress { done: tensors.len(), total })?;
    }
    let mut metadata = file.metadata().clone();
    metadata.retain(|key, _| !STALE.contains(&key.as_str()));
    Ok((tensors, metadata))
}

/// What is added to a stored tensor, in the order of its numbers.
fn sum_of(layout: &Layout, file: &Checkpoint, stored: &str, sums: &Sums) -> Option<Vec<f32>> {
    let (network, names) = layout.ours(stored)?;
    let of = |name: &String| sums.get(&(network, name.clone()));
    if names.iter().all(|name| of(name).is_none()) {
        return None;
    }
    let shape = file.shape(stored).ok()?;
    // Fused rows of which only some are changed.
    let each = shape.iter().product::<usize>() / names.len();
    let sum = names.iter().flat_map(|name| of(name).cloned().unwrap_or_else(|| vec![0.0; each])).collect::<Vec<_>>();
    Some(match (open_clip::is_transposed(stored), shape) {
        (true, &[rows, columns]) => (0..rows * columns).map(|i| sum[i % columns * rows + i / columns]).collect(),
        _ => sum,
    })
}

fn of_folder(from: &Folder, model: &StableDiffusion, sums: &Sums, watch: &mut Watch<'_>) -> Result<File> {
    let layout = layout(model);
    if layout.family() == Family::Sd2 {
        return Err(Error::new(
            "A folder of SD 2.x lacks the text encoder's last layer, which its single files hold",
            "Name a folder instead of a file",
        )
        .at(from.path()));
    }
    let networks = networks(model);
    let total = networks.len();
    watch(Event::Stage { name: "adding up the model".into(), total })?;
    let mut parts: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    for (i, (network, folder, files)) in networks.into_iter().enumerate() {
        let file = from.checkpoint(folder, files)?;
        for stored in file.entries().keys() {
            let Some(ours) = ours(network, stored) else { continue };
            let Some(ldm) = layout.stored(network, &ours) else { continue };
            let mut tensor = with_sum(&file, stored, sums.get(&(network, ours.clone())))?;
            // The file keeps the autoencoder's attention as 1×1 convolutions.
            if ldm.contains(".attn_1.") && tensor.shape.len() == 2 {
                tensor.shape.extend([1, 1]);
            }
            parts.entry(ldm).or_default().push((ours, tensor));
        }
        watch(Event::Progress { done: i + 1, total })?;
    }
    let whole = parts.into_iter().filter_map(|(ldm, parts)| Some((ldm, open_clip::fuse(parts)?)));
    let mut tensors: BTreeMap<String, Tensor> = whole.collect();
    let marks = [model.schedule.prediction_type == "v_prediction", model.schedule.rescale_betas_zero_snr];
    for (mark, _) in MARKS.into_iter().zip(marks).filter(|(_, holds)| *holds) {
        tensors.insert(mark.to_owned(), Tensor::new(Dtype::F16, &[0], &[]));
    }
    let prediction = if model.schedule.prediction_type == "v_prediction" { "v" } else { "epsilon" };
    let metadata = [
        ("format", "pt"),
        ("modelspec.architecture", layout.family().architecture(prediction == "v")),
        ("modelspec.prediction_type", prediction),
    ];
    Ok((tensors, metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into()))
}

fn layout(model: &StableDiffusion) -> Layout {
    let vae = &model.vae.config;
    Layout::new(model.family(), model.unet.config.blocks(), vae.block_out_channels.len(), vae.layers_per_block)
}
