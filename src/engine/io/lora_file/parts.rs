//! The tensors of one layer of an adapter file, by what stands behind the layer's name.

use std::collections::BTreeMap;

use crate::engine::io::lora_file::numbers::Numbers;
use crate::engine::io::safetensors::Checkpoint;

/// What is wrong with a layer, as the end of a sentence.
pub type Wrong = String;

/// More numbers than any layer of a picture model has: what multiplies out to more is a trap or an accident, and would
/// take all memory.
const LARGEST: usize = 1 << 27;

/// How many numbers a tensor of this shape has, which the file need not hold.
pub fn room(shape: &[usize]) -> Result<usize, Wrong> {
    let numbers = shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
    numbers.filter(|&n| n <= LARGEST).ok_or_else(|| format!("multiplied out, it would have the shape {shape:?}"))
}

/// A tensor of any shape, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub values: Vec<f32>,
    pub shape: Vec<usize>,
}

impl Array {
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Of the matrix `[rows, columns]` that the tensor is when all but its first axis are one.
    pub fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Every number of row `i` of that matrix.
    pub fn row(&self, i: usize) -> &[f32] {
        let columns = self.columns();
        &self.values[i * columns..(i + 1) * columns]
    }

    /// The tensor as `N` axes; the error names it.
    pub fn axes<const N: usize>(&self, name: &str) -> Result<[usize; N], Wrong> {
        <[usize; N]>::try_from(self.shape.as_slice())
            .ok()
            .ok_or_else(|| format!("its {name} has the shape {:?}", self.shape))
    }
}

/// The tensors of one layer.
pub struct Parts<'a> {
    pub file: &'a Checkpoint,
    /// Stored names, by the part's name in [`super::spelling`].
    pub stored: BTreeMap<&'static str, &'a str>,
    /// What stands beside the tensors: in PEFT's configuration, or nowhere.
    pub numbers: Numbers,
}

impl Parts<'_> {
    pub fn has(&self, part: &str) -> bool {
        self.stored.contains_key(part)
    }

    /// A tensor that must be there and hold numbers only.
    pub fn array(&self, part: &'static str) -> Result<Array, Wrong> {
        self.maybe(part)?.ok_or_else(|| format!("its {part} is missing"))
    }

    /// A tensor that may be missing.
    pub fn maybe(&self, part: &'static str) -> Result<Option<Array>, Wrong> {
        let Some(name) = self.stored.get(part) else { return Ok(None) };
        let values = self.file.f32(name).map_err(|e| e.what)?;
        let shape = self.file.shape(name).map_err(|e| e.what)?.to_vec();
        if shape.contains(&0) {
            return Err(format!("its {part} is empty"));
        }
        if values.iter().any(|x| !x.is_finite()) {
            return Err("it holds NaN or infinite numbers".into());
        }
        Ok(Some(Array { values, shape }))
    }

    /// One number, as files keep it: of no axes or of one.
    pub fn number(&self, part: &'static str) -> Result<Option<f32>, Wrong> {
        match self.stored.get(part) {
            None => Ok(None),
            Some(name) => match self.file.f32(name).map_err(|e| e.what)?[..] {
                [x] if x.is_finite() => Ok(Some(x)),
                _ => Err(format!("its {part} is not a number")),
            },
        }
    }

    /// `alpha`, for a method of this rank: kohya reads 0 as the rank, others as no effect, and nobody writes it on purpose;
    /// where there is none, the scale is 1.
    pub fn alpha(&self, rank: usize) -> Result<f32, Wrong> {
        let said = self.number("alpha")?.or(self.numbers.alpha).filter(|&alpha| alpha != 0.0);
        let alpha = said.unwrap_or(rank as f32);
        // The scale is alpha / √rank then.
        Ok(if self.numbers.rank_stabilised { alpha * (rank as f32).sqrt() } else { alpha })
    }
}
