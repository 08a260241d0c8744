//! Trainings that wait for their turn: a folder with one readable TOML file each.
//!
//! A file is called `0010-robot.toml`. The number is the place in the order, the rest is the *id*, which stays when the
//! order changes; both can be changed by renaming. Whoever runs an order holds a lock on its id, so two processes never
//! take the same one, and an order that says `running` while nobody holds its lock was interrupted: it waits again.

mod claim;
mod name;
mod order;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::engine::io::lock::{self, Lock};
use crate::engine::train::checkpoint;
use crate::engine::words::stem;
use crate::engine::{Error, Result};

pub use claim::Claim;
pub use order::{Order, State};
pub use run::Ran;

#[derive(Clone, Debug)]
pub struct Queue {
    folder: PathBuf,
}

/// A file of the queue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The file's name without its number; the whole name where another order has the same one.
    pub id: String,
    pub path: PathBuf,
    number: Option<u32>,
    /// Or why the file cannot be used. An order is `Running` only while somebody really runs it.
    pub order: Result<Order>,
}

/// The queue that is used where none is named.
pub fn default_folder() -> Result<PathBuf> {
    let data = dirs::data_dir()
        .ok_or_else(|| Error::new("This account has no folder for the queue", "Name one with --queue DIR"))?;
    Ok(data.join("triptych").join("queue"))
}

impl Queue {
    /// Makes nothing on disk until an order is added.
    pub fn open(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All orders in their order, finished ones among them.
    pub fn list(&self) -> Result<Vec<Entry>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.entries()
    }

    /// Puts a waiting order at the end. Its id is made from the name of the file it will write.
    pub fn add(&self, order: &Order) -> Result<Entry> {
        order.training()?;
        let _lock = self.lock()?;
        let entries = self.entries()?;
        let taken = |id: &str| entries.iter().any(|entry| name::parse(&entry.path).1.eq_ignore_ascii_case(id));
        let wanted = name::id_of(&order.out);
        let more = (2..).map(|n| format!("{wanted}-{n}"));
        let id = std::iter::once(wanted.clone()).chain(more).find(|id| !taken(id)).unwrap_or_default();
        let number = name::next(highest(&entries));
        let path = self.folder.join(name::file(number, &id));
        let order = Order { state: State::Waiting, error: None, ..order.clone() };
        order.write(&path)?;
        Ok(Entry { id, path, number: Some(number), order: Ok(order) })
    }

    /// Takes an order out. What it has written stays.
    pub fn remove(&self, id: &str) -> Result<()> {
        let _lock = self.lock()?;
        let entry = self.find(id)?;
        self.refuse_running(&entry)?;
        fs::remove_file(&entry.path).map_err(|e| Error::io("remove", &entry.path, &e))
    }

    /// Puts an order at `position`, counted from 0 in [`Queue::list`]; past the end is the end.
    pub fn move_to(&self, id: &str, position: usize) -> Result<()> {
        let _lock = self.lock()?;
        let mut entries = self.entries()?;
        let from = entries.iter().position(|entry| entry.id == id).ok_or_else(|| self.unknown(id))?;
        let moved = entries.remove(from);
        let to = position.min(entries.len());
        if from == to {
            return Ok(());
        }
        let before = if to == 0 { Some(0) } else { entries[to - 1].number };
        let after = entries.get(to).map(|entry| entry.number);
        match (before, after) {
            (Some(before), None) => renumber(&moved, name::next(before)),
            (Some(before), Some(Some(after))) if after.saturating_sub(before) > 1 => {
                renumber(&moved, before + (after - before) / 2)
            }
            _ => {
                // From the last to the first and above all that are there: whenever this ends, the order holds.
                let first = name::next(highest(&entries).max(moved.number.unwrap_or(0)));
                entries.insert(to, moved);
                (first..)
                    .step_by(name::GAP as usize)
                    .zip(&entries)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .try_for_each(|(number, entry)| renumber(entry, number))
            }
        }
    }

