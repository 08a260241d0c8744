//! A model as one file in LDM layout.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::engine::event::{Event, Watch};
use crate::engine::export::changes::Changes;
use crate::engine::export::{networks, ours};
use crate::engine::io::detect::Family;
use crate::engine::io::ldm::{Layout, Network};
use crate::engine::io::safetensors::{self, Checkpoint, Dtype, Slot, Tensor};
use crate::engine::io::{Folder, open_clip};
use crate::engine::model::single_file::MARKS;
use crate::engine::model::stored::Stored;
use crate::engine::{Error, Result};

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

/// A tensor of ours: its file, its name there, its network and our name.
type Part<'a> = (&'a Checkpoint, &'a str, Network, String);

fn of_folder(from: &Folder, model: &Stored, changes: &Changes<'_>, out: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let vae = &model.parts.vae.0;
    let layout = Layout::new(model.family(), model.blocks(), vae.block_out_channels.len(), vae.layers_per_block);
    if layout.family() == Family::Sd2 {
        return Err(Error::new(
            "A folder of SD 2.x lacks the text encoder's last layer, which its single files hold",
            "Name a folder instead of a file",
        )
        .at(from.path()));
    }
    let files = networks(from, model)?;
    let mut parts: BTreeMap<String, Vec<Part<'_>>> = BTreeMap::new();
    for (network, _, _, file) in &files {
        for stored in file.entries().keys() {
            let Some(ours) = ours(*network, stored) else { continue };
            let Some(ldm) = layout.stored(*network, &ours) else { continue };
            parts.entry(ldm).or_default().push((file, stored, *network, ours));
        }
    }
    // As fused tensors are: of no numbers, for the shape alone.
    let shaped = |(file, stored, _, ours): &Part<'_>| {
        let entry = &file.entries()[*stored];
        (ours.clone(), Tensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes: Vec::new() })
    };
    let mut slots = BTreeMap::new();
    for (ldm, parts) in &parts {
        let fused = open_clip::fused_shape(parts.iter().map(shaped).collect());
        let Some((dtype, mut shape)) = fused else { continue };
        // The file keeps the autoencoder's attention as 1×1 convolutions.
        if ldm.contains(".attn_1.") && shape.len() == 2 {
            shape.extend([1, 1]);
        }
        slots.insert(ldm.clone(), Slot { dtype, shape });
    }
    let schedule = &model.parts.schedule;
    let is_v = schedule.prediction_type == "v_prediction";
    for (mark, _) in MARKS.into_iter().zip([is_v, schedule.rescale_betas_zero_snr]).filter(|(_, holds)| *holds) {
        slots.insert(mark.to_owned(), Slot { dtype: Dtype::F16, shape: vec![0] });
    }
    let metadata = [
        ("format", "pt"),
        ("modelspec.architecture", layout.family().architecture(is_v)),
        ("modelspec.prediction_type", if is_v { "v" } else { "epsilon" }),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let (mut done, total) = (0, slots.len());
    watch(Event::Stage { name: "writing the model".into(), total })?;
    safetensors::save_each(out, &slots, &metadata, |ldm| {
        done += 1;
        watch(Event::Progress { done, total })?;
        match parts.get(ldm).map(Vec::as_slice) {
            None => Ok(Cow::Borrowed(&[])),
            Some([part]) if !open_clip::is_transposed(ldm) => changed(changes, part),
            Some(parts) => {
                let tensor = |part: &Part<'_>| {
                    let (ours, shaped) = shaped(part);
                    Ok((ours, Tensor { bytes: changed(changes, part)?.into_owned(), ..shaped }))
                };
                let fused = open_clip::fuse(parts.iter().map(tensor).collect::<Result<_>>()?);
                Ok(Cow::Owned(fused.map_or_else(Vec::new, |tensor| tensor.bytes)))
            }
        }
    })
}

fn changed<'a>(changes: &Changes<'_>, (file, stored, network, ours): &Part<'a>) -> Result<Cow<'a, [u8]>> {
    changes.bytes(file, stored, Some((*network, vec![ours.clone()])))
}
