//! Adapter files: kohya, LyCORIS's full differences, PEFT and diffusers keys are read, kohya and LyCORIS keys are
//! written.
//!
//! Every file we write is complete: the read side is stored even where a seed could regenerate it, so that ComfyUI,
//! A1111 and kohya's tools load it. [Token vectors](super::token_vectors) travel inside.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::engine::io::detect::Family;
use crate::engine::io::names::{self, Role};
use crate::engine::io::safetensors::{self, Checkpoint, Dtype, Tensor};
use crate::engine::io::token_vectors::{self, Meaning, Vectors};
use crate::engine::io::{detect, metadata};
use crate::engine::{Error, Result};

/// `ΔW = alpha/rank · up · down` of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayer {
    /// Read side, row-major `[rank, in]`.
    pub down: Vec<f32>,
    /// Write side, row-major `[out, rank]`.
    pub up: Vec<f32>,
    pub rank: usize,
    pub alpha: f32,
    /// `[rank, in]` or `[rank, channels, kh, kw]`.
    pub down_shape: Vec<usize>,
    /// `[out, rank]` or `[out, rank, 1, 1]`.
    pub up_shape: Vec<usize>,
}

impl LoraLayer {
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    pub fn out(&self) -> usize {
        self.up_shape[0]
    }

    /// Flattened width `channels · kh · kw`.
    pub fn input(&self) -> usize {
        self.down_shape[1..].iter().product()
    }

    /// `ΔW` multiplied out, in f64 on the way.
    pub fn product(&self) -> Difference {
        let (input, scale) = (self.input(), f64::from(self.scale()));
        let mut weight = Vec::with_capacity(self.out() * input);
        for up in self.up.chunks_exact(self.rank) {
            let mut row = vec![0.0; input];
            for (&u, down) in up.iter().zip(self.down.chunks_exact(input)) {
                if u != 0.0 {
                    row.iter_mut().zip(down).for_each(|(sum, &d)| *sum += f64::from(u) * f64::from(d));
                }
            }
            weight.extend(row.into_iter().map(|x| (scale * x) as f32));
        }
        let shape = [&[self.out()], &self.down_shape[1..]].concat();
        Difference { weight, shape, bias: None }
    }
}

/// What a layer's bias is called beside its layer, where both are treated alike.
pub const BIAS: &str = " (bias)";

/// What is added to a layer's own parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// `ΔW`, row-major.
    pub weight: Vec<f32>,
    /// `[out, in]` or `[out, channels, kh, kw]`; empty where only the bias differs.
    pub shape: Vec<usize>,
    /// `Δb [out]`.
    pub bias: Option<Vec<f32>>,
}

impl Difference {
    /// `ΔW` as an exact low-rank pair: the identity stands on the shorter side. `None` where only the bias differs.
    pub fn pair(&self) -> Option<LoraLayer> {
        let (&out, inputs) = self.shape.split_first()?;
        let input = inputs.iter().product::<usize>();
        let identity = |n: usize| (0..n * n).map(|at| if at % n == at / n { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let (down, up, rank) = match out <= input {
            true => (self.weight.clone(), identity(out), out),
            false => (identity(input), self.weight.clone(), input),
        };
        let down_shape = [&[rank], inputs].concat();
        let point: &[usize] = if inputs.len() == 3 { &[1, 1] } else { &[] };
        let up_shape = [&[out, rank], point].concat();
        Some(LoraLayer { down, up, rank, alpha: rank as f32, down_shape, up_shape })
    }
}

/// A tensor of a method that no other program knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub values: Vec<f32>,
    pub shape: [usize; 2],
}

/// An adapter file's content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraFile {
    pub path: PathBuf,
    /// By kohya's module name.
    pub layers: BTreeMap<String, LoraLayer>,
    /// Likewise; a layer may have low-rank factors and a bias difference.
    pub differences: BTreeMap<String, Difference>,
    /// Likewise, each with its tensors by name.
    pub own: BTreeMap<String, BTreeMap<String, Matrix>>,
    /// Vectors of each token.
    pub tokens: BTreeMap<String, Vectors>,
    /// Those of the tokens for which each cross-attention layer has its own; `tokens` has their mean over the layers.
    pub layer_tokens: BTreeMap<String, Vec<Vectors>>,
    pub metadata: BTreeMap<String, String>,
    /// How exactly the file keeps its numbers.
    pub dtype: Option<Dtype>,
}

