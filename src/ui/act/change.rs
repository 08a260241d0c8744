//! Changes of the project, and the way back: what undo remembers, what is saved, whose slot is whose.

use std::path::PathBuf;
use std::time::Instant;

use crate::engine::Result;
use crate::engine::project::{AdapterEntry, Fader, Project, Slot};
use crate::ui::app::App;
use crate::ui::studio::Undoable;
use crate::ui::work::Report;

impl App {
    /// The project has changed.
    pub(in crate::ui) fn touch(&mut self) {
        self.studio.changed = Some(Instant::now());
    }

    /// Goes back to what undo remembers, if anything.
    pub(super) fn undo(&mut self) {
        let now = self.studio.undoable();
        if let Ok(before) = self.studio.undo.back(now) {
            self.restore(before);
        }
    }

    pub(super) fn redo(&mut self) {
        let now = self.studio.undoable();
        if let Ok(after) = self.studio.undo.forth(now) {
            self.restore(after);
        }
    }

    /// Keeps what is about to change for undo.
    pub(in crate::ui) fn remember(&mut self, what: &'static str) {
        let now = self.studio.undoable();
        self.studio.undo.note(now, what, Instant::now());
    }

    fn restore(&mut self, Undoable { desk, concepts, adapters, freed }: Undoable) {
        let project = &mut self.studio.project;
        (project.desk, project.concepts, project.adapters) = (desk, concepts, adapters);
        let before = std::mem::replace(&mut self.studio.freed, freed.clone());
        for slot in before.iter().filter(|slot| !freed.contains(slot)) {
            self.take_slot_again(slot.clone());
        }
        for slot in freed.iter().filter(|slot| !before.contains(slot)) {
            self.give_slot_back(slot);
        }
        self.open_cards();
        self.desk_changed();
    }

    pub(in crate::ui) fn desk_changed(&mut self) {
        self.touch();
        self.meet();
        self.paint();
    }

    /// Onto the shelf and the desk; one that is there already is opened anew.
    pub(in crate::ui) fn add_adapter(&mut self, entry: AdapterEntry) {
        self.remember("adapter");
        let desk = &mut self.studio.project.desk;
        if !desk.faders.iter().any(|fader| fader.file == entry.file) {
            desk.faders.push(Fader::new(entry.file.clone()));
        }
        self.put(entry);
    }

    /// Onto the shelf; one that is there already is opened anew.
    pub(in crate::ui) fn shelve(&mut self, entry: AdapterEntry) {
        self.remember("adapter");
        self.put(entry);
    }

    fn put(&mut self, entry: AdapterEntry) {
        let project = &mut self.studio.project;
        let file = entry.file.clone();
        match project.adapters.iter_mut().find(|known| known.file == file) {
            Some(known) => *known = entry,
            None => project.adapters.push(entry),
        }
        let path = self.studio.placed(&file);
        self.studio.adapters.retain(|card| card.path != path);
        self.touch();
        self.open_cards();
    }

    /// Out of the project and off the desk. With `frees`, its slot is handed out again: whoever still has the file must
    /// not mix it with the one that gets the slot.
    pub(super) fn remove_adapter(&mut self, file: &std::path::Path, frees: bool) {
        self.remember("removal");
        self.studio.project.adapters.retain(|entry| entry.file != file);
        self.studio.project.desk.faders.retain(|fader| fader.file != file);
        let slot = self.studio.project.slots.iter().find(|slot| slot.file == file).cloned();
        let path = self.studio.placed(file);
        let is_taught = self.studio.run.as_ref().is_some_and(|run| run.is_live() && run.out == path);
        if let Some(slot) = slot.filter(|_| frees && !is_taught) {
            self.give_slot_back(&slot);
            self.studio.log.note(format!("Slot {} is free again", slot.number));
            self.studio.freed.push(slot);
        }
        self.desk_changed();
        self.open_cards();
    }

    fn give_slot_back(&self, slot: &Slot) {
        let (path, block, out) = (self.studio.path.clone(), self.studio.project.block, self.studio.placed(&slot.file));
        let work = move || Project::release(&path, block, &out).map(|slots| (path, slots));
        self.errands.run(work, Report::Slots);
    }

    /// Unless it belongs to somebody else by now, which is told.
    fn take_slot_again(&self, slot: Slot) {
        let (path, block, out) = (self.studio.path.clone(), self.studio.project.block, self.studio.placed(&slot.file));
        let work = move || {
            // It was below the capacity when it was taken first.
            let (project, _) = Project::claim(&path, block, &out, &slot.token, Some(slot.number), usize::MAX)?;
            Ok((path, project.slots))
        };
        self.errands.run(work, Report::Slots);
    }

    pub(super) fn slots_changed(&mut self, result: Result<(PathBuf, Vec<Slot>)>) {
        match result {
            // Another project may have been opened meanwhile.
            Ok((path, slots)) if path == self.studio.path => self.studio.project.slots = slots,
            Ok(_) => {}
            Err(error) => self.studio.log.error(&error),
        }
    }
}
