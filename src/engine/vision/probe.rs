//! A linear probe: the head learns, the network stays as it is.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::{Adapter, Spot, Start, Stored};
use crate::engine::model::{Change, Layer, Site, Weight};

/// As `--method` calls it.
pub const NAME: &str = "probe";

/// The adapter of a probe: nothing on any layer.
pub struct Nothing;

impl Adapter for Nothing {
    fn begin(&self, _: &Spot<'_>) -> Result<Vec<Start>> {
        Ok(Vec::new())
    }

    fn change(&self, _: &[Tensor<2>], _: &Site<'_>) -> Vec<Change> {
        Vec::new()
    }

    fn store(&self, _: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        Ok(Stored::Nothing)
    }

    fn count(&self, _: &Layer, _: f32) -> usize {
        0
    }
}
