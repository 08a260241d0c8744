//! The vectors that a file's words stand for.
//!
//! Every word has `bundle_emb.<word>.clip_l [n, width]` (OneTrainer's name; ComfyUI reads it), and for SDXL's second text
//! encoder `bundle_emb.<word>.clip_g`: in memory a vector's numbers for both stand side by side. Where each cross-attention
//! layer has vectors of its own, that is their mean over the layers, so that programs which know one vector still have
//! the word, and all of them are in `layer_emb.<word>.clip_l [layers, n, width]`, a name that is ours alone.

use std::collections::BTreeMap;
use std::path::Path;

use crate::engine::io::safetensors::{Checkpoint, Dtype, Tensor};
use crate::engine::{Error, Result};

const SHARED: &str = "bundle_emb.";
const EACH: &str = "layer_emb.";
const SUFFIX: &str = ".clip_l";
/// Of OneTrainer's older files.
const OLD_SUFFIX: &str = ".string_to_param.*";
/// Of the second text encoder.
const SECOND: &str = ".clip_g";

/// `[n][width]`.
pub type Vectors = Vec<Vec<f32>>;

/// What a word of a file stands for.
#[derive(Clone, Copy, Debug)]
pub struct Meaning<'a> {
    pub word: &'a String,
    /// For all cross-attention layers; the mean over them where each has its own.
    pub vectors: &'a Vectors,
    /// Each layer's, as many in each, where it has its own.
    pub layers: Option<&'a [Vectors]>,
    pub path: &'a Path,
}

impl Meaning<'_> {
    /// Whether both stand for the same vectors.
    pub fn is(&self, other: Meaning<'_>) -> bool {
        self.vectors == other.vectors && self.layers == other.layers
    }
}

/// The word whose vectors for all layers a tensor holds. An empty word would be found everywhere in a prompt.
pub fn shared(stored: &str) -> Option<&str> {
    let rest = stored.strip_prefix(SHARED)?;
    let word = rest.strip_suffix(SUFFIX).or_else(|| rest.strip_suffix(OLD_SUFFIX));
    word.filter(|word| !word.is_empty())
}

/// A textual inversion's word and the tensor of its vectors: A1111's `emb_params`, ComfyUI's `clip_l` (both are called by
/// the file's name), or diffusers' one tensor, which has the word's own name.
pub fn alone(file: &Checkpoint) -> Option<(String, String)> {
    let (entries, stem) = (file.entries(), file.path().file_stem()?.to_string_lossy().into_owned());
    if let Some(known) = ["emb_params", "clip_l"].into_iter().find(|name| entries.contains_key(*name)) {
        return (entries.keys().all(|name| [known, "clip_g"].contains(&name.as_str())))
            .then(|| (stem, known.to_owned()));
    }
    let (word, entry) = entries.first_key_value().filter(|_| entries.len() == 1)?;
    let is_word = matches!(entry.shape[..], [_] | [_, _]) && !word.ends_with(".weight") && !word.ends_with(".bias");
    (is_word && !word.contains("lora_") && !word.starts_with(SHARED)).then(|| (word.clone(), word.clone()))
}

/// The word whose vectors for each layer a tensor holds.
pub fn each(stored: &str) -> Option<&str> {
    stored.strip_prefix(EACH)?.strip_suffix(SUFFIX).filter(|word| !word.is_empty())
}

/// Whether a tensor holds what goes with another one: a word's vectors for the second text encoder.
pub fn is_second(stored: &str) -> bool {
    [SHARED, EACH].iter().any(|start| stored.starts_with(start)) && stored.ends_with(SECOND)
}

/// Numbers of each vector that are for a second text encoder; 0 where there is none.
pub fn second_width(file: &Checkpoint) -> usize {
    let second = file.entries().iter().find(|(name, _)| is_second(name));
    second.and_then(|(_, entry)| entry.shape.last().copied()).unwrap_or(0)
}

/// The tensor `name` as vectors of a word, side by side with those for the second text encoder where it has such.
pub fn read(file: &Checkpoint, name: &str) -> Result<Vectors> {
    let mut vectors = read_one(file, name)?;
    let second = name.strip_suffix(SUFFIX).map(|start| format!("{start}{SECOND}"));
    if let Some(second) = second.filter(|second| file.entries().contains_key(second)) {
        let more = read_one(file, &second)?;
        if more.len() != vectors.len() {
            return Err(damaged(file, &second));
        }
        vectors.iter_mut().zip(more).for_each(|(vector, more)| vector.extend(more));
    }
    Ok(vectors)
}