impl LoraFile {
    /// Which of the text encoder's layers its captions were read at, from the end: 1 is the last.
    pub fn clip_skip(&self) -> usize {
        self.metadata.get(metadata::CLIP_SKIP).and_then(|skip| skip.parse().ok()).filter(|&skip| skip > 0).unwrap_or(1)
    }

    /// A file, or the folder that PEFT saves one in.
    pub fn open(path: &Path) -> Result<Self> {
        let inside = path.join(detect::PEFT_FILE);
        let path = if inside.is_file() { &inside } else { path };
        Self::read(&Checkpoint::open(path)?)
    }

    /// The same of tensors that are there already.
    pub fn read(file: &Checkpoint) -> Result<Self> {
        let path = file.path();
        let mut parts: BTreeMap<String, BTreeMap<Role, &String>> = BTreeMap::new();
        let (mut tokens, mut layer_tokens) = (BTreeMap::new(), BTreeMap::new());
        let mut own: BTreeMap<String, BTreeMap<String, Matrix>> = BTreeMap::new();
        let own_names: Vec<&str> = file.metadata().get(metadata::OWN).map_or("", String::as_str).split(',').collect();
        let mut foreign = Vec::new();
        for stored in file.entries().keys() {
            if let Some(token) = token_vectors::shared(stored) {
                tokens.insert(token.to_owned(), token_vectors::read(file, stored)?);
            } else if let Some(token) = token_vectors::each(stored) {
                layer_tokens.insert(token.to_owned(), token_vectors::read_layers(file, stored)?);
            } else if let Some((module, role)) = names::lora_key(stored) {
                parts.entry(module).or_default().insert(role, stored);
            } else if let Some((module, name)) = own_key(stored)
                && own_names.contains(&name)
            {
                own.entry(module.to_owned()).or_default().insert(name.to_owned(), matrix(file, stored)?);
            } else {
                foreign.push(stored.as_str());
            }
        }
        if let Some(first) = foreign.first() {
            detect::tensors(file).must_be_adapter(path)?;
            return Err(not_lora(first, parts.is_empty()).at(path));
        }
        token_vectors::complete(&mut tokens, &layer_tokens).map_err(|word| {
            let what = format!("The word {word} has other vectors for all layers together than for each");
            Error::new(what, "The file is damaged: export it again").at(path)
        })?;
        // A token alone is what remains where no layer learnt anything.
        if parts.is_empty() && own.is_empty() && tokens.is_empty() {
            return Err(Error::new("The file holds no adapter", "Name a LoRA in safetensors format").at(path));
        }
        let damaged = |module: &str, why: String| {
            Error::new(format!("The layer {module} cannot be used: {why}"), "The file is damaged: export it again")
                .at(path)
        };
        let (mut layers, mut differences) = (BTreeMap::new(), BTreeMap::new());
        for (module, parts) in parts {
            if let Some(difference) = difference(file, &parts).map_err(|why| damaged(&module, why))? {
                differences.insert(module.clone(), difference);
            }
            if [Role::Down, Role::Up, Role::Alpha].iter().any(|role| parts.contains_key(role)) {
                let layer = layer(file, &parts).map_err(|why| damaged(&module, why))?;
                layers.insert(module, layer);
            }
        }
        let twice = |module: &&String| differences.get(*module).is_some_and(|d: &Difference| !d.shape.is_empty());
        if let Some(module) = layers.keys().find(twice) {
            return Err(damaged(module, "it has both factors and a whole difference".into()));
        }
        let dtype = file.entries().iter().find(|(name, _)| !name.ends_with(".alpha")).map(|(_, entry)| entry.dtype);
        let metadata = file.metadata().clone();
        Ok(Self { path: path.to_path_buf(), layers, differences, own, tokens, layer_tokens, metadata, dtype })
    }

