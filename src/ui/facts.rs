//! What the window says about the open model, counted once.

use crate::engine::adapter::target;
use crate::engine::model::StableDiffusion;
use crate::engine::session;

#[derive(Clone, Debug)]
pub struct Facts {
    pub name: String,
    pub hash: String,
    /// `[width, height]` in pixels.
    pub size: [usize; 2],
    /// Numbers in the layers that adapters can sit on.
    pub weights: usize,
    pub layers: usize,
    /// `f32`, `f16`, …
    pub dtype: String,
    /// How its captions read.
    pub template: String,
    /// Inputs of the narrowest layer that is trained by default; slots share them.
    narrowest: usize,
}

impl Facts {
    pub fn of(model: &StableDiffusion) -> Self {
        let trained = target::select(target::DEFAULT, &model.layers).unwrap_or_default();
        Self {
            name: model.name.clone(),
            hash: model.hash.clone(),
            size: model.native_size(),
            weights: model.layers.iter().map(|layer| layer.out * layer.input()).sum(),
            layers: model.layers.len(),
            dtype: model
                .weights
                .first()
                .map_or_else(String::new, |weight| format!("{:?}", weight.oi.dtype()).to_lowercase()),
            template: session::template(model),
            narrowest: trained.iter().map(|&id| model.layer(id).input()).min().unwrap_or(0),
        }
    }

    /// How many slots of `block` columns there are.
    pub fn capacity(&self, block: usize) -> usize {
        self.narrowest / block.max(1)
    }
}