fn read_one(file: &Checkpoint, name: &str) -> Result<Vectors> {
    let values = file.f32(name)?;
    let width = file.shape(name)?.last().copied().unwrap_or(0);
    match width {
        0 => Err(damaged(file, name)),
        _ if values.iter().any(|x| !x.is_finite()) => Err(damaged(file, name)),
        width => Ok(values.chunks(width).map(<[f32]>::to_vec).collect()),
    }
}

/// The tensor `name` as vectors of a word for each layer.
pub fn read_layers(file: &Checkpoint, name: &str) -> Result<Vec<Vectors>> {
    match *file.shape(name)? {
        [layers, n, width] if layers > 0 && n > 0 && width > 0 => {
            Ok(read(file, name)?.chunks(n).map(<[_]>::to_vec).collect())
        }
        _ => Err(damaged(file, name)),
    }
}

fn damaged(file: &Checkpoint, name: &str) -> Error {
    Error::new(format!("The token vectors {name} are damaged"), "Export the file again").at(file.path())
}

/// Gives every word of `each` that has none its vectors for all layers; the word of which the two have not as many
/// numbers is the error.
pub fn complete(
    shared: &mut BTreeMap<String, Vectors>,
    each: &BTreeMap<String, Vec<Vectors>>,
) -> std::result::Result<(), String> {
    let shape = |vectors: &Vectors| vectors.iter().map(Vec::len).collect::<Vec<_>>();
    for (word, layers) in each {
        let mean = mean(layers);
        let vectors = shared.entry(word.clone()).or_insert_with(|| mean.clone());
        if shape(vectors) != shape(&mean) {
            return Err(word.clone());
        }
    }
    Ok(())
}

