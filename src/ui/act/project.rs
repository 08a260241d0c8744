//! The project as a file: saved by itself and on demand, saved elsewhere, opened, and left.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::engine::project::{Project, Slot};
use crate::engine::{Error, Result};
use crate::ui::act::model_name;
use crate::ui::app::App;
use crate::ui::studio::View;
use crate::ui::undo::Undo;
use crate::ui::work::Report;

/// Time after a change until the project is saved by itself.
const AUTOSAVE: Duration = Duration::from_secs(2);

/// Time after a failed attempt until the next.
const RETRY: Duration = Duration::from_secs(10);

impl App {
    pub(in crate::ui) fn autosave(&mut self, ctx: &egui::Context) {
        // One at a time: behind a slow disk they would pile up.
        let Some(changed) = self.studio.changed.filter(|_| !self.is_saving) else { return };
        match AUTOSAVE.checked_sub(changed.elapsed()) {
            Some(left) => ctx.request_repaint_after(left),
            None => self.save(),
        }
    }

    pub(in crate::ui) fn save(&mut self) {
        self.studio.changed = None;
        self.is_saving = true;
        let (mut project, path) = (self.studio.project.clone(), self.studio.path.clone());
        self.errands.run(move || project.save_work(&path).map(|()| (path, project.slots)), Report::ProjectSaved);
    }

    pub(super) fn saved(&mut self, result: Result<(PathBuf, Vec<Slot>)>) {
        self.is_saving = false;
        self.studio.save_failed = result.is_err();
        if result.is_ok() {
            self.studio.saved = Some(Instant::now());
        } else {
            // The work is still unsaved, and is tried again in a while.
            self.studio.changed = Some(Instant::now() + RETRY);
        }
        self.slots_changed(result);
    }

    pub(super) fn save_as(&self, path: PathBuf) {
        let mut project = self.studio.project.clone();
        project.rebase(&self.studio.path, &path);
        self.errands.run(move || project.save_as(&path).map(|()| path), Report::ProjectSavedAs);
    }

    /// The work goes on at the new place, with what was changed meanwhile.
    pub(super) fn saved_as(&mut self, result: Result<PathBuf>) {
        match result {
            Ok(_) if self.studio.is_training() => {
                self.studio
                    .log
                    .warn("A copy was saved; the training that runs belongs to the project at the old place");
            }
            Ok(path) => {
                self.studio.project.rebase(&self.studio.path, &path);
                self.studio.path = path;
                // What undo remembers is named as the old place had it.
                self.studio.undo = Undo::new();
                self.studio.freed.clear();
                self.studio.looked_at = None;
                self.recent();
                self.open_cards();
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    /// Saves the open project, then opens the one at `path`; one that `must_exist` is not begun anew.
    pub(super) fn open_project(&mut self, path: PathBuf, must_exist: bool) {
        if self.studio.is_training() {
            self.studio.log.warn("A training is running: stop it before another project is opened");
            return;
        }
        self.studio.changed = None;
        let (mut project, before) = (self.studio.project.clone(), self.studio.path.clone());
        let work = move || {
            if must_exist && !path.is_file() {
                let advice = "Open it from where it is now";
                return Err(Error::new("The project is not there any more", advice).at(path));
            }
            project.save_work(&before)?;
            let mut opened = Project::open(&path, project.block)?;
            opened.save_work(&path)?;
            Ok((path, opened))
        };
        self.errands.run(work, Report::ProjectOpened);
    }

    pub(super) fn project_opened(&mut self, result: Result<(PathBuf, Project)>) {
        let (path, project) = match result {
            Ok(opened) => opened,
            Err(error) => {
                self.touch();
                self.studio.log.error(&error);
                return;
            }
        };
        if self.studio.is_training() {
            self.studio.log.warn("A training was begun meanwhile: stop it before another project is opened");
            return;
        }
        if self.studio.changed.is_some() {
            // What was changed meanwhile belongs to the project that is left.
            self.open_project(path, true);
            return;
        }
        let before = model_name(&self.studio.project.model, &self.studio.path);
        let other_model = model_name(&project.model, &path) != before;
        (self.studio.project, self.studio.path) = (project, path);
        self.studio.undo = Undo::new();
        self.studio.freed.clear();
        (self.studio.run, self.studio.looked_at) = (None, None);
        (self.studio.saved, self.studio.save_failed) = (Some(Instant::now()), false);
        self.studio.preview = View { grids: self.studio.preview.grids + 1, ..View::default() };
        self.look_ahead();
        self.recent();
        self.open_cards();
        if other_model {
            self.open_device();
        } else {
            self.paint();
        }
    }

    pub(in crate::ui) fn recent(&mut self) {
        let path = self.studio.path.clone();
        self.studio.preferences.opened(&path);
        self.save_preferences();
    }

    pub(in crate::ui) fn save_preferences(&self) {
        let Some(path) = self.preferences.clone() else { return };
        let preferences = self.studio.preferences.clone();
        self.errands.run(move || preferences.save(&path), Report::Written);
    }

    pub(super) fn reveal(&self, path: PathBuf) {
        let work = move || {
            opener::reveal(&path).map_err(|e| {
                let what = format!("The file manager could not be opened ({e})");
                Error::new(what, "Open the folder yourself").at(&path)
            })
        };
        self.errands.run(work, Report::Written);
    }
}

/// The last acts of a window; what is written is waited for when the window goes.
pub fn leave(app: &mut App) {
    if let Some(run) = app.studio.run.as_ref().filter(|run| run.is_live()) {
        run.control.stop();
    }
    if app.studio.changed.is_some() {
        app.save();
    }
    let figures = app.studio.pace.figures();
    tracing::info!(
        "UI thread {:.2} ms median, {:.2} ms p99; frame to frame {:.2} ms median, {:.2} ms p99; {} frames",
        1e3 * figures.work[0],
        1e3 * figures.work[1],
        1e3 * figures.frame[0],
        1e3 * figures.frame[1],
        figures.frames,
    );
}
