//! A model as one file in LDM layout.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::engine::Result;
use crate::engine::event::{Event, Watch};
use crate::engine::export::changes::Changes;
use crate::engine::export::{NETWORKS, ours};
use crate::engine::io::Folder;
use crate::engine::io::ldm::{Layout, Network};
use crate::engine::io::safetensors::{self, Checkpoint, Dtype, Slot};
use crate::engine::model::single_file::MARKS;
use crate::engine::model::stored::Stored;

/// What an earlier program said of other tensors.
const STALE: [&str; 3] = ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"];

/// Writes the file. From a file, what is beside its weights is kept; from a folder, the names change.
pub(super) fn write(
    from: &Folder,
    model: &Stored,
    changes: &Changes<'_>,
    out: &Path,
    watch: &mut Watch<'_>,
) -> Result<()> {
    match from.path().is_file() {
        true => of_file(&Checkpoint::open(from.path())?, changes, out, watch),
        false => of_folder(from, model, changes, out, watch),
    }
}

/// Where the descriptions of a model lie.
pub(super) fn beside(from: &Folder) -> Folder {
    if from.path().is_file() { Folder::Disk(from.path().with_extension("")) } else { from.clone() }
}

fn of_file(file: &Checkpoint, changes: &Changes<'_>, out: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let layout = Layout::of(file);
    let slots: BTreeMap<String, Slot> = file
        .entries()
        .iter()
        .map(|(name, entry)| (name.clone(), Slot { dtype: entry.dtype, shape: entry.shape.clone() }))
        .collect();
    let mut metadata = file.metadata().clone();
    metadata.retain(|key, _| !STALE.contains(&key.as_str()));
    let (mut done, total) = (0, slots.len());
    watch(Event::Stage { name: "writing the model".into(), total })?;
    safetensors::save_each(out, &slots, &metadata, |stored| {
        done += 1;
        watch(Event::Progress { done, total })?;
        changes.bytes(file, stored, layout.ours(stored))
    })
}

fn of_folder(from: &Folder, model: &Stored, changes: &Changes<'_>, out: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let vae = &model.parts.vae.0;
    let layout = Layout::new(model.blocks(), vae.block_out_channels.len(), vae.layers_per_block);
    let files = NETWORKS.map(|(network, folder, files)| Ok((network, from.checkpoint(folder, files)?)));
    let files: BTreeMap<Network, Checkpoint> = files.into_iter().collect::<Result<_>>()?;
    let mut slots = BTreeMap::new();
    let mut sources: BTreeMap<String, (&Checkpoint, String, (Network, String))> = BTreeMap::new();
    for (&network, file) in &files {
        for (stored, entry) in file.entries() {
            let Some(ours) = ours(network, stored) else { continue };
            let Some(ldm) = layout.stored(network, &ours) else { continue };
            let mut slot = Slot { dtype: entry.dtype, shape: entry.shape.clone() };
            // The file keeps the autoencoder's attention as 1×1 convolutions.
            if ldm.contains(".attn_1.") && slot.shape.len() == 2 {
                slot.shape.extend([1, 1]);
            }
            slots.insert(ldm.clone(), slot);
            sources.insert(ldm, (file, stored.clone(), (network, ours)));
        }
    }
    let schedule = &model.parts.schedule;
    let is_v = schedule.prediction_type == "v_prediction";
    for (mark, _) in MARKS.into_iter().zip([is_v, schedule.rescale_betas_zero_snr]).filter(|(_, holds)| *holds) {
        slots.insert(mark.to_owned(), Slot { dtype: Dtype::F16, shape: vec![0] });
    }
    let metadata = [
        ("format", "pt"),
        ("modelspec.architecture", "stable-diffusion-v1"),
        ("modelspec.prediction_type", if is_v { "v" } else { "epsilon" }),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let (mut done, total) = (0, slots.len());
    watch(Event::Stage { name: "writing the model".into(), total })?;
    safetensors::save_each(out, &slots, &metadata, |ldm| {
        done += 1;
        watch(Event::Progress { done, total })?;
        match sources.get(ldm) {
            Some((file, stored, ours)) => changes.bytes(file, stored, Some(ours.clone())),
            None => Ok(Cow::Borrowed(&[])),
        }
    })
}
