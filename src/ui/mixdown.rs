//! What the desk makes: one adapter, a whole model, a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::event::Event;
use crate::engine::export;
use crate::engine::field::Settings;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::merge::{self, Needs, Source};
use crate::engine::model::StableDiffusion;
use crate::engine::project::{AdapterEntry, Desk, Fader};
use crate::engine::session::{self, Merging, Pictured};
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::work::painter::Mix;
use crate::ui::work::{Post, Report};

impl App {
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

    /// Merges what is heard into one adapter file, by the desk's method.
    pub(super) fn save_merged(&mut self, path: PathBuf) {
        if !self.is_whole() {
            return;
        }
        let Some(with) = self.studio.opened.ready().cloned() else {
            self.studio.log.warn("The model is still being opened: try again in a moment");
            return;
        };
        let (desk, mix) = (self.studio.project.desk.clone(), self.studio.mix());
        let taught_with = |file: &LoraFile| {
            let card = self.studio.adapters.iter().find(|card| card.path == file.path)?;
            Some(self.studio.placed(card.entry.concept.as_ref()?))
        };
        let folders: Vec<Option<PathBuf>> = mix.iter().map(|(file, _)| taught_with(file)).collect();
        let work = move |post: &Post| {
            if mix.iter().any(|(file, _)| file.path == path) {
                return Err(
                    Error::new("This is one of the adapters on the desk", "Save the mix under another name").at(&path)
                );
            }
            let method = merge::method(&desk.method)?;
            let changes = desk.changes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let settings = Settings::new(method.fields, changes)?;
            let pictures = match method.needs {
                Needs::Nothing => None,
                Needs::ModelAndPictures => {
                    let open = |folder: &Option<PathBuf>| {
                        folder.as_deref().map(|folder| with.session.concept(folder)).transpose()
                    };
                    let concepts = folders.iter().map(open).collect::<Result<Vec<_>>>()?;
                    Some(Pictured { session: &with.session, model: &with.model, concepts })
                }
            };
            let merging = Merging { sources: sources(mix), method, settings, pictures, out: path.clone() };
            let mut said = |event| {
                post.send(Report::Said(event));
                Ok(())
            };
            let combined = session::merge(&merging, &mut said)?;
            for sentence in merge::note::sentences(&combined.notes) {
                post.send(Report::Said(Event::note(sentence)));
            }
            Ok(path)
        };
        self.post.spawn("merge", work, Report::Merged);
    }

    /// A merge that is whole on disk is an adapter of the project; on the desk it would be heard twice.
    pub(super) fn merged(&mut self, result: Result<PathBuf>) {
        match result {
            Ok(path) => {
                self.studio.log.note(format!("Saved {}", path.display()));
                let file = self.studio.named(&path);
                self.shelve(AdapterEntry::of(file));
            }
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
        let mix = self.studio.mix();
        let work = move |_: &Post| {
            export::bake(&StableDiffusion::folder(&model), &with.model, &sources(mix), &folder)?;
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
                        self.studio.project.adapters.push(AdapterEntry::of(file.clone()));
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

/// For a thread: the adapters' numbers are copied, which takes too long for a frame.
fn sources(mix: Mix) -> Vec<Source> {
    mix.into_iter().map(|(file, strength)| Source { file: Arc::unwrap_or_clone(file), strength }).collect()
}
