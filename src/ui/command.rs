//! What panels ask for. The app does it, at one place.

use std::path::PathBuf;

use crate::engine::device::Choice;
use crate::engine::model::Precision;
use crate::engine::project::{ConceptEntry, Desk, PreviewForm, TrainingForm};
use crate::ui::crops;
use crate::ui::grid::Plan;
use crate::ui::studio::Against;

#[derive(Clone, Debug)]
pub enum Command {
    /// The desk as it is to be; `what` names the change for undo, and equal ones in quick succession are one.
    SetDesk {
        desk: Desk,
        what: &'static str,
    },
    SetTraining(TrainingForm),
    /// Fills the training's form from a configuration, ours or another program's.
    OpenSettings(PathBuf),
    /// Writes what the form asks for as a configuration.
    SaveSettings(PathBuf),
    /// Takes the list of what could not be taken over away.
    DismissLeftOut,
    SetPreview(PreviewForm),
    Undo,
    Redo,

    /// A folder of pictures, an adapter, a project, a recipe, or a picture with its prompt: whatever was dropped.
    Add(PathBuf),
    AddConcept(PathBuf),
    AddAdapter(PathBuf),
    /// The entry of this folder, as it is to be.
    SetConcept(ConceptEntry),
    /// Writes the caption of a picture beside it.
    SetCaption {
        concept: PathBuf,
        picture: PathBuf,
        text: String,
    },
    /// Takes a concept or an adapter out of the project; the files stay. Undoable.
    RemoveConcept(PathBuf),
    RemoveAdapter {
        file: PathBuf,
        /// Whether its slot is handed out again.
        frees: bool,
    },
    RenameAdapter {
        file: PathBuf,
        name: String,
    },
    /// Asks where a missing concept or adapter is now, and what is done with the answer.
    Find(PathBuf),
    Found(PathBuf),
    /// Reads a concept or an adapter from the disk again.
    Reopen(PathBuf),
    /// Makes the picture as training will see it.
    Crop(crops::Key),
    Reveal(PathBuf),

    OpenModel(String),
    SetDevice(Choice),
    SetPrecision(Precision),
    /// Whether the training of the form fits by now.
    LookAhead,

    /// What the form asks for; one that was stopped goes on.
    Train,
    /// From the beginning, without what a stopped one has learnt.
    TrainAnew,
    Enqueue,
    RunQueue,
    ListQueue,
    RetryQueued(String),
    RemoveQueued(String),
    MoveQueued(String, usize),
    Pause,
    Resume,
    Stop,
    SaveNow,
    /// A sample of the step that training is at.
    SampleNow,
    /// Makes the adapter of this step *the* adapter.
    KeepStep(usize),

    SaveMerged(PathBuf),
    BakeMerged(PathBuf),
    SaveRecipe(PathBuf),
    OpenRecipe(PathBuf),
    StopMerge,

    /// Another picture now, with a new seed unless it is locked.
    Paint,
    /// What the preview is held against.
    Compare(Option<Against>),
    StartGrid(Plan),
    StopGrid,
    SaveGrid(PathBuf),
    SavePicture(PathBuf),
    CopyPicture,
    /// The prompt and settings of a saved picture.
    OpenPrompt(PathBuf),
    /// Makes this the picture that the preview starts from.
    StartFrom(PathBuf),
    /// Keeps the preview's picture beside the project, and starts from it.
    StartFromPicture,
    /// Which spectrum is looked at: an adapter of the project, or `None` for the training.
    LookAt(Option<PathBuf>),

    NewProject(PathBuf),
    OpenProject(PathBuf),
    /// Now, instead of a moment later by itself.
    Save,
    SaveProjectAs(PathBuf),
    /// A dialog, and what is done with the answer.
    Ask(Question),
    SetTheme(&'static str),
    SetZoom(f32),
    DismissHint(&'static str),
    DismissNotice,
}

/// A file dialog to open.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub title: &'static str,
    pub kind: Answer,
    /// Ending of the file without a dot; empty for folders.
    pub ending: &'static str,
    /// Name offered where a file is written.
    pub offered: &'static str,
    pub then: fn(PathBuf) -> Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    File,
    Folder,
    NewFile,
}
