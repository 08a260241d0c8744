//! What the desk makes: one adapter, a whole model, a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::device;
use crate::engine::error::Kind;
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
use crate::ui::work::{Opened, Post, Report};

/// What a merge left.
pub enum Made {
    Adapter(PathBuf),
    /// A folder in diffusers layout.
    Model(PathBuf),
}

/// A merge under way.
#[derive(Debug, Default)]
pub struct Mixing {
    /// What is done, as far as it is, and how far it goes.
    pub stage: String,
    pub done: usize,
    pub total: usize,
    /// Asks it to stop between two layers, or two pictures.
    stops: Arc<AtomicBool>,
}

impl Mixing {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Stage { name, total } => (self.stage, self.done, self.total) = (name.clone(), 0, *total),
            Event::Progress { done, total } => (self.done, self.total) = (*done, *total),
            _ => {}
        }
    }

    pub fn share(&self) -> f32 {
        self.done as f32 / self.total.max(1) as f32
    }

    pub fn is_stopping(&self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }
}

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

    /// Begins a merge, where one can be made now: with the open model, and what it asks whether to stop.
    fn begin_merge(&mut self) -> Option<(Opened, Arc<AtomicBool>)> {
        if !self.is_whole() {
            return None;
        }
        if self.studio.mixing.is_some() {
            self.studio.log.warn("A merge is under way: wait for it, or cancel it");
            return None;
        }
        let Some(with) = self.studio.opened.ready().cloned() else {
            self.studio.log.warn("The model is still being opened: try again in a moment");
            return None;
        };
        let mixing = self.studio.mixing.insert(Mixing::default());
        Some((with, Arc::clone(&mixing.stops)))
    }

    /// Merges what is heard into one adapter file, by the desk's method.
    pub(super) fn save_merged(&mut self, path: PathBuf) {
        let Some((with, stops)) = self.begin_merge() else { return };
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
            let mix = mix.into_iter().map(|(file, strength)| Ok((with.resolved(file)?, strength)));
            let sources = sources(mix.collect::<Result<_>>()?);
            let merging = Merging { sources, method, settings, pictures, out: path.clone() };
            let combined = session::merge(&merging, &mut told(post, &stops))?;
            for sentence in merge::note::sentences(&combined.notes) {
                post.send(Report::Said(Event::note(sentence)));
            }
            Ok(Made::Adapter(path))
        };
        self.post.spawn("merge", work, Report::Merged);
    }

    pub(super) fn stop_merge(&self) {
        if let Some(mixing) = &self.studio.mixing {
            mixing.stops.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn heard_of_merge(&mut self, event: &Event) {
        if let Some(mixing) = &mut self.studio.mixing {
            mixing.hear(event);
        }
        self.said(event);
    }

    /// A merge that is whole on disk is an adapter of the project; on the desk it would be heard twice.
    pub(super) fn merged(&mut self, result: Result<Made>) {
        self.studio.mixing = None;
        match result {
            Err(error) if error.kind == Kind::Cancelled => {
                self.studio.log.note("The merge was cancelled, and nothing was written");
            }
            Ok(Made::Model(folder)) => {
                self.studio.log.note(format!("The model with the mix in it is in {}", folder.display()));
            }
            Ok(Made::Adapter(path)) => {
                self.studio.log.note(format!("Saved {}", path.display()));
                let file = self.studio.named(&path);
                self.shelve(AdapterEntry::of(file));
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    /// Merges what is heard into the weights of a new model.
    pub(super) fn bake_merged(&mut self, folder: PathBuf) {
        let Some((_, stops)) = self.begin_merge() else { return };
        let model = super::act::model_name(&self.studio.project.model, &self.studio.path);
        let mix = self.studio.mix();
        let work = move |post: &Post| {
            let from = StableDiffusion::folder(&model);
            export::bake(&from, &sources(mix), &folder, &device::cpu(), &mut told(post, &stops))?;
            Ok(Made::Model(folder))
        };
        self.post.spawn("bake", work, Report::Merged);
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

    pub(super) fn open_recipe(&self, path: PathBuf) {
        self.errands.run(move || Desk::open_recipe(&path), Report::Recipe);
    }

    /// The desk as a recipe has it; adapters that the project does not know join it.
    pub(super) fn recipe_opened(&mut self, desk: Result<Desk>) {
        match desk {
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

/// Tells the window what the merge tells, until it is asked to stop.
fn told(post: &Post, stops: &AtomicBool) -> impl FnMut(Event) -> Result<()> {
    move |event| {
        post.send(Report::Merging(event));
        if stops.load(Ordering::Relaxed) { Err(Error::cancelled()) } else { Ok(()) }
    }
}

/// For a thread: the adapters' numbers are copied, which takes too long for a frame.
fn sources(mix: Mix) -> Vec<Source> {
    mix.into_iter().map(|(file, strength)| Source { file: Arc::unwrap_or_clone(file), strength }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_says_how_far_it_is_until_it_is_stopped() {
        let (post, reports) = Post::new(&egui::Context::default());
        let mut mixing = Mixing::default();
        let stops = Arc::clone(&mixing.stops);
        told(&post, &stops)(Event::Stage { name: "merging layers".into(), total: 8 }).unwrap();
        told(&post, &stops)(Event::Progress { done: 2, total: 8 }).unwrap();
        for report in reports.try_iter() {
            let Report::Merging(event) = report else { panic!("a merge tells of itself") };
            mixing.hear(&event);
        }
        assert_eq!((mixing.stage.as_str(), mixing.done, mixing.total), ("merging layers", 2, 8));
        assert!((mixing.share() - 0.25).abs() < 1e-6 && !mixing.is_stopping());
        mixing.stops.store(true, Ordering::Relaxed);
        let stopped = told(&post, &mixing.stops)(Event::Progress { done: 3, total: 8 }).unwrap_err();
        assert!(stopped.kind == Kind::Cancelled && mixing.is_stopping());
    }
}
