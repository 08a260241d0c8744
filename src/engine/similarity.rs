//! How alike pictures are, as a number: the cosine between what an image classifier sees in them.
//!
//! The measure of subject fidelity in `DreamBooth` (Ruiz et al. 2023, <https://arxiv.org/abs/2208.12242>, §4.1: CLIP-I
//! and DINO), here on MobileNetV2's pooled features because that network is small enough to ship. Numbers compare with
//! each other only, not with published CLIP-I or DINO scores.

use burn::tensor::{Device, Tensor};

use crate::engine::model::mobilenet::MobileNet;
use crate::engine::{Error, Result};

/// Fewer pixels along a side are no picture.
const SMALLEST: usize = 8;

/// Compares pictures on one device.
#[derive(Debug)]
pub struct Judge {
    network: MobileNet,
    device: Device,
}

impl Judge {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { network: MobileNet::embedded(device)?, device: device.clone() })
    }

    /// Mean cosine over all pairs of a made and a held-out picture, 1 where all are equal.
    ///
    /// RGB `[n, 3, h, w]` in −1…1; the two sides may differ in size, number and device. Waits for the device.
    pub fn similarity(&self, made: Tensor<4>, held_out: Tensor<4>) -> Result<f32> {
        // The mean of all products of two rows is the product of the mean rows.
        let product = self.mean_features(made)? * self.mean_features(held_out)?;
        let cosine = product.sum().try_into_scalar::<f32>().map_err(|e| {
            Error::new(format!("The device did not return its result ({e:?})"), "Try again, or use --device cpu")
        })?;
        if cosine.is_finite() {
            return Ok(cosine);
        }
        Err(Error::new(
            "The pictures cannot be compared because some of their pixels are not numbers",
            "Make them again with a lower learning rate or strength",
        ))
    }

    fn mean_features(&self, pixels: Tensor<4>) -> Result<Tensor<2>> {
        let [n, channels, height, width] = pixels.dims();
        if n == 0 {
            return Err(Error::usage(
                "There is no picture to compare",
                "Give at least one made and one held-out picture",
            ));
        }
        if channels != 3 || height.min(width) < SMALLEST {
            return Err(Error::usage(
                format!("A picture of {width}×{height} pixels and {channels} channels cannot be compared"),
                format!("Give RGB pictures of at least {SMALLEST}×{SMALLEST} pixels"),
            ));
        }
        Ok(self.network.features(pixels.to_device(&self.device)).mean_dim(0))
    }
}
