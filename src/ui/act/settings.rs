//! A training's settings as a file: saved for the command line, opened from it or from another program.

use std::path::PathBuf;

use crate::engine::project::Together;
use crate::engine::session::Lesson;
use crate::engine::train::configuration::{self, Configuration};
use crate::engine::train::import::{self, Imported};
use crate::engine::{Result, adapter, session};
use crate::ui::act::model_name;
use crate::ui::app::App;
use crate::ui::work::Report;

impl App {
    /// Everything the form asks for, so that `triptych train --config` makes the same training.
    pub(super) fn save_settings(&self, path: PathBuf) {
        let configuration = self.settings();
        let work = move || {
            configuration?.write(&path)?;
            Ok(format!("Settings saved: triptych train --config {}", path.display()))
        };
        self.errands.run(work, Report::Done);
    }

    fn settings(&self) -> Result<Configuration> {
        let (concepts, training) = self.studio.asked()?;
        let form = &self.studio.project.training;
        let folders = concepts.iter().map(|concept| self.studio.placed(&concept.folder));
        let mut all = folders.zip(training.lessons).map(|(concept, lesson)| lesson.about(concept));
        let first = all.next();
        let mut configuration = Configuration {
            model: Some(model_name(&self.studio.project.model, &self.studio.path)),
            method: Some(form.method.clone()),
            project: training.project,
            seed: Some(form.seed),
            out: Some(training.out),
            together: all.collect(),
            ..Configuration::default()
        };
        if let Some(configuration::Together { concept, token, class, repeats, weight }) = first {
            (configuration.concept, configuration.token, configuration.class) = (Some(concept), Some(token), class);
            configuration.repeats = Some(repeats).filter(|repeats| !configuration::is_one(repeats));
            configuration.weight = Some(weight).filter(|weight| !configuration::is_whole(weight));
        }
        form.changes.iter().for_each(|(name, text)| configuration.set(name, text));
        Ok(configuration)
    }

    /// Fills the form from a file; what has no counterpart is listed beside it.
    pub(super) fn open_settings(&self, path: PathBuf) {
        self.errands.run(move || Ok((import::open(&path).map_err(|error| error.at(&path))?, path)), Report::Imported);
    }

    pub(super) fn imported(&mut self, imported: Result<(Imported, PathBuf)>) {
        let taken =
            imported.and_then(|(imported, path)| Ok((self.take_over(imported).map_err(|e| e.at(&path))?, path)));
        match taken {
            Ok((from, path)) => self.studio.log.note(format!("Settings taken over from {from}: {}", path.display())),
            Err(error) => self.studio.log.error(&error),
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
        let mut concepts = Vec::new();
        for (folder, Lesson { token, class_word, repeats, weight }) in session::lessons(&configuration) {
            if !folder.is_dir() {
                left_out.push(format!("The pictures are not in {}: choose a concept", folder.display()));
                continue;
            }
            self.add_concept(&folder);
            let concept = self.studio.named(&folder);
            let entries = &mut self.studio.project.concepts;
            if let Some(entry) = entries.iter_mut().find(|entry| entry.folder == concept) {
                if configuration.token.is_some() || !concepts.is_empty() {
                    entry.token = token;
                }
                entry.class = class_word.unwrap_or_else(|| entry.class.clone());
            }
            concepts.push(Together { concept, repeats, weight });
        }
        if !concepts.is_empty() {
            let Together { concept, repeats, weight } = concepts.remove(0);
            (form.concept, form.repeats, form.weight, form.together) = (concept, repeats, weight, concepts);
            self.open_cards();
        }
        let open = model_name(&self.studio.project.model, &self.studio.path);
        if let Some(model) = configuration.model.filter(|model| *model != open) {
            left_out.push(format!("It is for the model {model}: open that in the library"));
        }
        for sentence in &left_out {
            self.studio.log.warn(format!("{from}: {sentence}"));
        }
        self.studio.project.training = form;
        self.studio.left_out = left_out;
        self.look_ahead();
        self.touch();
        Ok(from)
    }
}
