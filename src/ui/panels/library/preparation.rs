//! How the training form would prepare pictures, worked out when the form or the model changes.

use std::sync::Arc;

use crate::engine::adapter;
use crate::engine::concept::latents::Preparation;
use crate::engine::model::StableDiffusion;
use crate::engine::project::TrainingForm;
use crate::engine::session;
use crate::engine::train::config::Config;
use crate::engine::{Error, Result};
use crate::ui::studio::Studio;

#[derive(Default)]
pub struct Cached {
    known: Option<(TrainingForm, Arc<StableDiffusion>, Result<Preparation>)>,
}

impl Cached {
    /// `None` until a model is open.
    pub fn get(&mut self, studio: &Studio) -> Option<Result<Preparation, &Error>> {
        let model = &studio.opened.ready()?.model;
        let form = &studio.project.training;
        let is_known = self.known.as_ref().is_some_and(|(known, on, _)| known == form && Arc::ptr_eq(on, model));
        if !is_known {
            self.known = Some((form.clone(), Arc::clone(model), prepared(form, model)));
        }
        self.known.as_ref().map(|(_, _, how)| how.as_ref().copied())
    }
}

fn prepared(form: &TrainingForm, model: &StableDiffusion) -> Result<Preparation> {
    let method = adapter::method(&form.method)?;
    let changes: Vec<_> = form.changes.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let (_, settings) = session::settings(method, &changes)?;
    Ok(Config::new(&settings, method, model)?.preparation)
}
