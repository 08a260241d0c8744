//! What the library asks for: captions, crops, and files that are somewhere else now.

use std::path::{Path, PathBuf};

use crate::engine::concept::beside;
use crate::engine::project::Project;
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::cards::Loading;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::crops;
use crate::ui::work::{Report, dialog};

impl App {
    /// Writes a caption on a thread; the concept is read again when it lies on the disk.
    pub(super) fn set_caption(&self, concept: &Path, picture: PathBuf, text: String) {
        let folder = self.studio.placed(concept);
        let work = move |_: &crate::ui::work::Post| beside::write(&picture, &text);
        self.post.spawn("caption", work, |written| Report::Captioned(folder, written));
    }

    pub(super) fn captioned(&mut self, folder: PathBuf, written: Result<PathBuf>) {
        match written {
            Ok(path) => {
                self.studio.log.note(format!("Caption saved in {}", path.display()));
                self.open_concept(folder);
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    pub(super) fn crop(&mut self, key: crops::Key) {
        self.studio.crops.put(key.clone(), Loading::Waiting);
        let wanted = key.clone();
        let work = move |post: &crate::ui::work::Post| crops::make(&wanted, post.ctx());
        self.post.spawn("crop", work, |crop| Report::Crop(key, crop));
    }

    /// Reads a concept or an adapter from the disk again.
    pub(super) fn reopen(&mut self, file: &Path) {
        let path = self.studio.placed(file);
        self.studio.crops.clear();
        if let Some(card) = self.studio.concepts.iter_mut().find(|card| card.folder == path) {
            card.content = Loading::Waiting;
            self.open_concept(path);
        } else if let Some(card) = self.studio.adapters.iter_mut().find(|card| card.path == path) {
            card.content = Loading::Waiting;
            self.open_adapter(path);
        }
    }

    /// Asks where `from` is now.
    pub(super) fn find(&mut self, from: PathBuf) {
        let is_concept = self.studio.concept(&from).is_some();
        self.studio.finding = Some(from);
        let question = match is_concept {
            true => Question {
                title: "Where are the pictures now?",
                kind: Answer::Folder,
                ending: "",
                offered: "",
                then: Command::Found,
            },
            false => Question {
                title: "Where is the adapter now?",
                kind: Answer::File,
                ending: "safetensors",
                offered: "",
                then: Command::Found,
            },
        };
        dialog::ask(question, &self.post);
    }

    pub(super) fn found(&mut self, to: &Path) {
        if let Some(from) = self.studio.finding.take() {
            self.relocate(&from, to);
        }
    }

    /// Everything that named `from` names `to`.
    pub(super) fn relocate(&mut self, from: &Path, to: &Path) {
        let to = self.studio.named(to);
        if self.studio.concept(&to).is_some() || self.studio.adapter(&to).is_some() {
            let error = Error::new("This is in the project already", "Remove the card whose files are missing");
            self.studio.log.error(&error.at(&to));
            return;
        }
        self.remember("relocation");
        let (old, new) = (self.studio.placed(from), self.studio.placed(&to));
        let project = &mut self.studio.project;
        let concepts = project.concepts.iter_mut().map(|entry| &mut entry.folder);
        let adapters = project.adapters.iter_mut().flat_map(|entry| [Some(&mut entry.file), entry.concept.as_mut()]);
        let faders = project.desk.faders.iter_mut().map(|fader| &mut fader.file);
        let form = &mut project.training;
        let taught = std::iter::once(&mut form.concept).chain(form.together.iter_mut().map(|other| &mut other.concept));
        let looked_at = self.studio.looked_at.as_mut();
        let all = concepts
            .chain(adapters.flatten())
            .chain(faders)
            .chain(taught)
            .chain(looked_at)
            .filter(|name| *name == from);
        all.for_each(|name| name.clone_from(&to));
        if project.slots.iter().any(|slot| slot.file == from) {
            match Project::moved(&self.studio.path, project.block, &old, &new) {
                Ok(slots) => project.slots = slots,
                Err(error) => self.studio.log.error(&error),
            }
        }
        self.touch();
        self.open_cards();
        self.paint();
    }
}