    /// The family of models it was made for, where its layers tell.
    pub fn family(&self) -> Option<Family> {
        let layers: Vec<_> = self.layers.iter().map(|(module, layer)| (module.as_str(), layer.input())).collect();
        detect::adapter_family(&layers)
    }

    /// The tensors as they are written.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let dtype = self.dtype.unwrap_or(Dtype::F32);
        let mut tensors = BTreeMap::new();
        for (module, layer) in &self.layers {
            tensors.insert(format!("{module}.lora_down.weight"), Tensor::new(dtype, &layer.down_shape, &layer.down));
            tensors.insert(format!("{module}.lora_up.weight"), Tensor::new(dtype, &layer.up_shape, &layer.up));
            tensors.insert(format!("{module}.alpha"), Tensor::new(exact(dtype, layer.alpha), &[], &[layer.alpha]));
        }
        for (module, difference) in &self.differences {
            if !difference.shape.is_empty() {
                let weight = Tensor::new(dtype, &difference.shape, &difference.weight);
                tensors.insert(format!("{module}.diff"), weight);
            }
            if let Some(bias) = &difference.bias {
                tensors.insert(format!("{module}.diff_b"), Tensor::new(dtype, &[bias.len()], bias));
            }
        }
        for (module, parts) in &self.own {
            for (name, Matrix { values, shape }) in parts {
                tensors.insert(format!("{module}.{name}"), Tensor::new(dtype, shape, values));
            }
        }
        tensors.extend(self.tokens.iter().map(|(token, vectors)| token_vectors::tensor(token, vectors, dtype)));
        tensors.extend(self.layer_tokens.iter().map(|(token, of)| token_vectors::layer_tensor(token, of, dtype)));
        tensors
    }

    /// Gives a token vectors for each cross-attention layer, as many in each.
    pub fn add_layers(&mut self, token: &str, layers: Vec<Vectors>) {
        self.tokens.insert(token.to_owned(), token_vectors::mean(&layers));
        self.layer_tokens.insert(token.to_owned(), layers);
    }

    /// What each token stands for, in their order.
    pub fn words(&self) -> Vec<Meaning<'_>> {
        let layers = |word: &String| self.layer_tokens.get(word).map(Vec::as_slice);
        let meaning = |(word, vectors)| Meaning { word, vectors, layers: layers(word), path: &self.path };
        self.tokens.iter().map(meaning).collect()
    }

    /// Writes the file with what its metadata says of its tensors brought up to date. What [`LoraFile::open`] would refuse
    /// is not written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.tensors();
        if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !tensor.is_finite()) {
            return Err(Error::new(
                format!("{name} has grown beyond what {:?} can hold", tensor.dtype),
                "Lower the strengths or the learning rate, or choose dtype=f32; nothing was overwritten",
            )
            .at(path));
        }
        let hash = safetensors::tensor_hash(&tensors);
        let mut entries = self.metadata.clone();
        if let Some(parts) = self.own.values().next() {
            entries.insert(metadata::OWN.into(), parts.keys().cloned().collect::<Vec<_>>().join(","));
        }
        entries.insert("modelspec.hash_sha256".into(), format!("0x{hash}"));
        entries.insert("sshs_model_hash".into(), hash);
        safetensors::save(path, &tensors, &entries)
    }

    /// A layer's `ΔW` as a low-rank pair, however the file keeps it.
    pub fn pair(&self, module: &str) -> Option<Cow<'_, LoraLayer>> {
        let whole = || self.differences.get(module)?.pair().map(Cow::Owned);
        self.layers.get(module).map(Cow::Borrowed).or_else(whole)
    }

    /// Every layer it changes.
    pub fn modules(&self) -> BTreeSet<&String> {
        self.layers.keys().chain(self.differences.keys()).chain(self.own.keys()).collect()
    }

    /// How many numbers its layers hold.
    pub fn numbers(&self) -> usize {
        let factors = self.layers.values().map(|layer| layer.down.len() + layer.up.len());
        let whole = self.differences.values().map(|d| d.weight.len() + d.bias.as_ref().map_or(0, Vec::len));
        let own = self.own.values().flat_map(|parts| parts.values().map(|part| part.values.len()));
        factors.chain(whole).chain(own).sum()
    }

    /// The ranks in use.
    pub fn ranks(&self) -> BTreeSet<usize> {
        self.layers.values().map(|layer| layer.rank).collect()
    }
}

