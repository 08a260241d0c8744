//! Adapters in the files of other tools.

mod diffusers;
mod kohya;
mod loss;
mod low_rank;
pub mod peft;
pub mod thumbnail;
mod whole;

use std::collections::BTreeSet;
use std::path::Path;

use crate::engine::event::{Event, Watch};
use crate::engine::io::Dtype;
use crate::engine::io::detect::Family;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::words::stem;
use crate::engine::{Error, Result};

pub use crate::engine::convert::loss::Loss;
pub use crate::engine::io::lora_file::paths::Paths;

/// A kind of file that other tools read.
pub struct Format {
    pub name: &'static str,
    /// Whose it is, and who loads it.
    pub title: &'static str,
    /// Gives layers the form that the format has for them, and names those whose rank had to be cut.
    layers: fn(&mut LoraFile, usize, &mut Watch<'_>) -> Result<BTreeSet<String>>,
    /// Whether differences of biases and norms have a place in it.
    pub beside: bool,
    /// Whether the adapter's words have.
    pub words: bool,
    write: fn(&LoraFile, &Paths, &Path) -> Result<()>,
}

pub const FORMATS: &[Format] = &[
    Format {
        name: "kohya",
        title: "one file of low-rank pairs under flat names: kohya's scripts, A1111, Forge, ComfyUI, diffusers",
        layers: kohya::layers,
        beside: false,
        words: true,
        write: one_file,
    },
    Format {
        name: "diffusers",
        title: "one file as diffusers' training scripts write it; the scale is folded into the write side",
        layers: diffusers::layers,
        beside: false,
        words: false,
        write: diffusers::write,
    },
    Format {
        name: "peft",
        title: "a folder with unet/ and text_encoder/, each for PeftModel.from_pretrained",
        layers: low_rank::cut,
        beside: false,
        words: false,
        write: peft::write,
    },
    Format {
        name: "comfy",
        title: "one file under ComfyUI's generic names",
        layers: low_rank::cut,
        beside: false,
        words: true,
        write: diffusers::write_comfy,
    },
    Format {
        name: "lycoris",
        title: "low-rank pairs and LoKr as they are, everything else as whole differences: LyCORIS, A1111, Forge, ComfyUI",
        layers: |_, _, _| Ok(BTreeSet::new()),
        beside: true,
        words: true,
        write: one_file,
    },
    Format {
        name: "full",
        title: "a whole difference for each layer: LyCORIS, A1111, Forge, ComfyUI",
        layers: |file, _, _| {
            whole::multiply_out(file);
            Ok(BTreeSet::new())
        },
        beside: true,
        words: true,
        write: one_file,
    },
];

pub fn format(name: &str) -> Result<&'static Format> {
    FORMATS.iter().find(|format| format.name == name).ok_or_else(|| {
        let names = FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no format “{name}”"), format!("Choose among {names}"))
    })
}

/// Writes `file` as `format` at `out`; pairs wider than `rank`, and whole differences where the format has none, keep
/// their `rank` strongest directions. Nothing that depends on a model may be left in it ([`LoraFile::on`]).
pub fn convert(
    file: &LoraFile,
    paths: &Paths,
    format: &Format,
    rank: usize,
    dtype: Option<Dtype>,
    out: &Path,
    watch: &mut Watch<'_>,
) -> Result<Loss> {
    if let Some(module) = file.own.keys().next() {
        return Err(Error::new(
            format!("What this adapter does depends on the picture (layer {module}): no other format holds it"),
            "Mount it when sampling: sample --adapter F",
        )
        .at(&file.path));
    }
    let (before, mut file) = (file, file.clone());
    file.dtype = dtype.or(file.dtype);
    paths.rename(&mut file).map_err(|e| e.at(&file.path))?;
    paths.shape(&mut file);
    let cut = (format.layers)(&mut file, rank, watch)?;
    let (mut beside, mut words) = (Vec::new(), Vec::new());
    if !format.beside {
        beside = file.norms.keys().cloned().collect();
        file.norms.clear();
        let biased = file.differences.iter().filter(|(_, difference)| difference.bias.is_some());
        beside.extend(biased.map(|(module, _)| module.clone()));
        file.differences.clear();
    }
    if !format.words {
        words = file.tokens.keys().cloned().collect();
        file.tokens.clear();
        file.layer_tokens.clear();
    }
    about(&mut file);
    watch(Event::Stage { name: "writing".into(), total: 1 })?;
    // Numbers that the format cannot hold are refused before they are measured.
    (format.write)(&file, paths, out)?;
    Ok(Loss { beside, words, ..loss::of(before, &file, paths, &cut)? })
}

/// Under kohya's and LyCORIS's names, which are the file's own.
fn one_file(file: &LoraFile, _: &Paths, out: &Path) -> Result<()> {
    file.save(out)
}

/// What the metadata says of the file: kohya's keys, and Stability's `modelspec` where the source had none.
fn about(file: &mut LoraFile) {
    let whole = !file.differences.is_empty() || !file.norms.is_empty();
    let is_lycoris = whole || !file.kroneckers.is_empty();
    // Of other tensors, or of another tool's layout.
    for stale in ["sshs_legacy_hash", "lora_adapter_metadata", "ss_network_args", "ss_network_dim", "ss_network_alpha"]
    {
        file.metadata.remove(stale);
    }
    let mut say = |key: &str, value: String| drop(file.metadata.insert(key.to_owned(), value));
    say("ss_network_module", if is_lycoris { "lycoris.kohya" } else { "networks.lora" }.into());
    if is_lycoris {
        let algorithm = if whole { "full" } else { "lokr" };
        say("ss_network_args", serde_json::json!({ "algo": algorithm }).to_string());
    } else if let Some(layer) = file.layers.values().max_by_key(|layer| layer.rank) {
        say("ss_network_dim", layer.rank.to_string());
        say("ss_network_alpha", layer.alpha.to_string());
    }
    let Some(family) = file.family else { return };
    let is_v =
        ["v", "v_prediction"].map(Some).contains(&file.metadata.get("modelspec.prediction_type").map(String::as_str));
    let side = if family == Family::Sdxl { 1024 } else { 512 };
    let words = file.tokens.keys().cloned().collect::<Vec<_>>().join(", ");
    let title = if words.is_empty() { stem(&file.path) } else { words.clone() };
    let mut unless_said = |key: &str, value: String| {
        file.metadata.entry(key.to_owned()).or_insert(value);
    };
    // A1111 takes an adapter that does not say so for one of SD 1.x.
    unless_said("ss_base_model_version", family.base_version(is_v).into());
    unless_said("modelspec.sai_model_spec", "1.0.1".into());
    unless_said("modelspec.architecture", format!("{}/lora", family.architecture(is_v)));
    unless_said("modelspec.implementation", family.implementation().into());
    unless_said("modelspec.title", title);
    unless_said("modelspec.resolution", format!("{side}x{side}"));
    if !words.is_empty() {
        unless_said("modelspec.trigger_phrase", words);
    }
}
