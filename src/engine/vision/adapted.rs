//! A classifier as it answers: as it came, or with what it has learnt in place.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::mount::{self, Base, Strength};
use crate::engine::model::Mounts;
use crate::engine::vision::{Classifier, Head, Learnt};

pub struct Adapted<'a> {
    pub model: &'a Classifier,
    pub classes: Vec<String>,
    mounts: Mounts,
    head: Head,
}

impl<'a> Adapted<'a> {
    pub fn plain(model: &'a Classifier) -> Self {
        Self { model, classes: model.classes.clone(), mounts: Mounts::none(), head: model.head.clone() }
    }

    pub fn with(model: &'a Classifier, learnt: &Learnt) -> Result<Self> {
        let Classifier { name, layers, weights, device, .. } = model;
        let mut mounts = Mounts::none();
        let base = Base { name, layers, weights, device, family: None };
        mount::mount_on(&mut mounts, &base, &learnt.changes, &Strength::default())?;
        Ok(Self { model, classes: learnt.classes.clone(), mounts: mounts.rest(weights), head: learnt.head(device) })
    }

    /// RGB `[n, 3, h, w]`, normalised → one number for each class, `[n, classes]`.
    pub fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        self.head.forward(self.model.features(x, &self.mounts))
    }
}