/// `dtype` if it holds `alpha` exactly: a factor of the whole layer is worth four bytes. f16 ends at 65504, where a
/// rank-stabilised alpha need not.
fn exact(dtype: Dtype, alpha: f32) -> Dtype {
    let kept = match dtype {
        Dtype::F16 => f16::from_f32(alpha).to_f32(),
        Dtype::BF16 => bf16::from_f32(alpha).to_f32(),
        _ => alpha,
    };
    if kept.to_bits() == alpha.to_bits() { dtype } else { Dtype::F32 }
}

/// `lora_unet_….mola_router`: kohya's module and a tensor of a method's own.
fn own_key(stored: &str) -> Option<(&str, &str)> {
    let known = [names::KOHYA_UNET, names::KOHYA_TEXT, names::VISION].iter().any(|prefix| stored.starts_with(prefix));
    stored.split_once('.').filter(|_| known)
}

fn matrix(file: &Checkpoint, name: &str) -> Result<Matrix> {
    let values = file.f32(name)?;
    match *file.shape(name)? {
        [rows, columns] if values.iter().all(|x| x.is_finite()) => Ok(Matrix { values, shape: [rows, columns] }),
        _ => Err(Error::new(format!("The tensor {name} is damaged"), "Train the adapter again").at(file.path())),
    }
}

fn difference(file: &Checkpoint, parts: &BTreeMap<Role, &String>) -> std::result::Result<Option<Difference>, String> {
    let finite = |name: &str| {
        let values = file.f32(name).map_err(|e| e.what)?;
        let finite = values.iter().all(|x| x.is_finite());
        if finite { Ok(values) } else { Err("it holds NaN or infinite numbers".to_owned()) }
    };
    let mut difference = Difference::default();
    if let Some(name) = parts.get(&Role::Difference) {
        difference.shape = file.shape(name).map_err(|e| e.what)?.to_vec();
        difference.weight = finite(name)?;
        if !matches!(difference.shape.len(), 2 | 4) {
            return Err(format!("its difference {:?} is no weight of a linear layer or convolution", difference.shape));
        }
    }
    if let Some(name) = parts.get(&Role::BiasDifference) {
        difference.bias = Some(finite(name)?);
    }
    Ok((difference != Difference::default()).then_some(difference))
}

fn layer(file: &Checkpoint, parts: &BTreeMap<Role, &String>) -> std::result::Result<LoraLayer, String> {
    let part = |role, name: &str| parts.get(&role).copied().ok_or_else(|| format!("its {name} side is missing"));
    let (down_name, up_name) = (part(Role::Down, "down")?, part(Role::Up, "up")?);
    let sentence = |e: Error| e.what;
    let (down_shape, up_shape) =
        (file.shape(down_name).map_err(sentence)?.to_vec(), file.shape(up_name).map_err(sentence)?.to_vec());
    let fits = matches!(
        (&down_shape[..], &up_shape[..]),
        ([rank, _], [_, r]) | ([rank, _, _, _], [_, r, 1, 1]) if rank == r && *rank > 0
    );
    if !fits {
        return Err(format!("down {down_shape:?} and up {up_shape:?} do not belong together"));
    }
    let (down, up) = (file.f32(down_name).map_err(sentence)?, file.f32(up_name).map_err(sentence)?);
    if down.iter().chain(&up).any(|x| !x.is_finite()) {
        return Err("it holds NaN or infinite numbers".into());
    }
    let rank = down_shape[0];
    let alpha = match parts.get(&Role::Alpha) {
        // kohya reads 0 as the rank, others as no effect: nobody writes it on purpose.
        Some(name) => {
            file.f32(name).map_err(sentence)?.first().copied().filter(|&alpha| alpha != 0.0).unwrap_or(rank as f32)
        }
        None => rank as f32,
    };
    if !alpha.is_finite() {
        return Err("its alpha is not a number".into());
    }
    Ok(LoraLayer { down, up, rank, alpha, down_shape, up_shape })
}

