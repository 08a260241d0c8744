//! What a model's matrices are held as. Everything is computed in f32, whatever they are held as.

use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::engine::io::{Checkpoint, Dtype};
use crate::engine::{Error, Result};

/// Below this, f16 saves less than converting costs: the starter is a sixth of it.
const SMALL: usize = 1 << 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In a large model, f16 where the file has f16; otherwise f32. Nothing is rounded.
    #[default]
    Auto,
    F32,
    /// Half the memory of f32, rounded where the file has more.
    F16,
}

/// What matrices are held as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrices {
    /// f16 as f16, all else as f32.
    AsStored,
    F32,
    F16,
}

impl Precision {
    pub const ALL: [Self; 3] = [Self::Auto, Self::F32, Self::F16];

    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// For a model with this denoiser.
    pub fn matrices(self, denoiser: &Checkpoint) -> Matrices {
        let numbers: usize = denoiser.entries().values().map(|entry| entry.shape.iter().product::<usize>()).sum();
        match self {
            Self::Auto if size_of::<f32>() * numbers > SMALL => Matrices::AsStored,
            Self::Auto | Self::F32 => Matrices::F32,
            Self::F16 => Matrices::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::usage(format!("“{text}” is not a precision"), format!("Choose one of {known}"))
        })
    }
}

/// Where a model's tensors go.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    pub device: &'a Device,
    /// Vectors are small and always in f32.
    pub matrices: Matrices,
}

impl<'a> Hold<'a> {
    pub fn wide(device: &'a Device) -> Self {
        Self { device, matrices: Matrices::F32 }
    }

    /// A stored matrix as it is held.
    pub fn matrix(&self, stored: Dtype) -> Dtype {
        match (self.matrices, stored) {
            (Matrices::F16, _) | (Matrices::AsStored, Dtype::F16) => Dtype::F16,
            (Matrices::F32 | Matrices::AsStored, _) => Dtype::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Tensor, TensorData};

    use super::*;
    use crate::engine::device;
    use crate::engine::model::{Mounts, StableDiffusion};
    use crate::engine::random::Philox;

    /// A model of 4 numbers, or of as many as are large.
    fn denoiser(dtype: Dtype, side: usize) -> Checkpoint {
        Checkpoint::shaped([("weight".to_owned(), vec![side, side])].into_iter(), dtype)
    }

    /// The starter is stored in f16: held so, or widened when it is read, it answers with the same bits.
    #[test]
    fn a_model_in_f16_answers_as_its_widened_self() {
        let device = device::cpu();
        let answers = [Precision::F32, Precision::F16].map(|precision| {
            let model = StableDiffusion::open_as(&StableDiffusion::folder("starter"), &device, precision).unwrap();
            let prompt = model.tokenizer.encode("a 3d emoji of robot", &[]).unwrap();
            let context = model.condition(&[prompt], &[], &Mounts::none());
            let noise = Tensor::from_data(TensorData::new(Philox::new(1).normal(0, 256), [1, 4, 8, 8]), &device);
            let said = model.unet.forward(noise.clone(), &[500.0], &context.clone().into(), &Mounts::none());
            let pixels = model.vae.decode(noise);
            let (mean, _) = model.vae.encode(pixels.clone());
            let dtype = model.weights[0].oi.dtype();
            (dtype, context.into_data(), said.into_data(), pixels.into_data(), mean.into_data())
        });
        let [(wide, ..), (half, ..)] = &answers;
        assert_eq!((wide, half), (&DType::F32, &DType::F16));
        let [wide, half] = answers.map(|(_, context, said, pixels, mean)| [context, said, pixels, mean]);
        assert_eq!(wide, half);
    }

    #[test]
    fn only_what_is_large_and_stored_so_is_held_in_f16_unasked() {
        let device = device::cpu();
        let held = |precision: Precision, side, stored| {
            Hold { device: &device, matrices: precision.matrices(&denoiser(stored, side)) }.matrix(stored)
        };
        let (small, large) = (2, 1 << 15);
        assert_eq!(held(Precision::Auto, small, Dtype::F16), Dtype::F32);
        assert_eq!(held(Precision::Auto, large, Dtype::F16), Dtype::F16);
        assert_eq!(held(Precision::Auto, large, Dtype::F32), Dtype::F32, "nothing is rounded unasked");
        assert_eq!(held(Precision::F16, small, Dtype::F32), Dtype::F16);
        assert_eq!(held(Precision::F32, large, Dtype::F16), Dtype::F32);
        assert!("half".parse::<Precision>().unwrap_err().advice.contains("auto, f32, f16"));
    }
}
