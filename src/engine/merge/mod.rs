//! Several adapters into one. A method is one file with its row, and one line in [`METHODS`].

pub mod certificate;
mod elect;
mod fisher;
mod knots;
pub mod meeting;
pub mod note;
mod opcm;
pub mod pack;
pub mod recipe;
pub mod recover;
mod sum;
mod svd;
pub mod terms;
mod ties;
mod tsv;

use std::collections::BTreeMap;

use half::f16;
use serde::Serialize;

use crate::engine::adapter::mount::Strength;
use crate::engine::event::Watch;
use crate::engine::field::{Field, Settings};
use crate::engine::io::Dtype;
use crate::engine::io::lora_file::{BIAS, Difference, LoraFile, LoraLayer};
use crate::engine::merge::note::Note;
use crate::engine::{Error, Result};

/// A merge method's row: what forms, help, README, errors and contract tests read.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    pub name: &'static str,
    pub title: &'static str,
    pub paper: &'static str,
    pub help: &'static str,
    pub fields: &'static [Field],
    pub needs: Needs,
    /// What it keeps; what is not named here it breaks, and the contract tests show both.
    pub promises: &'static [Promise],
    #[serde(skip)]
    pub run: Run,
}

pub const METHODS: &[Method] =
    &[sum::METHOD, svd::METHOD, ties::METHOD, tsv::METHOD, knots::METHOD, opcm::METHOD, fisher::METHOD];

pub type Run = fn(&Inputs<'_>, &Settings, &mut Watch<'_>) -> Result<Merged>;

/// What a method must be given besides adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    Nothing,
    /// The model, and pictures of each adapter's concept: [`Inputs::evidence`].
    ModelAndPictures,
}

/// Laws of a merge, as long as its settings drop nothing. No method may depend on how a product is split into factors,
/// and a common positive fader passes through every one; these hold for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// The result is `Σ wₜ·ΔWₜ`: two halves of an adapter are the whole, an adapter less itself is nothing.
    Linear,
    /// Order is no input.
    AnyOrder,
    /// Two copies are one.
    CopiesCountOnce,
    /// An adapter alone is that adapter at its strength.
    AloneUnchanged,
    /// Inputs and outputs have no preferred axes: rotated adapters give the rotated merge.
    Rotates,
    /// Adapters that share neither reads nor writes are added, up to one common factor.
    AddsTheUnrelated,
    /// Reads nothing that no source reads, so slots stay proven.
    ReadsWithin,
}

/// An adapter and how strongly it goes in.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: LoraFile,
    pub strength: Strength,
}

impl Source {
    /// Whether every layer's strength is 0.
    pub fn is_silent(&self) -> bool {
        self.file.modules().into_iter().all(|module| self.strength.of(module) == 0.0)
    }
}

/// What a merge is made from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub sources: &'a [Source],
    pub evidence: Option<&'a Evidence<'a>>,
}

impl<'a> Inputs<'a> {
    /// Adapters alone.
    pub fn of(sources: &'a [Source]) -> Self {
        Self { sources, evidence: None }
    }
}

/// Pictures of each source's concept, and the model to ask about them.
pub struct Evidence<'a> {
    /// What the recipe says of it: hashes of the model and of each source's pictures, and how many these are.
    pub record: serde_json::Value,
    pub importance: &'a Importance<'a>,
}

/// How much each weight matters for a source: `E[(∂L/∂W)²]`, row-major `[out, in]`, by kohya's module name; that of a
/// bias under the same name and [`BIAS`].
pub type Importance<'a> = dyn Fn(Question, &mut Watch<'_>) -> Result<BTreeMap<String, Vec<f32>>> + 'a;

/// What is asked of the pictures.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Index into the sources.
    pub source: usize,
    /// Noises each picture is seen under.
    pub draws: usize,
    pub seed: u64,
}

/// What a method makes.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// By kohya's module name.
    pub layers: BTreeMap<String, LoraLayer>,
    pub notes: Vec<Note>,
    /// Entries of the file's metadata: what is needed to go on from the result.
    pub metadata: BTreeMap<String, String>,
}

/// The row of a name.
pub fn method(name: &str) -> Result<&'static Method> {
    METHODS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = METHODS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no merge method “{name}”"), format!("Choose one of {known}"))
    })
}

