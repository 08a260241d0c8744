//! What a model's matrices are held as. Everything is computed in f32, whatever they are held as.

use std::str::FromStr;

use burn::tensor::Device;

use crate::engine::io::{Checkpoint, Dtype};
use crate::engine::{Error, Result};

/// Below this, f16 saves less than converting costs: the starter is a sixth of it.
const SMALL: usize = 1 << 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the file holds them, where that is f16 and the model is large; otherwise f32.
    #[default]
    Auto,
    F32,
    F16,
}

impl Precision {
    pub const NAMES: [&str; 3] = ["auto", "f32", "f16"];

    /// What the matrices of a denoiser's file, and of the parts that come with it, are to be held as.
    pub fn matrices(self, denoiser: &Checkpoint) -> Dtype {
        let entries = denoiser.entries().values();
        let numbers: usize = entries.clone().map(|entry| entry.shape.iter().product::<usize>()).sum();
        let halves = entries.filter(|entry| entry.shape.len() > 1).all(|entry| entry.dtype == Dtype::F16);
        match self {
            Self::F16 => Dtype::F16,
            Self::Auto if halves && size_of::<f32>() * numbers > SMALL => Dtype::F16,
            Self::Auto | Self::F32 => Dtype::F32,
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            _ => Err(Error::usage(
                format!("“{text}” is not a precision"),
                format!("Choose one of {}", Self::NAMES.join(", ")),
            )),
        }
    }
}

/// Where a model's tensors go.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    pub device: &'a Device,
    /// f32 or f16. Vectors are small and always in f32.
    pub matrices: Dtype,
}

impl<'a> Hold<'a> {
    pub fn wide(device: &'a Device) -> Self {
        Self { device, matrices: Dtype::F32 }
    }
}
