//! What the desk makes: one adapter, a whole model, a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::error::Kind;
use crate::engine::event::Event;
use crate::engine::export;
use crate::engine::field::Settings;
use crate::engine::merge::{self, Needs, Source};
use crate::engine::model::StableDiffusion;
use crate::engine::project::{AdapterEntry, Desk, Fader};
use crate::engine::session::{self, Merging, Pictured};
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::work::{Post, Report};

impl App {
    /// Merges what is heard into one adapter file.
    pub(super) fn save_merged(&mut self, path: PathBuf) {
        self.mix_down("merge", move |merging, post| {
            if merging.sources.iter().any(|source| source.file.path == path) {
                return Err(
                    Error::new("This is one of the adapters on the desk", "Save the mix under another name").at(&path)
                );
            }
            let combined = session::merge(&Merging { out: path.clone(), ..merging }, &mut said(post))?;
            for sentence in merge::note::sentences(&combined.notes) {
                post.send(Report::Said(Event::note(sentence)));
            }
            Ok(path)
        });
    }

    /// Whether everything that is heard is open; a mix without it would lack a concept in silence.
    fn is_whole(&mut self) -> bool {
        let desk = &self.studio.project.desk;
        let open = |file: &Path| self.studio.adapter(file).is_some_and(|card| card.content.ready().is_some());
        let missing = desk.faders.iter().find(|fader| desk.heard(fader).unet != 0.0 && !open(&fader.file));
        if let Some(fader) = missing {
            let error = Error::new("This adapter is on the desk and not open", "Mute it, or find its file in Library");
            let error = error.at(&fader.file);
            self.studio.log.error(&error);
            return false;
        }
        true
    }

    /// The sources and the method of the desk, for `make` on a thread; what it writes is put on the shelf.
    fn mix_down(
        &mut self,
        name: &'static str,
        make: impl FnOnce(Merging<'_>, &Post) -> Result<PathBuf> + Send + 'static,
    ) {
        if !self.is_whole() {
            return;
        }
        let Some(with) = self.studio.opened.ready().cloned() else {
            self.studio.log.warn("The model is still being opened: try again in a moment");
            return;
        };
        let desk = self.studio.project.desk.clone();
        let sources: Vec<Source> =
            self.studio.mix().into_iter().map(|(file, strength)| Source { file: (*file).clone(), strength }).collect();
        let folders: Vec<Option<PathBuf>> = sources
            .iter()
            .map(|source| {
                let entry = self.studio.adapters.iter().find(|card| card.path == source.file.path)?.entry.clone();
                Some(self.studio.placed(&entry.concept?))
            })
            .collect();
        let work = move |post: &Post| {
            let method = merge::method(&desk.method)?;
            let changes = desk.changes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let settings = Settings::new(method.fields, changes)?;
            let concepts = match method.needs {
                Needs::Nothing => Vec::new(),
                Needs::ModelAndPictures => folders
                    .iter()
                    .map(|folder| folder.as_deref().map(|folder| with.session.concept(folder)).transpose())
                    .collect::<Result<Vec<_>>>()?,
            };
            let pictures = (method.needs == Needs::ModelAndPictures).then(|| Pictured {
                session: &with.session,
                model: &with.model,
                concepts,
            });
            make(Merging { sources, method, settings, pictures, out: PathBuf::new() }, post)
        };
        self.post.spawn(name, work, Report::Merged);
    }

    /// A merge that is whole on disk is an adapter of the project; on the desk it would be heard twice.
    pub(super) fn merged(&mut self, result: Result<PathBuf>) {
        match result {
            Ok(path) => {
                self.studio.log.note(format!("Saved {}", path.display()));
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let file = self.studio.named(&path);
                let entry = AdapterEntry { name, file, concept: None };
                self.shelve(entry);
            }
            Err(error) if error.kind == Kind::Cancelled => {}
            Err(error) => self.studio.log.error(&error),
        }
    }

    /// Merges what is heard into the weights of a new model.
    pub(super) fn bake_merged(&mut self, folder: PathBuf) {
        if !self.is_whole() {
            return;
        }
        let Some(with) = self.studio.opened.ready().cloned() else { return };
        let model = super::act::model_name(&self.studio.project.model, &self.studio.path);
        let used: Vec<_> = self
            .studio
            .mix()
            .into_iter()
            .map(|(file, strength)| Source { file: Arc::unwrap_or_clone(file), strength })
            .collect();
        let work = move |_: &Post| {
            export::bake(&StableDiffusion::folder(&model), &with.model, &used, &folder)?;
            Ok(format!("The model with the mix in it is in {}", folder.display()))
        };
        self.post.spawn("bake", work, Report::Done);
    }

    pub(super) fn save_recipe(&mut self, path: PathBuf) {
        let mut desk = self.studio.project.desk.clone();
        for fader in &mut desk.faders {
            fader.file = self.studio.placed(&fader.file);
        }
        let work = move |_: &Post| {
            desk.save_recipe(&path)?;
            Ok(format!("Saved {}", path.display()))
        };
        self.post.spawn("recipe", work, Report::Done);
    }

    /// The desk as a recipe has it; adapters that the project does not know join it.
    pub(super) fn open_recipe(&mut self, path: &Path) {
        match Desk::open_recipe(path) {
            Ok(mut desk) => {
                self.remember("recipe");
                for fader in &mut desk.faders {
                    let file = self.studio.named(&fader.file);
                    if self.studio.adapter(&file).is_none() {
                        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                        self.studio.project.adapters.push(AdapterEntry { name, file: file.clone(), concept: None });
                    }
                    *fader = Fader { file, ..fader.clone() };
                }
                self.studio.project.desk = desk;
                self.open_cards();
                self.desk_changed();
            }
            Err(error) => self.studio.log.error(&error),
        }
    }
}

/// Passes on what a merge says.
fn said(post: &Post) -> impl FnMut(Event) -> Result<(), Error> + '_ {
    |event| {
        post.send(Report::Said(event));
        Ok(())
    }
}
