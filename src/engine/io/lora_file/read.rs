//! From an adapter file's tensors to its layers and words. Nothing in a file is left out silently.

use std::collections::BTreeMap;
use std::path::Path;

use crate::engine::io::detect::{self, Family};
use crate::engine::io::lora_file::kinds::{self, Kind, Read, WITH_ALL};
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong};
use crate::engine::io::lora_file::paths::{Adaptable, Paths};
use crate::engine::io::lora_file::relative::{Axis, Delta, Relative};
use crate::engine::io::lora_file::{Difference, LoraFile, Matrix, numbers, spelling};
use crate::engine::io::safetensors::{Checkpoint, Dtype};
use crate::engine::io::{metadata, names, peft, token_vectors};
use crate::engine::{Error, Result};

impl LoraFile {
    /// A file, the folder that PEFT saves one in, or a folder with one such for each network.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = peft::files(path)
            .iter()
            .map(|file| Self::read(&Checkpoint::open(file)?, &spelling::module))
            .collect::<Result<Vec<_>>>()?;
        let mut whole = parts.into_iter().reduce(Self::joined).unwrap_or_default();
        whole.path = path.to_path_buf();
        // Two files of one family must have one name for a layer, or a merge would take it for two. What one network tells
        // of the family holds for all.
        if whole.family.is_some() {
            Paths::of(whole.family).rename(&mut whole).map_err(|e| e.at(path))?;
        }
        Ok(whole)
    }

    /// With what another network of the same model has.
    fn joined(mut self, other: Self) -> Self {
        self.layers.extend(other.layers);
        self.differences.extend(other.differences);
        self.kroneckers.extend(other.kroneckers);
        self.relatives.extend(other.relatives);
        self.norms.extend(other.norms);
        self.own.extend(other.own);
        self.tokens.extend(other.tokens);
        self.layer_tokens.extend(other.layer_tokens);
        self.family = self.family.or(other.family);
        // Neither f16 nor bf16 holds the other.
        self.dtype = if self.dtype == other.dtype { self.dtype } else { Some(Dtype::F32) };
        self
    }

    /// One file's, with its layers as `module` calls them by their paths in it.
    pub fn read(file: &Checkpoint, module: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let path = file.path();
        let words = numbers::Words::of(file)?;
        let mut read = Self { path: path.to_path_buf(), metadata: file.metadata().clone(), ..Self::default() };
        let mut modules: BTreeMap<String, Parts<'_>> = BTreeMap::new();
        let own_names: Vec<&str> = file.metadata().get(metadata::OWN).map_or("", String::as_str).split(',').collect();
        let mut foreign = Vec::new();
        // PEFT's folder of SDXL's second text encoder has the keys of the first.
        let folder = path.parent().and_then(Path::file_name);
        let second = peft::is_weights(path) && folder.is_some_and(|name| name == Adaptable::SecondText.in_diffusers());
        for stored in file.entries().keys() {
            if let Some(token) = token_vectors::shared(stored) {
                read.tokens.insert(token.to_owned(), token_vectors::read(file, stored)?);
            } else if let Some(token) = token_vectors::each(stored) {
                read.layer_tokens.insert(token.to_owned(), token_vectors::read_layers(file, stored)?);
            } else if token_vectors::is_second(stored) && !token_vectors::is_orphan(file, stored) {
                // Read with those for the first.
            } else if stored.starts_with(IGNORED) {
                tracing::warn!("{}: {stored} is left out, as every other tool does", path.display());
            } else if let Some((path, name)) = stored.rsplit_once('.')
                && own_names.contains(&name)
                && let Some(module) = module(path.strip_prefix(names::PEFT).unwrap_or(path))
            {
                read.own.entry(module).or_default().insert(name.to_owned(), matrix(file, stored)?);
            } else if let Some(key) = spelling::named(stored, module) {
                let module = match key.module.strip_prefix(names::KOHYA_TEXT) {
                    Some(rest) if second => format!("{}{rest}", names::KOHYA_TEXT_2),
                    _ => key.module,
                };
                let parts = modules.entry(module).or_insert_with(|| Parts {
                    file,
                    stored: BTreeMap::new(),
                    numbers: words.numbers(&key.path),
                });
                if let Some(twice) = parts.stored.insert(key.part, stored) {
                    let what = format!("{twice} and {stored} are the same tensor of the same layer");
                    return Err(Error::new(what, "Export the adapter again in one spelling").at(path));
                }
            } else {
                foreign.push(stored.as_str());
            }
        }
        if let Some((word, stored)) = token_vectors::alone(file) {
            read.tokens.insert(word, token_vectors::read(file, &stored)?);
            foreign.clear();
        }
        let damaged = |module: &str, why: Wrong| {
            Error::new(format!("The layer {module} cannot be used: {why}"), "The file is damaged: export it again")
                .at(path)
        };
        for (module, parts) in modules {
            match kinds::of(&parts) {
                None if parts.stored.keys().all(|part| BESIDE.contains(part)) => {
                    read.beside(&module, &parts).map_err(|why| damaged(&module, why))?;
                }
                None => foreign.extend(parts.stored.into_values()),
                Some(kind) => {
                    let of_kind =
                        |part: &str| [kind.marks, kind.parts, &WITH_ALL].iter().any(|parts| parts.contains(&part));
                    foreign.extend(parts.stored.iter().filter(|(part, _)| !of_kind(part)).map(|(_, stored)| *stored));
                    read.layer(&module, kind, &parts)
                        .map_err(|why| damaged(&module, format!("{why}; it looks like {}", kind.title)))?;
                }
            }
        }
        if let Some(first) = foreign.first() {
            detect::tensors(file).must_be_adapter(path)?;
            return Err(not_lora(&foreign, first, read.is_empty()).at(path));
        }
        token_vectors::complete(&mut read.tokens, &read.layer_tokens).map_err(|word| {
            let what = format!("The word {word} has other vectors for all layers together than for each");
            Error::new(what, "The file is damaged: export it again").at(path)
        })?;
        // A token alone is what remains where no layer learnt anything.
        if read.is_empty() {
            return Err(Error::new("The file holds no adapter", "Name a LoRA in safetensors format").at(path));
        }
        read.dtype = file.entries().iter().find(|(name, _)| !name.ends_with(".alpha")).map(|(_, entry)| entry.dtype);
        read.second_width = token_vectors::second_width(file);
        read.family = detect::tensors(file).family.or(second.then_some(Family::Sdxl));
        Ok(read)
    }

    fn is_empty(&self) -> bool {
        self.modules().is_empty() && self.norms.is_empty() && self.tokens.is_empty()
    }

    /// Takes in a layer of a kind, with its magnitude and its bias.
    fn layer(&mut self, module: &str, kind: &Kind, parts: &Parts<'_>) -> std::result::Result<(), Wrong> {
        let mut layer = (kind.read)(parts)?;
        if let Some((m, axis)) = magnitude(parts)? {
            let delta = match layer {
                Read::Pair(pair) => Delta::Pair(pair),
                Read::Whole(difference) => Delta::Whole(difference),
                Read::Kronecker(factors) => Delta::Kronecker(factors),
                Read::Relative(_) => return Err("its method knows no magnitude".into()),
            };
            layer = Read::Relative(Relative::Magnitude { delta: Box::new(delta), m, axis });
        }
        match layer {
            Read::Pair(pair) => drop(self.layers.insert(module.to_owned(), pair)),
            // ComfyUI's extraction writes norms so.
            Read::Whole(difference) if difference.shape.len() == 1 => {
                let bias = parts.maybe("diff_b")?.map(|bias| bias.values);
                self.norms.insert(module.to_owned(), Difference { bias, ..difference });
                return Ok(());
            }
            Read::Whole(difference) => drop(self.differences.insert(module.to_owned(), difference)),
            Read::Kronecker(factors) => drop(self.kroneckers.insert(module.to_owned(), factors)),
            Read::Relative(relative) => drop(self.relatives.insert(module.to_owned(), relative)),
        }
        self.beside(module, parts)
    }

    /// Takes in what stands beside a layer's weight, or in a layer that has none.
    fn beside(&mut self, module: &str, parts: &Parts<'_>) -> std::result::Result<(), Wrong> {
        let bias = parts.maybe("diff_b")?.map(|bias| bias.values);
        if bias.is_some() {
            self.differences.entry(module.to_owned()).or_default().bias = bias;
        }
        let (weight, bias) = (parts.maybe("w_norm")?, parts.maybe("b_norm")?.map(|bias| bias.values));
        if weight.is_some() || bias.is_some() {
            let Array { values: weight, shape } = weight.unwrap_or(Array { values: Vec::new(), shape: Vec::new() });
            self.norms.insert(module.to_owned(), Difference { weight, shape, bias });
        }
        Ok(())
    }
}

