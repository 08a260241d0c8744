//! Adapter files: [every kind of layer](kinds) in [every tool's spelling](spelling) is read, kohya's and LyCORIS's keys
//! are written.
//!
//! Every file we write is complete: the read side is stored even where a seed could regenerate it, so that ComfyUI,
//! A1111 and kohya's tools load it. [Token vectors](super::token_vectors) travel inside.

pub mod kinds;
pub mod kronecker;
pub mod loads;
mod numbers;
pub mod parts;
pub mod paths;
mod read;
pub mod relative;
pub mod spelling;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::engine::io::detect::Family;
use crate::engine::io::lora_file::kronecker::Kronecker;
use crate::engine::io::lora_file::relative::{Base, Relative};
use crate::engine::io::metadata;
use crate::engine::io::safetensors::{self, Dtype, Tensor};
use crate::engine::io::token_vectors::{self, Meaning, Vectors};
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

    /// The same change with another alpha: the factor between the two goes into the write side.
    pub fn set_alpha(&mut self, alpha: f32) {
        let by = self.alpha / alpha;
        self.up.iter_mut().for_each(|x| *x *= by);
        self.alpha = alpha;
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
    /// Likewise: products that are multiplied out layer by layer, where they are used.
    pub kroneckers: BTreeMap<String, Kronecker>,
    /// Likewise: what depends on the model's own weight.
    pub relatives: BTreeMap<String, Relative>,
    /// Likewise: differences of normalisations, whose weight is one row of numbers.
    pub norms: BTreeMap<String, Difference>,
    /// Likewise, each with its tensors by name.
    pub own: BTreeMap<String, BTreeMap<String, Matrix>>,
    /// Vectors of each token.
    pub tokens: BTreeMap<String, Vectors>,
    /// Those of the tokens for which each cross-attention layer has its own; `tokens` has their mean over the layers.
    pub layer_tokens: BTreeMap<String, Vec<Vectors>>,
    /// How many of each vector's last numbers are for a second text encoder: SDXL's.
    pub second_width: usize,
    /// The family of models it was made for, where the keys and shapes of the file that was read tell.
    pub family: Option<Family>,
    pub metadata: BTreeMap<String, String>,
    /// How exactly the file keeps its numbers.
    pub dtype: Option<Dtype>,
}

impl LoraFile {
    /// Which of the text encoder's layers its captions were read at, from the end: 1 is the last.
    pub fn clip_skip(&self) -> usize {
        self.metadata.get(metadata::CLIP_SKIP).and_then(|skip| skip.parse().ok()).filter(|&skip| skip > 0).unwrap_or(1)
    }