/// Over the layers, summed in f64: the mean of equals is each of them, bit for bit.
pub fn mean(layers: &[Vectors]) -> Vectors {
    let Some(first) = layers.first() else { return Vectors::new() };
    let mut sums: Vec<Vec<f64>> = first.iter().map(|vector| vec![0.0; vector.len()]).collect();
    for layer in layers {
        for (sum, vector) in sums.iter_mut().zip(layer) {
            sum.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }
    let n = layers.len() as f64;
    sums.into_iter().map(|sum| sum.into_iter().map(|x| (x / n) as f32).collect()).collect()
}

/// A word's tensor with its name.
pub fn tensor(word: &str, vectors: &[Vec<f32>], dtype: Dtype) -> (String, Tensor) {
    (format!("{SHARED}{word}{SUFFIX}"), matrix(vectors, dtype))
}

/// The tensor of a word that each layer has its own vectors for, with its name.
pub fn layer_tensor(word: &str, layers: &[Vectors], dtype: Dtype) -> (String, Tensor) {
    (format!("{EACH}{word}{SUFFIX}"), stack(layers, dtype))
}

/// A word's tensors with their names; the last `second` numbers of each vector are for a second text encoder.
pub fn tensors(word: &str, vectors: &Vectors, second: usize, dtype: Dtype) -> Vec<(String, Tensor)> {
    let (first, rest) = sides(vectors, second);
    let rest = rest.map(|rest| (format!("{SHARED}{word}{SECOND}"), matrix(&rest, dtype)));
    [tensor(word, &first, dtype)].into_iter().chain(rest).collect()
}

/// The same of a word that each layer has its own vectors for.
pub fn layer_tensors(word: &str, layers: &[Vectors], second: usize, dtype: Dtype) -> Vec<(String, Tensor)> {
    let (first, rest): (Vec<_>, Vec<_>) = layers.iter().map(|layer| sides(layer, second)).unzip();
    let rest: Option<Vec<Vectors>> = rest.into_iter().collect();
    let rest = rest.map(|rest| (format!("{EACH}{word}{SECOND}"), stack(&rest, dtype)));
    [layer_tensor(word, &first, dtype)].into_iter().chain(rest).collect()
}

/// A word as a file of its own, a textual inversion: A1111's and diffusers' one tensor, or SDXL's two.
pub fn embedding(vectors: &Vectors, second: usize) -> BTreeMap<String, Tensor> {
    let (first, rest) = sides(vectors, second);
    let named = match rest {
        Some(rest) => vec![("clip_l", first), ("clip_g", rest)],
        None => vec![("emb_params", first)],
    };
    named.into_iter().map(|(key, side)| (key.to_owned(), matrix(&side, Dtype::F32))).collect()
}

fn matrix(vectors: &[Vec<f32>], dtype: Dtype) -> Tensor {
    let width = vectors.first().map_or(0, Vec::len);
    Tensor::new(dtype, &[vectors.len(), width], &vectors.concat())
}

fn stack(layers: &[Vectors], dtype: Dtype) -> Tensor {
    let of_all = matrix(&layers.concat(), dtype);
    let n = layers.first().map_or(0, Vec::len);
    Tensor { shape: vec![layers.len(), n, of_all.shape[1]], ..of_all }
}

/// What the first text encoder takes of the vectors, and the second, where there is one.
fn sides(vectors: &Vectors, second: usize) -> (Vectors, Option<Vectors>) {
    if second == 0 {
        return (vectors.clone(), None);
    }
    let cut = |vector: &Vec<f32>| {
        let (first, rest) = vector.split_at(vector.len().saturating_sub(second));
        (first.to_vec(), rest.to_vec())
    };
    let (first, rest) = vectors.iter().map(cut).unzip();
    (first, Some(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::lora_file::LoraFile;
    use crate::engine::io::safetensors;

    fn layers() -> Vec<Vectors> {
        vec![vec![vec![0.1, 2.0], vec![3.0, -4.0]], vec![vec![0.3, 4.0], vec![5.0, 4.0]]]
    }

    fn saved(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<LoraFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        safetensors::save(&path, &tensors.into_iter().collect(), &BTreeMap::new()).unwrap();
        LoraFile::open(&path)
    }

    #[test]
    fn each_layers_vectors_come_back_with_their_mean() {
        let mut file = LoraFile { dtype: Some(Dtype::F32), ..LoraFile::default() };
        file.add_layers("<a>", layers());
        file.tokens.insert("<b>".into(), vec![vec![7.0, 8.0]]);
        assert_eq!(file.tokens["<a>"], [vec![0.2, 3.0], vec![4.0, 0.0]]);
        let tensors = file.tensors();
        assert_eq!(tensors["layer_emb.<a>.clip_l"].shape, [2, 2, 2]);
        assert_eq!(tensors["bundle_emb.<a>.clip_l"].shape, [2, 2]);
        let read = saved(tensors).unwrap();
        assert_eq!((&read.tokens, &read.layer_tokens), (&file.tokens, &file.layer_tokens));
        let lone = saved([layer_tensor("<a>", &layers(), Dtype::F32)]).unwrap();
        assert_eq!((&lone.tokens["<a>"], lone.layer_tokens), (&file.tokens["<a>"], file.layer_tokens));
    }

    #[test]
    fn vectors_for_two_encoders_stand_side_by_side_in_memory_alone() {
        let mut file = LoraFile { dtype: Some(Dtype::F32), second_width: 1, ..LoraFile::default() };
        file.add_layers("<a>", layers());
        file.tokens.insert("<b>".into(), vec![vec![7.0, 8.0]]);
        let tensors = file.tensors();
        assert_eq!(tensors["layer_emb.<a>.clip_g"].shape, [2, 2, 1]);
        assert_eq!(tensors["bundle_emb.<b>.clip_l"].bytes, 7.0_f32.to_le_bytes());
        assert_eq!(tensors["bundle_emb.<b>.clip_g"].bytes, 8.0_f32.to_le_bytes());
        let read = saved(tensors).unwrap();
        assert_eq!((&read.tokens, &read.layer_tokens), (&file.tokens, &file.layer_tokens));
        assert_eq!(read.second_width, 1);
    }

    #[test]
    fn the_mean_of_equals_is_each_of_them() {
        let vectors: Vectors = vec![vec![0.1, 1e-20, 1.0 / 3.0], vec![-7.7, 0.0, 1e20]];
        for n in [1, 3, 5, 16] {
            assert_eq!(mean(&vec![vectors.clone(); n]), vectors);
        }
    }

    #[test]
    fn what_does_not_fit_is_damaged() {
        let flat = |shape: &[usize]| Tensor::new(Dtype::F32, shape, &vec![0.5; shape.iter().product()]);
        let name = || "layer_emb.<a>.clip_l".to_owned();
        for shape in [vec![4, 2], vec![0, 2, 2], vec![2, 0, 2]] {
            let other = tensor("<b>", &[vec![1.0]], Dtype::F32);
            let error = saved([(name(), flat(&shape)), other]).unwrap_err();
            assert!(error.what.contains("damaged"), "{shape:?}: {error}");
        }
        let three = ("bundle_emb.<a>.clip_l".to_owned(), flat(&[3, 2]));
        let error = saved([layer_tensor("<a>", &layers(), Dtype::F32), three]).unwrap_err();
        assert!(error.what.contains("<a>"), "{error}");
    }
}
