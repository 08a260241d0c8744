//! Pictures as the denoiser sees them, kept on disk so that a second training starts at once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use sha2::{Digest as _, Sha256};

use crate::engine::concept::{self, Image, View};
use crate::engine::device::read;
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::model::StableDiffusion;
use crate::engine::{Error, Result};

/// Latents of views of one size, `[n, 4, h, w]`, scaled to about unit variance. `tell` hears of each that is done.
///
/// `cache` is a folder; a result is found there again by the content of the picture, the view and the autoencoder.
pub fn latents(
    model: &StableDiffusion,
    views: &[(&Path, View)],
    cache: Option<&Path>,
    tell: &mut impl FnMut() -> Result<()>,
) -> Result<Tensor<4>> {
    let (mut all, mut hashes) = (Vec::new(), BTreeMap::new());
    for (path, view) in views {
        // A picture has many views, and is read whole for its hash.
        let hash = match hashes.entry(*path) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(concept::content_hash(path)?),
        };
        all.push(one(model, path, hash, view, cache)?);
        tell()?;
    }
    Ok(Tensor::cat(all, 0))
}

fn one(model: &StableDiffusion, path: &Path, hash: &str, view: &View, cache: Option<&Path>) -> Result<Tensor<4>> {
    let [width, height] = view.size.map(|side| side / model.vae.factor());
    let shape = [1, model.vae.config.latent_channels, height, width];
    // Whatever a view is made of is in the key: none is ever mistaken for another.
    let text = format!("{hash} {view:?} {} {:?}", model.vae_hash, model.device);
    let key = safetensors::hex(&Sha256::digest(text.as_bytes()));
    let kept = cache.map(|folder| folder.join(format!("{}.safetensors", &key[..32])));
    if let Some(file) = kept.as_deref().filter(|file| file.is_file())
        && let Ok(found) = Checkpoint::open(file).and_then(|file| file.f32("latents"))
        && found.len() == shape.iter().product::<usize>()
    {
        return Ok(Tensor::from_data(TensorData::new(found, shape), &model.device));
    }
    let image = view.load(path)?;
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
