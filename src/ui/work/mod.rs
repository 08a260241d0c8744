//! Work on named threads, and what they report. A panic there becomes a sentence, and the window lives on.

pub mod dialog;
pub mod errands;
pub mod glimpse;
pub mod inbox;
pub mod painter;
pub mod training;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use egui::Context;

use crate::engine::adapter::mount;
use crate::engine::device;
use crate::engine::event::Event;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::merge::meeting::Meeting;
use crate::engine::model::StableDiffusion;
use crate::engine::project::{AdapterEntry, Desk, PreviewForm, Project, Slot};
use crate::engine::queue::{Claim, Entry};
use crate::engine::session::Session;
use crate::engine::spectrum::adapter::LayerSpectrum;
use crate::engine::train::import::Imported;
use crate::engine::{Error, Result};
use crate::ui::cards::{AdapterContent, ConceptContent};
use crate::ui::command::Command;
use crate::ui::crops;
use crate::ui::mixdown::Made;
use crate::ui::preparing::Preparing;
use crate::ui::run::Sample;
use crate::ui::work::glimpse::Glimpse;
use crate::ui::work::painter::{Painted, Picture};

/// An open device and the model on it.
#[derive(Clone)]
pub struct Opened {
    pub session: Arc<Session>,
    pub model: Arc<StableDiffusion>,
}

impl Opened {
    /// The adapter with the changes that depend on a model's own weights worked out for this one.
    pub fn resolved(&self, file: Arc<LoraFile>) -> Result<Arc<LoraFile>> {
        if file.relatives.is_empty() { Ok(file) } else { mount::resolved(&self.model, &file).map(Arc::new) }
    }
}

/// A caption that was written.
pub struct Captioned {
    /// Of the concept.
    pub folder: PathBuf,
    pub picture: PathBuf,
    /// Where the caption lies.
    pub file: PathBuf,
    /// As it is read there.
    pub text: Option<String>,
}

/// What a thread tells the window.
pub enum Report {
    /// The window's own GPU, which the engine computes on from now.
    Shared(device::Opened),
    /// What was asked for with this number.
    Opened(u64, Result<Opened>),
    Concept(PathBuf, Result<ConceptContent>),
    Adapter {
        path: PathBuf,
        content: Result<Arc<AdapterContent>>,
        /// Whether there is no such file.
        gone: bool,
    },
    Captioned(Result<Captioned>),
    Crop(crops::Key, Result<crops::Crop>),
    /// Of the desk's adapters, in its order when it was asked for.
    Meeting(Vec<PathBuf>, Result<Meeting>),
    Training(Event),
    /// The adapter file, or why there is none.
    TrainingEnded(Result<PathBuf>),
    /// The file of a kept step.
    Kept(Result<(usize, Arc<LoraFile>)>),
    /// Of the training that began then, after a step: what its whole weights hold.
    Measured(Instant, usize, Result<Vec<LayerSpectrum>>),
    /// The step that was made the adapter.
    Chosen(Result<(usize, AdapterEntry)>),
    /// A picture that the training made on the way.
    Sampled(Result<Sample>),
    Queue(Result<Vec<Entry>>),
    /// The order to teach next, if one waits.
    Taken(Result<Option<Claim>>),
    /// Whether a stopped training of this file can go on.
    Begun(PathBuf, bool),
    /// Where, and the slots that are taken there now.
    ProjectSaved(Result<(PathBuf, Vec<Slot>)>),
    ProjectSavedAs(Result<PathBuf>),
    ProjectOpened(Result<(PathBuf, Project)>),
    /// Of the project at this place: its slots after one was given back, taken again or moved.
    Slots(Result<(PathBuf, Vec<Slot>)>),
    /// The desk of a recipe.
    Recipe(Result<Desk>),
    /// Settings of a training, and where they were.
    Imported(Result<(Imported, PathBuf)>),
    /// Of a saved picture.
    Prompt(Result<(PreviewForm, bool)>),
    /// What was written needs no word; what could not be does.
    Written(Result<()>),
    /// What the preview paints from now on; the picture follows.
    Glimpsed(Glimpse),
    Painted(Painted),
    /// What a GPU goes through now; `None` when it has, or when something else came in between.
    Preparing(Option<Preparing>),
    /// The picture at this place, to start from.
    Beginning(PathBuf, Result<Picture>),
    /// A dialog's answer as a command.
    Do(Command),
    /// No dialog can open: ask in the window.
    NoDialog(crate::ui::command::Question),
    /// How far a merge is.
    Merging(Event),
    Merged(Result<Made>),
    /// Something was written.
    Done(Result<String>),
    Said(Event),
}

/// Where threads report to.
#[derive(Clone)]
pub struct Post {
    sender: Sender<Report>,
    ctx: Context,
}

impl Post {
    /// Unbounded: reports are small, and a bounded one would stop the training of a window that is not drawn.
    #[expect(clippy::disallowed_methods, reason = "see above")]
    pub fn new(ctx: &Context) -> (Self, Receiver<Report>) {
        let (sender, receiver) = channel();
        (Self { sender, ctx: ctx.clone() }, receiver)
    }

    /// Lost when the window is gone already, which is as it should be.
    pub fn send(&self, report: Report) {
        self.sender.send(report).ok();
        self.ctx.request_repaint();
    }

    pub fn ctx(&self) -> &Context {
        &self.ctx
    }

    /// Tells what a GPU goes through `now`, where that is not what it went through `before`.
    pub fn prepares(&self, before: Option<Preparing>, now: Option<Preparing>) -> Option<Preparing> {
        if now != before {
            self.send(Report::Preparing(now));
        }
        now
    }

    /// Does `work` on a thread of its own and reports what `report` makes of it.
    pub fn spawn<T: 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
        report: impl FnOnce(Result<T>) -> Report + Send + 'static,
    ) {
        let post = self.clone();
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = guarded(|| work(&post));
            post.send(report(result));
        });
        if let Err(error) = started {
            self.send(Report::Done(Err(Error::new(
                format!("No thread could be started for {name} ({error})"),
                "Close other programs and try again",
            ))));
        }
    }
}

/// `work`, with a panic as an error.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(broken(panic.as_ref())))
}

fn broken(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::new(
        format!("Something in the program broke ({})", text.unwrap_or("it gave no reason")),
        "Nothing of yours is lost; try again, perhaps with smaller settings, and report this if it comes back",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_sentence() {
        let error = guarded::<()>(|| panic!("index 3 of 2")).unwrap_err();
        assert!(error.what.contains("index 3 of 2") && !error.advice.is_empty());
    }
}