/// Merges into one file that carries every token and the recipe, and says what the method found.
pub fn merge(
    inputs: &Inputs<'_>,
    method: &Method,
    settings: &Settings,
    watch: &mut Watch<'_>,
) -> Result<(LoraFile, Vec<Note>)> {
    let sources = inputs.sources;
    if sources.is_empty() {
        return Err(Error::usage("No adapter was given to merge", "Name at least one adapter file"));
    }
    for source in sources {
        if !source.file.own.is_empty() {
            return Err(Error::new(
                "What this adapter does depends on the picture, so it cannot be merged",
                "Mount it beside the others when sampling: sample --adapter A --adapter B",
            )
            .at(&source.file.path));
        }
    }
    for Source { file, .. } in sources {
        if !file.relatives.is_empty() || !file.norms.is_empty() {
            let (what, advice) = match file.norms.is_empty() {
                true => (
                    "the model's own weights",
                    "Name the model it was made for (--model M), or convert it with that: triptych convert F --to full --model M --out G",
                ),
                false => ("normalisations", "Write it into a model: triptych merge F --into MODEL --out NEW"),
            };
            return Err(Error::new(format!("This adapter cannot be merged with others: it changes {what}"), advice)
                .at(&file.path));
        }
    }
    recipe::words(sources.iter().map(|source| &source.file))?;
    let tokens = sources.iter().flat_map(|source| source.file.tokens.clone()).collect();
    let layer_tokens = sources.iter().flat_map(|source| source.file.layer_tokens.clone()).collect();
    let told: Vec<Source> = sources.iter().map(with_biases).collect();
    let Merged { layers, notes, metadata } = (method.run)(&Inputs { sources: &told, ..*inputs }, settings, watch)?;
    let (layers, differences) = written(layers, sources);
    let mut of_recipe = recipe::metadata(inputs, method, settings, &notes)?;
    of_recipe.extend(metadata);
    let format = |source: &Source| source.file.dtype.unwrap_or(Dtype::F32);
    // Neither f16 nor bf16 holds the other: where formats differ, only f32 rounds nothing.
    let same = sources.iter().all(|source| format(source) == format(&sources[0]));
    let whole = || differences.values().flat_map(|d| d.weight.iter().chain(d.bias.iter().flatten()));
    // f16 ends at 65504: what strengths drive beyond it is kept in f32 rather than lost.
    let largest = layers
        .values()
        .flat_map(|layer| layer.down.iter().chain(&layer.up))
        .chain(whole())
        .fold(0.0, |m: f32, x| m.max(x.abs()));
    let fits = format(&sources[0]) != Dtype::F16 || largest < f16::MAX.to_f32();
    let dtype = Some(if same && fits { format(&sources[0]) } else { Dtype::F32 });
    let metadata = of_recipe;
    let second_width = sources.iter().map(|source| source.file.second_width).max().unwrap_or(0);
    let family = sources[0].file.family;
    let file = LoraFile {
        layers,
        differences,
        tokens,
        layer_tokens,
        second_width,
        family,
        metadata,
        dtype,
        ..LoraFile::default()
    };
    Ok((file, notes))
}

/// A source whose biases are layers of one input, so that every method treats them as it does weights.
fn with_biases(source: &Source) -> Source {
    let mut source = source.clone();
    for (module, difference) in &source.file.differences {
        if let Some(bias) = &difference.bias {
            let (down_shape, up_shape) = (vec![1, 1], vec![bias.len(), 1]);
            let layer = LoraLayer { down: vec![1.0], up: bias.clone(), rank: 1, alpha: 1.0, down_shape, up_shape };
            source.file.layers.insert(format!("{module}{BIAS}"), layer);
        }
    }
    source
}

/// The layers as a file keeps them: those that came whole and would take more room as factors stay whole.
fn written(
    layers: BTreeMap<String, LoraLayer>,
    sources: &[Source],
) -> (BTreeMap<String, LoraLayer>, BTreeMap<String, Difference>) {
    let is_whole = |file: &LoraFile, module: &str| {
        file.kroneckers.contains_key(module) || file.differences.get(module).is_some_and(|d| !d.shape.is_empty())
    };
    let came_whole = |module: &str| sources.iter().any(|source| is_whole(&source.file, module));
    let mut factored = BTreeMap::new();
    let mut differences: BTreeMap<String, Difference> = BTreeMap::new();
    for (module, layer) in layers {
        let is_large = layer.rank * (layer.out() + layer.input()) > layer.out() * layer.input();
        if let Some(module) = module.strip_suffix(BIAS) {
            differences.entry(module.to_owned()).or_default().bias = Some(layer.product().weight);
        } else if is_large && came_whole(&module) {
            let Difference { weight, shape, .. } = layer.product();
            let difference = differences.entry(module).or_default();
            (difference.weight, difference.shape) = (weight, shape);
        } else {
            factored.insert(module, layer);
        }
    }
    (factored, differences)
}
