//! Everything the panels show. They read it; the app alone changes it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::engine::Error;
use crate::engine::device::Choice;
use crate::engine::merge::meeting::Meeting;
use crate::engine::model::Precision;
use crate::engine::preview::Request;
use crate::engine::project::{self, AdapterEntry, ConceptEntry, Desk, Project, Slot};
use crate::engine::queue::Entry;
use crate::ui::cards::{AdapterCard, ConceptCard, Loading};
use crate::ui::command::Question;
use crate::ui::crops::Crops;
use crate::ui::facts::Facts;
use crate::ui::gpu_paint::Planes;
use crate::ui::grid::Grid;
use crate::ui::log::Log;
use crate::ui::mixdown::Mixing;
use crate::ui::pace::Pace;
use crate::ui::preferences::Preferences;
use crate::ui::preflight::Preflight;
use crate::ui::preparing::Preparing;
use crate::ui::run::Run;
use crate::ui::undo::Undo;
use crate::ui::work::Opened;
use crate::ui::work::painter::Picture;

pub struct Studio {
    pub project: Project,
    pub path: PathBuf,
    /// When the project changed since it was saved.
    pub changed: Option<Instant>,
    pub saved: Option<Instant>,
    /// Whether the last attempt to save failed.
    pub save_failed: bool,
    pub device: Choice,
    /// What models are held as: as the preferences have it, unless this start was told otherwise.
    pub precision: Precision,
    pub opened: Loading<Opened>,
    /// Of the open model.
    pub facts: Option<Facts>,
    pub concepts: Vec<ConceptCard>,
    pub adapters: Vec<AdapterCard>,
    pub crops: Crops,
    /// What a dialog looks for: a concept's folder or an adapter's file that is missing.
    pub finding: Option<PathBuf>,
    /// The training that runs, or the last one.
    pub run: Option<Run>,
    /// The merge that runs.
    pub mixing: Option<Mixing>,
    /// Where the form's training would go, if one was stopped there and can go on.
    pub begun: Option<PathBuf>,
    /// Slots that were given back with their adapters, for undo.
    pub freed: Vec<Slot>,
    /// The adapters of the desk by their files, and how they stand to each other.
    pub meeting: Option<(Vec<PathBuf>, Result<Meeting, Error>)>,
    pub preview: View,
    /// What the GPU goes through before it can be used.
    pub preparing: Option<Preparing>,
    /// The adapter whose spectrum is looked at; `None` is the training.
    pub looked_at: Option<PathBuf>,
    pub undo: Undo<Undoable>,
    pub log: Log,
    pub asking: Option<Question>,
    pub queue: Waiting,
    /// What the last opened settings say and the form cannot.
    pub left_out: Vec<String>,
    pub preflight: Option<Preflight>,
    pub pace: Pace,
    pub preferences: Preferences,
}

/// The preview's pictures.
#[derive(Default)]
pub struct View {
    pub picture: Option<Picture>,
    /// What was asked for when `picture` was made.
    pub request: Option<Request>,
    /// What the next one starts from.
    pub beginning: Option<Beginning>,
    /// What it is held against.
    pub other: Option<Picture>,
    /// Both as shaders paint them.
    pub seen: Seen,
    pub against: Option<Against>,
    pub grid: Option<Grid>,
    /// Grids begun so far: a picture of one that was cancelled must not land in the next.
    pub grids: u64,
    pub error: Option<Error>,
    pub is_painting: bool,
    pub history: Vec<(Request, Picture)>,
}

/// What lies on the GPU: a new picture is here before it has come to the host.
#[derive(Default)]
pub struct Seen {
    pub picture: Option<Planes>,
    pub other: Option<Planes>,
}

/// The picture that the preview starts from.
pub struct Beginning {
    /// Where it lies.
    pub path: PathBuf,
    pub content: Loading<Picture>,
}

/// What the preview is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Against {
    /// The model without any adapter.
    Untouched,
    /// One adapter of the desk at full strength, by its file.
    Alone(PathBuf),
}

/// The queue of trainings.
#[derive(Default)]
pub struct Waiting {
    pub entries: Vec<Entry>,
    /// Whether the next order is taken when one ends.
    pub runs: bool,
}

/// What Ctrl+Z brings back.
#[derive(Clone, Debug, PartialEq)]
pub struct Undoable {
    pub desk: Desk,
    pub concepts: Vec<ConceptEntry>,
    pub adapters: Vec<AdapterEntry>,
    pub freed: Vec<Slot>,
}

impl Studio {
    pub fn new(project: Project, path: PathBuf, device: Choice, preferences: Preferences) -> Self {
        Self {
            project,
            path,
            changed: None,
            saved: None,
            save_failed: false,
            device,
            precision: preferences.precision,
            opened: Loading::Waiting,
            facts: None,
            concepts: Vec::new(),
            adapters: Vec::new(),
            crops: Crops::default(),
            finding: None,
            run: None,
            mixing: None,
            begun: None,
            freed: Vec::new(),
            meeting: None,
            preview: View::default(),
            preparing: None,
            looked_at: None,
            undo: Undo::new(),
            log: Log::default(),
            asking: None,
            queue: Waiting::default(),
            left_out: Vec::new(),
            preflight: None,
            pace: Pace::default(),
            preferences,
        }
    }

    /// Where what the project calls `file` lies.
    pub fn placed(&self, file: &Path) -> PathBuf {
        project::placed(file, &self.path)
    }

    /// As the project names a file.
    pub fn named(&self, file: &Path) -> PathBuf {
        project::named(file, &self.path)
    }

    pub fn is_training(&self) -> bool {
        self.run.as_ref().is_some_and(Run::is_live)
    }

    pub fn adapter(&self, file: &Path) -> Option<&AdapterCard> {
        self.adapters.iter().find(|card| card.entry.file == file)
    }

    pub fn concept(&self, folder: &Path) -> Option<&ConceptCard> {
        self.concepts.iter().find(|card| card.entry.folder == folder)
    }

    pub fn undoable(&self) -> Undoable {
        let Project { desk, concepts, adapters, .. } = &self.project;
        Undoable {
            desk: desk.clone(),
            concepts: concepts.clone(),
            adapters: adapters.clone(),
            freed: self.freed.clone(),
        }
    }
}
