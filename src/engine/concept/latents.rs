//! Pictures as the denoiser sees them, kept on disk so that a second training starts at once.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use sha2::{Digest as _, Sha256};

use crate::engine::concept::{self, Fit, Image, Picture};
use crate::engine::device::read;
use crate::engine::event::{Event, Watch};
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::model::StableDiffusion;
use crate::engine::{Error, Result};

/// How pictures are prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preparation {
    /// `[width, height]` in pixels, multiples of the autoencoder's factor.
    pub size: [usize; 2],
    /// What shows through transparency and beside padded pictures.
    pub background: [u8; 3],
    pub fit: Fit,
    /// Adds each picture's mirror image.
    pub flip: bool,
}

/// Latents of all pictures, then of their mirror images if asked for: `[n, 4, h, w]`, scaled to about unit variance.
///
/// `cache` is a folder; a result is found there again by the content of the picture, the preparation and the
/// autoencoder.
pub fn latents(
    model: &StableDiffusion,
    pictures: &[Picture],
    how: Preparation,
    cache: Option<&Path>,
    watch: &mut Watch<'_>,
) -> Result<Tensor<4>> {
    let mirrors: &[bool] = if how.flip { &[false, true] } else { &[false] };
    let total = mirrors.len() * pictures.len();
    watch(Event::Stage { name: "preparing pictures".into(), total })?;
    let mut all = Vec::new();
    for &mirror in mirrors {
        for picture in pictures {
            all.push(one(model, &picture.path, how, mirror, cache)?);
            watch(Event::Progress { done: all.len(), total })?;
        }
    }
    Ok(Tensor::cat(all, 0))
}

fn one(
    model: &StableDiffusion,
    path: &Path,
    how: Preparation,
    mirror: bool,
    cache: Option<&Path>,
) -> Result<Tensor<4>> {
    let [width, height] = how.size.map(|side| side / model.vae.factor());
    let shape = [1, model.vae.config.latent_channels, height, width];
    let text = format!(
        "{} {:?} {mirror} {} {:?}",
        concept::content_hash(path)?,
        Preparation { flip: false, ..how },
        model.vae_hash,
        model.device
    );
    let key = safetensors::hex(&Sha256::digest(text.as_bytes()));
    let kept = cache.map(|folder| folder.join(format!("{}.safetensors", &key[..32])));
    if let Some(file) = kept.as_deref().filter(|file| file.is_file())
        && let Ok(found) = Checkpoint::open(file).and_then(|file| file.f32("latents"))
        && found.len() == shape.iter().product::<usize>()
    {
        return Ok(Tensor::from_data(TensorData::new(found, shape), &model.device));
    }
    let image = concept::load(path, how.size, how.background, how.fit)?;
    let image = if mirror { image.flipped() } else { image };
    // The mean of the distribution: its spread is far below the noise of training.
    let (mean, _) = model.vae.encode(pixels(&image, model));
    let latents = mean * model.vae.config.scaling_factor;
    let values = read(latents.clone())?;
    if values.iter().any(|x| !x.is_finite()) {
        return Err(
            Error::new("The autoencoder turned this picture into NaN", "Use --device cpu, or another picture").at(path)
        );
    }
    if let Some(file) = kept {
        let tensor = safetensors::Tensor::new(Dtype::F32, &shape, &values);
        // A cache that cannot be written costs time, nothing else.
        if let Err(error) =
            safetensors::save(&file, &BTreeMap::from([("latents".to_owned(), tensor)]), &BTreeMap::new())
        {
            tracing::warn!("{error}");
        }
    }
    Ok(latents)
}

/// `[1, 3, h, w]`.
pub fn pixels(image: &Image, model: &StableDiffusion) -> Tensor<4> {
    Tensor::from_data(TensorData::new(image.data.clone(), [1, 3, image.height, image.width]), &model.device)
}
