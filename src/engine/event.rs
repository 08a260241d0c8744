//! What a running job tells whoever watches it. Plain data: no tensors.

use std::path::PathBuf;

use serde::Serialize;

use crate::engine::Result;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Something worth a line.
    Note { text: String },
    /// Something is not as it should be, and the job goes on.
    Warning { text: String },
    /// A stage of known length.
    Stage { name: String, total: usize },
    /// `done` of the current stage's `total`.
    Progress { done: usize, total: usize },
    /// One training step; `charged` is what the method adds to the loss, `gradient` the joint norm of all gradients
    /// before clipping.
    Step { step: usize, total: usize, loss: f32, prior: Option<f32>, charged: Option<f32>, gradient: f32, rate: f64 },
    /// The loss after this step on pictures, noise and timesteps that stay the same, so that it can be compared with
    /// that of any other step of the run.
    Steady { step: usize, loss: f32 },
    /// What the adapter is made of by now.
    Spectrum(Spectrum),
    /// The adapter of this step is whole in a file of its own.
    Kept { step: usize, path: PathBuf },
    /// The adapter of this step has the lowest steady loss so far, and is whole in a file of its own.
    Best { step: usize, loss: f32, path: PathBuf },
    /// The file of a kept step made room for later ones.
    Dropped { step: usize },
    /// A picture of what was learnt by this step is whole on disk.
    Sampled { step: usize, prompt: String, path: PathBuf },
    /// A file is whole on disk.
    Saved { path: PathBuf },
}

/// The singular values of all trained layers after a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spectrum {
    pub step: usize,
    pub layers: Vec<SingularValues>,
}

/// Of one layer's `ΔW` at strength 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SingularValues {
    /// kohya's name of the layer.
    pub layer: String,
    /// Non-increasing, as many as the pair has directions.
    pub values: Vec<f32>,
}

impl Event {
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }

    pub fn warning(text: impl Into<String>) -> Self {
        Self::Warning { text: text.into() }
    }
}

/// Receives events; an error (usually [`crate::engine::Error::cancelled`]) stops the job at the next safe point.
pub type Watch<'a> = dyn FnMut(Event) -> Result<()> + 'a;