fn matrix(file: &Checkpoint, name: &str) -> Result<Matrix> {
    let values = file.f32(name)?;
    match *file.shape(name)? {
        [rows, columns] if values.iter().all(|x| x.is_finite()) => Ok(Matrix { values, shape: [rows, columns] }),
        _ => Err(Error::new(format!("The tensor {name} is damaged"), "Train the adapter again").at(file.path())),
    }
}

/// DoRA's magnitude. PEFT's lies on the output axis whatever its shape; LyCORIS's on the one that is longer than 1, and it
/// has as many axes as the weight.
fn magnitude(parts: &Parts<'_>) -> std::result::Result<Option<(Vec<f32>, Axis)>, Wrong> {
    if let Some(Array { values, .. }) = parts.maybe("magnitude")? {
        return Ok(Some((values, Axis::Output)));
    }
    let Some(Array { values, shape }) = parts.maybe("dora_scale")? else { return Ok(None) };
    let axis = match shape[..] {
        [n, ref rest @ ..] if !rest.is_empty() && n == values.len() => Axis::Output,
        [1, n, ..] if n == values.len() => Axis::Input,
        _ => return Err(format!("its dora_scale has the shape {shape:?}")),
    };
    Ok(Some((values, axis)))
}

/// Parts that need no weight beside them.
const BESIDE: [&str; 3] = ["diff_b", "w_norm", "b_norm"];
/// Some of OneTrainer's files adapt a matrix that other tools cannot.
const IGNORED: &str = "lora_te2_text_projection";
/// So many keys are named of those that nobody reads.
const NAMED: usize = 3;

fn not_lora(foreign: &[&str], first: &str, nothing_else: bool) -> Error {
    if nothing_else {
        return Error::new(
            format!("This is not an adapter: it holds {first}"),
            "Name a LoRA file; a model belongs after --model",
        );
    }
    let named = foreign.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = if foreign.len() > NAMED { " …" } else { "" };
    let holds = match foreign.len() {
        1 => "a tensor".to_owned(),
        n => format!("{n} tensors"),
    };
    Error::new(
        format!("The file holds {holds} that cannot be read with the rest: {named}{more}"),
        "Nothing is left out silently: export it again from the tool that made it, as LoRA",
    )
}
