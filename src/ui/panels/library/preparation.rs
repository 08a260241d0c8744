//! How the training form would show pictures, worked out when the form, the model or the pictures change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::adapter;
use crate::engine::concept::{Concept, Views};
use crate::engine::model::StableDiffusion;
use crate::engine::project::TrainingForm;
use crate::engine::session;
use crate::engine::train::config::Config;
use crate::engine::{Error, Result};
use crate::ui::studio::Studio;

/// Pictures in each `[width, height]`.
pub type Sizes = BTreeMap<[usize; 2], usize>;

#[derive(Default)]
pub struct Cached {
    known: Option<(TrainingForm, Arc<StableDiffusion>, Result<Views>)>,
    sizes: Option<(Arc<Concept>, Sizes)>,
}

impl Cached {
    /// `None` until a model is open.
    pub fn get(&mut self, studio: &Studio) -> Option<Result<&Views, &Error>> {
        let model = &studio.opened.ready()?.model;
        let form = &studio.project.training;
        let is_known = self.known.as_ref().is_some_and(|(known, on, _)| known == form && Arc::ptr_eq(on, model));
        if !is_known {
            self.known = Some((form.clone(), Arc::clone(model), views(form, model)));
            self.sizes = None;
        }
        self.known.as_ref().map(|(_, _, views)| views.as_ref())
    }

    /// How many of the pictures fall into each size of frame; nothing until a model is open.
    pub fn sizes(&mut self, studio: &Studio, concept: &Arc<Concept>) -> Option<&Sizes> {
        self.get(studio)?.ok()?;
        let is_known = self.sizes.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, concept));
        if !is_known {
            let sizes = self.get(studio)?.ok()?.sizes(&concept.images);
            self.sizes = Some((Arc::clone(concept), sizes));
        }
        self.sizes.as_ref().map(|(_, sizes)| sizes)
    }
}

fn views(form: &TrainingForm, model: &StableDiffusion) -> Result<Views> {
    let method = adapter::method(&form.method)?;
    let changes: Vec<_> = form.changes.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let (_, settings) = session::settings(method, &changes)?;
    Ok(Config::new(&settings, method, model)?.views)
}
