//! A picture to start from, and the part of it that is repainted: image to image (Meng et al. 2021, arXiv 2108.01073),
//! inpainting as diffusers' `StableDiffusionInpaintPipeline` does with a plain model; but under the noise of the first step
//! the old picture always lies, also where the strength is 1.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use image::RgbImage;

use crate::engine::concept::picture;
use crate::engine::model::StableDiffusion;
use crate::engine::preview::mask::Mask;
use crate::engine::{Error, Result};

/// How far a picture may change where nothing is said.
pub const STRENGTH: f64 = 0.75;

/// A picture to start from instead of noise alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Init {
    /// Where it lies: for whoever keeps the request.
    pub file: PathBuf,
    pub picture: Arc<RgbImage>,
    /// How far it may change, 0…1.
    pub strength: f64,
    /// What of it is repainted; everything without one.
    pub mask: Option<Mask>,
}

impl Init {
    /// Reads the picture, and the mask where there is one.
    pub fn open(file: &Path, strength: f64, mask: Option<&Path>) -> Result<Self> {
        let mask = mask.map(Mask::open).transpose()?;
        Ok(Self { file: file.to_owned(), picture: Arc::new(picture::open(file)?), strength, mask })
    }

    /// Of `n` steps, those that are taken: the last `round(n·strength)`, at least one unless the strength is 0.
    pub(super) fn steps(&self, n: usize) -> Result<usize> {
        if !(0.0..=1.0).contains(&self.strength) {
            let what = format!("The picture to start from cannot change by {}", self.strength);
            return Err(Error::usage(what, "Choose a strength from 0, as it is, to 1, anything"));
        }
        let steps = (n as f64 * self.strength).round() as usize;
        Ok(if self.strength > 0.0 { steps.max(1) } else { 0 })
    }
}

/// The picture at the size of the one that is made.
pub(super) struct Original {
    /// `[1, c, h, w]` of unit scale.
    pub latents: Tensor<4>,
    /// `[1, 3, height, width]` in 0…1, each value a whole number of 255ths.
    pixels: Tensor<4>,
    repaint: Option<Repaint>,
}

/// What is new of the picture: 1, and what is kept: 0.
struct Repaint {
    /// `[1, 1, h, w]`
    latents: Tensor<4>,
    /// `[1, 1, height, width]`, soft at the edge.
    pixels: Tensor<4>,
}

impl Original {
    /// For latents of `height`×`width`. The picture is resized and its middle cut out.
    pub fn of(init: &Init, model: &StableDiffusion, [height, width]: [usize; 2]) -> Result<Self> {
        let factor = model.vae.factor();
        let size = [width * factor, height * factor];
        let picture = picture::cropped(&init.picture, size);
        let plane = |c: usize| picture.as_raw().iter().skip(c).step_by(3).map(|&v| f32::from(v) / 255.0);
        let tensor = |values: Vec<f32>, [c, h, w]: [usize; 3]| {
            Tensor::<4>::from_data(TensorData::new(values, [1, c, h, w]), &model.device)
        };
        let pixels = tensor((0..3).flat_map(plane).collect(), [3, size[1], size[0]]);
        let latents = model.vae.encode(pixels.clone() * 2.0 - 1.0).0 * model.vae.config.scaling_factor;
        let own = [init.picture.width(), init.picture.height()];
        let mask = init.mask.as_ref().map(|mask| mask.fitted(own, size)).transpose()?;
        if mask.as_ref().is_some_and(Mask::is_empty) && !init.mask.as_ref().is_some_and(Mask::is_empty) {
            return Err(Error::usage(
                "What is to be painted anew lies outside of the picture that is made: its middle is cut out",
                "Choose a size of the picture's own shape, or paint nearer to its middle",
            ));
        }
        let repaint = mask.map(|mask| Repaint {
            latents: tensor(mask.blocks(factor), [1, height, width]),
            // Half a latent pixel hides the seam, and no more of the old picture is left inside than that.
            pixels: tensor(mask.soft(factor as u32 / 2), [1, size[1], size[0]]),
        });
        Ok(Self { latents, pixels, repaint })
    }

    /// What is kept at noise level σ, the rest as it is: `x` is `x₀ + σ·ε` in k-diffusion's coordinates.
    pub fn keep(&self, x: Tensor<4>, noise: &Tensor<4>, sigma: f64) -> Tensor<4> {
        match &self.repaint {
            Some(Repaint { latents: new, .. }) => {
                let kept = self.latents.clone() + noise.clone() * sigma;
                x * new.clone() + kept * (1.0 - new.clone())
            }
            None => x,
        }
    }

    /// The finished pictures, each with the old pixels put back outside of the mask.
    pub fn paste(&self, pixels: Tensor<4>) -> Tensor<4> {
        match &self.repaint {
            Some(Repaint { pixels: new, .. }) => pixels * new.clone() + self.pixels.clone() * (1.0 - new.clone()),
            None => pixels,
        }
    }
}
