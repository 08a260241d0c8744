//! What the library asks for: whatever was dropped or chosen, captions, crops, and files that are somewhere else now.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::concept::beside;
use crate::engine::project::{ConceptEntry, Project};
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::cards::Loading;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::work::{Captioned, Post, Report, dialog};
use crate::ui::{crops, dropped};

impl App {
    /// Whatever was dropped or chosen; what it is, its content tells, which is read on a thread.
    pub(super) fn add(&self, path: PathBuf) {
        self.errands.run(
            move || dropped::command(path),
            |command| match command {
                Ok(command) => Report::Do(command),
                Err(error) => Report::Done(Err(error)),
            },
        );
    }

    pub(super) fn add_concept(&mut self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = self.studio.named(path);
        if self.studio.project.concepts.iter().any(|entry| entry.folder == folder) {
            self.studio.log.note(format!("{name} is in the project already"));
            return;
        }
        self.remember("new concept");
        let concepts = &mut self.studio.project.concepts;
        let token = format!("<{}>", name.split_whitespace().collect::<Vec<_>>().join("-").to_lowercase());
        self.studio.project.training.concept.clone_from(&folder);
        concepts.push(ConceptEntry { name, folder, token, class: String::new() });
        self.touch();
        self.look_ahead();
        self.open_cards();
    }

    /// Writes a caption on a thread, and reads it back as training will.
    pub(super) fn set_caption(&self, concept: &Path, picture: PathBuf, text: String) {
        let folder = self.studio.placed(concept);
        let work = move || {
            let file = beside::write(&picture, &text)?;
            let text = beside::read(&picture)?;
            Ok(Captioned { folder, picture, file, text })
        };
        self.errands.run(work, Report::Captioned);
    }

    pub(super) fn captioned(&mut self, written: Result<Captioned>) {
        let Captioned { folder, picture, file, text } = match written {
            Ok(written) => written,
            Err(error) => return self.studio.log.error(&error),
        };
        self.studio.log.note(format!("Caption saved in {}", file.display()));
        for card in self.studio.concepts.iter_mut().filter(|card| card.folder == folder) {
            if let Loading::Ready(content) = &mut card.content {
                let images = &mut Arc::make_mut(&mut content.concept).images;
                images
                    .iter_mut()
                    .filter(|image| image.path.with_extension("") == picture.with_extension(""))
                    .for_each(|image| image.caption.clone_from(&text));
            }
        }
    }

    pub(super) fn crop(&mut self, key: crops::Key) {
        self.studio.crops.put(key.clone(), Loading::Waiting);
        let wanted = key.clone();
        let work = move |post: &Post| crops::make(&wanted, post.ctx());
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
            let (path, block) = (self.studio.path.clone(), project.block);
            self.errands
                .run(move || Project::moved(&path, block, &old, &new).map(|slots| (path, slots)), Report::Slots);
        }
        self.touch();
        self.open_cards();
        self.paint();
    }
}