/// Kinds of adapter we can name but not read, by a piece of their keys.
const OTHER_KINDS: [(&str, &str); 5] = [
    ("hada_", "a LoHa"),
    ("lokr_", "a LoKr"),
    ("lora_mid", "a Tucker-decomposed LoCon"),
    ("dora_scale", "a DoRA"),
    ("oft_", "an OFT"),
];

fn not_lora(key: &str, nothing_else: bool) -> Error {
    let other = OTHER_KINDS.iter().find(|(piece, _)| key.contains(piece));
    match other {
        Some((_, kind)) => Error::new(
            format!("This is {kind} (it holds {key})"),
            "Only LoRA files and full differences can be read so far",
        ),
        None if nothing_else => Error::new(
            format!("This is not an adapter: it holds {key}"),
            "Name a LoRA file; a model belongs after --model",
        ),
        None => Error::new(
            format!("The file holds {key}, which is no part of a LoRA"),
            "Export it again from the tool that made it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(folder: &Path) -> LoraFile {
        let layer = LoraLayer {
            down: vec![0.1, 0.2, 0.3, 0.4],
            up: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            rank: 2,
            alpha: 4.0,
            down_shape: vec![2, 2],
            up_shape: vec![3, 2],
        };
        LoraFile {
            path: folder.join("a.safetensors"),
            layers: BTreeMap::from([("lora_unet_mid_block_attentions_0_proj_in".to_owned(), layer)]),
            tokens: BTreeMap::from([("<sks>".to_owned(), vec![vec![0.5, -0.5]])]),
            metadata: BTreeMap::from([("triptych.method".to_owned(), "lora".to_owned())]),
            dtype: Some(Dtype::F32),
            ..LoraFile::default()
        }
    }

    #[test]
    fn what_could_not_be_opened_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = sample(folder.path());
        file.save(&file.path).unwrap();
        let before = std::fs::read(&file.path).unwrap();
        // The first is a number for f32.
        for (dtype, number) in [(Dtype::F16, 1e5), (Dtype::BF16, f32::NAN), (Dtype::F32, f32::INFINITY)] {
            file.dtype = Some(dtype);
            file.layers.values_mut().for_each(|layer| layer.up.fill(number));
            let error = file.save(&file.path).unwrap_err();
            assert!(error.what.contains(&format!("lora_up.weight has grown beyond what {dtype:?}")), "{error}");
            assert_eq!(std::fs::read(&file.path).unwrap(), before, "{dtype:?}");
        }
    }

    #[test]
    fn what_is_saved_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let saved = sample(folder.path());
        saved.save(&saved.path).unwrap();
        let mut read = LoraFile::open(&saved.path).unwrap();
        let hash = read.metadata.remove("sshs_model_hash").unwrap();
        assert_eq!(read.metadata.remove("modelspec.hash_sha256"), Some(format!("0x{hash}")));
        assert_eq!(hash, Checkpoint::open(&saved.path).unwrap().tensor_hash());
        assert_eq!(read, saved);
    }

    #[test]
    fn other_kinds_and_damage_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let module = "lora_unet_mid_block_attentions_0_proj_in";
        let one = |name: &str, shape: &[usize], values: &[f32]| {
            (format!("{module}.{name}"), Tensor::new(Dtype::F32, shape, values))
        };
        let cases = [
            (vec![one("hada_w1_a", &[1], &[0.0])], "a LoHa"),
            (vec![one("lora_down.weight", &[1, 2], &[0.0; 2])], "up side is missing"),
            (
                vec![one("lora_down.weight", &[1, 2], &[0.0; 2]), one("lora_up.weight", &[2, 2], &[0.0; 4])],
                "do not belong",
            ),
            (vec![one("lora_down.weight", &[1, 2], &[f32::NAN; 2]), one("lora_up.weight", &[2, 1], &[0.0; 2])], "NaN"),
            (vec![("conv_in.weight".into(), Tensor::new(Dtype::F32, &[1], &[0.0]))], "not an adapter"),
        ];
        for (tensors, expected) in cases {
            safetensors::save(&path, &tensors.into_iter().collect(), &BTreeMap::new()).unwrap();
            let error = LoraFile::open(&path).unwrap_err();
            assert!(error.what.contains(expected), "{error}");
        }
    }
}
