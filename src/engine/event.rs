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
    /// One training step; `charged` is what the method adds to the loss.
    Step { step: usize, total: usize, loss: f32, prior: Option<f32>, charged: Option<f32>, rate: f64 },
    /// A file is whole on disk.
    Saved { path: PathBuf },
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
