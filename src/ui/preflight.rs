//! What a training will take, before it starts.

use crate::engine::adapter;
use crate::engine::session::{self, Preflight as Fit};
use crate::engine::{Error, Result};
use crate::ui::preferences::Preferences;
use crate::ui::studio::Studio;

/// Of the training the form asks for.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// A wrong field is told here, before anything starts.
    pub fit: Result<Fit>,
    pub steps: usize,
    /// What the time of a step depends on.
    pub key: String,
    /// Of an earlier training like this one.
    pub step_seconds: Option<f64>,
}

/// Fields that make a step longer or shorter.
const COSTLY: [&str; 10] = [
    "accumulate",
    "batch",
    "prior",
    "prior_batch",
    "rank",
    "recompute",
    "resolution",
    "resolutions",
    "strangers",
    "targets",
];

impl Preflight {
    /// `None` until a model is open.
    pub fn of(studio: &Studio, preferences: &Preferences) -> Option<Self> {
        let with = studio.opened.ready()?;
        let form = &studio.project.training;
        let changes: Vec<_> = form.changes.clone().into_iter().collect();
        let mut steps = 0;
        // A concept that is not chosen yet takes no room: its file will lie beside the project.
        let out = studio.asked().map_or_else(|_| studio.path.clone(), |(_, training)| training.out);
        let fit = adapter::method(&form.method).and_then(|method| {
            steps = session::settings(method, &changes)?.1.integer("steps");
            Fit::of(&with.model, method, &changes, &out)
        });
        let value = |name: &str| form.changes.get(name).map_or("·", String::as_str);
        let shape = COSTLY.map(value).join(" ");
        let key = format!("{} | {} | {} | {shape}", with.session.device.name, with.model.name, form.method);
        Some(Self { fit, steps, step_seconds: preferences.step_seconds.get(&key).copied(), key })
    }

    /// Why the training would not fit, and what to change.
    pub fn refusal(&self) -> Option<Error> {
        match &self.fit {
            Ok(fit) => fit.refusal.clone(),
            Err(error) => Some(error.clone()),
        }
    }
}