    /// The same adapter with every change that depends on the model's own weights worked out for these; `base` finds a
    /// layer by kohya's name.
    pub fn on(&self, base: impl Fn(&str) -> Result<Option<Base>>) -> Result<Self> {
        let mut file = self.clone();
        for (module, relative) in std::mem::take(&mut file.relatives) {
            let refused = |why: String| {
                let advice = "Choose the model it was trained on, or one of the same family";
                Error::new(format!("The layer {module} of the adapter does not fit: {why}"), advice).at(&self.path)
            };
            let base = base(&module)?.ok_or_else(|| refused("the model has none of this name".into()))?;
            let mut difference = relative.difference(&base).map_err(refused)?;
            let beside = file.differences.remove(&module).and_then(|beside| beside.bias);
            if let Some(more) = beside {
                let bias = difference.bias.get_or_insert_with(|| vec![0.0; more.len()]);
                bias.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
            file.differences.insert(module, difference);
        }
        Ok(file)
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
        for (module, factors) in &self.kroneckers {
            let Kronecker { w1, w2, .. } = factors.folded();
            tensors.insert(format!("{module}.lokr_w1"), Tensor::new(dtype, &w1.shape, &w1.values));
            tensors.insert(format!("{module}.lokr_w2"), Tensor::new(dtype, &w2.shape, &w2.values));
            // LyCORIS asks for one and makes nothing of it where both factors are whole.
            tensors.insert(format!("{module}.alpha"), Tensor::new(dtype, &[], &[1.0]));
        }
        for (module, Difference { weight, bias, .. }) in &self.norms {
            if !weight.is_empty() {
                tensors.insert(format!("{module}.w_norm"), Tensor::new(dtype, &[weight.len()], weight));
            }
            if let Some(bias) = bias {
                tensors.insert(format!("{module}.b_norm"), Tensor::new(dtype, &[bias.len()], bias));
            }
        }
        for (module, parts) in &self.own {
            for (name, Matrix { values, shape }) in parts {
                tensors.insert(format!("{module}.{name}"), Tensor::new(dtype, shape, values));
            }
        }
        let second = self.second_width;
        tensors.extend(self.tokens.iter().flat_map(|(word, of)| token_vectors::tensors(word, of, second, dtype)));
        let of_layers = self.layer_tokens.iter();
        tensors.extend(of_layers.flat_map(|(word, of)| token_vectors::layer_tensors(word, of, second, dtype)));
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
        if let Some(module) = self.relatives.keys().next() {
            let what = format!("The layer {module} changes a model's own weight, which is not known here");
            return Err(
                Error::new(what, "Convert the adapter with its model first: triptych convert --model M").at(path)
            );
        }
        self.write(path, &self.tensors(), self.metadata.clone())
    }

    /// Writes tensors of this adapter, under the names of another tool, with their hash.
    pub fn write(
        &self,
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<()> {
        if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !tensor.is_finite()) {
            return Err(Error::new(
                format!("{name} has grown beyond what {:?} can hold", tensor.dtype),
                "Lower the strengths or the learning rate, or choose dtype=f32; nothing was overwritten",
            )
            .at(path));
        }
        if let Some(parts) = self.own.values().next() {
            metadata.insert(metadata::OWN.into(), parts.keys().cloned().collect::<Vec<_>>().join(","));
        }
        let hash = safetensors::tensor_hash(tensors);
        metadata.insert("modelspec.hash_sha256".into(), format!("0x{hash}"));
        metadata.insert("sshs_model_hash".into(), hash);
        safetensors::save(path, tensors, &metadata)
    }

    /// A layer's `ΔW` as a low-rank pair, however the file keeps it.
    pub fn pair(&self, module: &str) -> Option<Cow<'_, LoraLayer>> {
        let whole = || self.whole(module)?.pair().map(Cow::Owned);
        self.layers.get(module).map(Cow::Borrowed).or_else(whole)
    }

    /// A layer's `ΔW` as a whole difference, where that is what the file says: itself, or by its factors.
    pub fn whole(&self, module: &str) -> Option<Cow<'_, Difference>> {
        let kept = self.differences.get(module).filter(|difference| !difference.shape.is_empty()).map(Cow::Borrowed);
        kept.or_else(|| self.kroneckers.get(module).map(|factors| Cow::Owned(factors.product())))
    }

    /// Every layer it changes.
    pub fn modules(&self) -> BTreeSet<&String> {
        let whole = self.differences.keys().chain(self.kroneckers.keys()).chain(self.relatives.keys());
        self.layers.keys().chain(whole).chain(self.own.keys()).collect()
    }

    /// How many numbers its layers hold.
    pub fn numbers(&self) -> usize {
        let factors = self.layers.values().map(|layer| layer.down.len() + layer.up.len());
        let whole = self.differences.values().map(|d| d.weight.len() + d.bias.as_ref().map_or(0, Vec::len));
        let own = self.own.values().flat_map(|parts| parts.values().map(|part| part.values.len()));
        let products = self.kroneckers.values().map(Kronecker::numbers);
        let relative = self.relatives.values().map(Relative::numbers);
        let norms = self.norms.values().map(|d| d.weight.len() + d.bias.as_ref().map_or(0, Vec::len));
        factors.chain(whole).chain(products).chain(relative).chain(norms).chain(own).sum()
    }

    /// The ranks in use.
    pub fn ranks(&self) -> BTreeSet<usize> {
        self.layers.values().map(|layer| layer.rank).collect()
    }
}

/// `dtype` if it holds `alpha` exactly: a factor of the whole layer is worth four bytes. f16 ends at 65504, where a
/// rank-stabilised alpha need not.
fn exact(dtype: Dtype, alpha: f32) -> Dtype {
    if safetensors::kept(dtype, alpha).to_bits() == alpha.to_bits() { dtype } else { Dtype::F32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::Checkpoint;

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
            (vec![one("hada_w1_a", &[1], &[0.0])], "its hada_w1_b is missing"),
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