    /// Lets a failed or finished order wait again. It goes on from what it had saved, if anything.
    pub fn retry(&self, id: &str) -> Result<()> {
        let _lock = self.lock()?;
        let entry = self.find(id)?;
        self.refuse_running(&entry)?;
        let order = entry.order?;
        let resume = order.resume || checkpoint::folder(&order.out).is_dir();
        Order { state: State::Waiting, error: None, resume, ..order }.write(&entry.path)
    }

    /// The first waiting order, marked as running; `None` when nothing waits.
    pub fn take_next(&self) -> Result<Option<Claim>> {
        if !self.folder.is_dir() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        for entry in self.entries()? {
            let Ok(order) = entry.order else { continue };
            if order.state != State::Waiting {
                continue;
            }
            let Some(lock) = Lock::try_take(&self.running(&entry.id))? else { continue };
            // Should this process die, the next one goes on from where it was.
            let begun = Order { state: State::Running, error: None, resume: true, ..order.clone() };
            begun.write(&entry.path)?;
            return Ok(Some(Claim::new(entry.id, order, self.clone(), lock)));
        }
        Ok(None)
    }

    fn lock(&self) -> Result<Lock> {
        Lock::take(&self.folder.join("queue"))
    }

    /// What is locked while an order runs.
    fn running(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.toml"))
    }

    fn is_running(&self, id: &str) -> Result<bool> {
        let lock = self.running(id);
        Ok(lock::beside(&lock).is_file() && Lock::try_take(&lock)?.is_none())
    }

    fn refuse_running(&self, entry: &Entry) -> Result<()> {
        match self.is_running(&entry.id)? {
            true => {
                Err(Error::new(format!("{} is being taught right now", entry.id), "Stop the run first").at(&entry.path))
            }
            false => Ok(()),
        }
    }

    fn find(&self, id: &str) -> Result<Entry> {
        self.entries()?.into_iter().find(|entry| entry.id == id).ok_or_else(|| self.unknown(id))
    }

    fn unknown(&self, id: &str) -> Error {
        Error::new(format!("There is no order “{id}” in the queue"), "triptych queue list shows them").at(&self.folder)
    }

    /// Wants the queue's lock held.
    fn entries(&self) -> Result<Vec<Entry>> {
        let unreadable = |e: std::io::Error| Error::io("read the queue", &self.folder, &e);
        let mut entries = Vec::new();
        for found in fs::read_dir(&self.folder).map_err(unreadable)? {
            let path = found.map_err(unreadable)?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if hidden || path.extension().is_none_or(|end| end != "toml") || !path.is_file() {
                continue;
            }
            let (number, id) = name::parse(&path);
            entries.push(Entry { order: Order::read(&path), id, number, path });
        }
        // Those without a number come last, by name.
        entries.sort_by(|a, b| (a.number.is_none(), a.number, &a.path).cmp(&(b.number.is_none(), b.number, &b.path)));
        let mut ids = BTreeSet::new();
        for Entry { id, path, order, .. } in &mut entries {
            if !ids.insert(id.to_lowercase()) {
                let what = format!("Another order in the queue is called {id} too");
                *order = Err(Error::new(what, "Rename one of the two files").at(&*path));
                *id = stem(path);
            }
            if let Ok(order) = order
                && order.state == State::Running
                && !self.is_running(id)?
            {
                order.state = State::Waiting;
            }
        }
        Ok(entries)
    }
}

fn highest(entries: &[Entry]) -> u32 {
    entries.iter().filter_map(|entry| entry.number).max().unwrap_or(0)
}

fn renumber(entry: &Entry, number: u32) -> Result<()> {
    let to = entry.path.with_file_name(name::file(number, &name::parse(&entry.path).1));
    if to.exists() {
        return Err(Error::new("There is an order of this name and number already", "Rename one of the two").at(to));
    }
    fs::rename(&entry.path, &to).map_err(|e| Error::io("rename", &entry.path, &e))
}
