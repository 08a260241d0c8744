//! A training's settings as a file: saved for the command line, opened from it or from another program.

use std::path::Path;

use crate::engine::train::configuration::Configuration;
use crate::engine::train::import::{self, Imported};
use crate::engine::{Result, adapter, session};
use crate::ui::app::App;

impl App {
    /// Everything the form asks for, so that `triptych train --config` makes the same training.
    pub(super) fn save_settings(&mut self, path: &Path) {
        let saved = self.studio.asked().and_then(|(concept, training)| {
            let form = &self.studio.project.training;
            let mut configuration = Configuration {
                model: Some(super::model_name(&self.studio.project.model, &self.studio.path)),
                concept: Some(self.studio.placed(&concept.folder)),
                token: Some(training.token),
                class: training.class_word,
                method: Some(form.method.clone()),
                project: training.project,
                seed: Some(form.seed),
                out: Some(training.out),
                ..Configuration::default()
            };
            form.changes.iter().for_each(|(name, text)| configuration.set(name, text));
            configuration.write(path)
        });
        match saved {
            Ok(()) => self.studio.log.note(format!("Settings saved: triptych train --config {}", path.display())),
            Err(error) => self.studio.log.error(&error),
        }
    }

    /// Fills the form from a file; what has no counterpart is listed beside it.
    pub(super) fn open_settings(&mut self, path: &Path) {
        match import::open(path).and_then(|imported| self.take_over(imported)) {
            Ok(from) => self.studio.log.note(format!("Settings taken over from {from}: {}", path.display())),
            Err(error) => self.studio.log.error(&error.at(path)),
        }
    }

    fn take_over(&mut self, Imported { from, configuration, mut left_out }: Imported) -> Result<&'static str> {
        let mut form = self.studio.project.training.clone();
        if let Some(method) = &configuration.method {
            form.method.clone_from(method);
        }
        let changes = configuration.changes()?;
        session::settings(adapter::method(&form.method)?, &changes)?;
        form.changes = changes.into_iter().collect();
        form.seed = configuration.seed.unwrap_or(form.seed);
        match configuration.concept {
            Some(folder) if folder.is_dir() => {
                self.add(&folder);
                form.concept = self.studio.named(&folder);
                let entries = &mut self.studio.project.concepts;
                if let Some(entry) = entries.iter_mut().find(|entry| entry.folder == form.concept) {
                    entry.token = configuration.token.unwrap_or_else(|| entry.token.clone());
                    entry.class = configuration.class.unwrap_or_else(|| entry.class.clone());
                }
                self.open_cards();
            }
            Some(folder) => left_out.push(format!("The pictures are not in {}: choose a concept", folder.display())),
            None => {}
        }
        let open = super::model_name(&self.studio.project.model, &self.studio.path);
        if let Some(model) = configuration.model.filter(|model| *model != open) {
            left_out.push(format!("It is for the model {model}: open that in the library"));
        }
        left_out.iter().for_each(|sentence| self.studio.log.warn(format!("{from}: {sentence}")));
        self.studio.project.training = form;
        self.studio.left_out = left_out;
        self.look_ahead();
        self.touch();
        Ok(from)
    }
}
