//! The project that a first start opens on: the starter model and two of the shipped concepts.

use std::path::{Path, PathBuf};

use crate::engine::concept::shipped::{self, SHIPPED};
use crate::engine::project::{self, ConceptEntry, Project};
use crate::engine::{Error, Result};

/// Columns of a slot on the starter model.
const BLOCK: usize = 8;
/// Which of the shipped concepts, and the words that call them up.
const TAUGHT: [(usize, &str); 2] = [(0, "<robo>"), (1, "<head>")];

/// Something the starter model knows, so that a picture is there before anything is taught.
const FIRST_PROMPT: &str = "a 3d emoji of robot";

/// Where the starter project lies for this person.
pub fn place() -> Result<PathBuf> {
    let data = dirs::data_dir().ok_or_else(|| {
        Error::new("This system names no folder for a program's data", "Name a project: triptych --project FILE")
    })?;
    Ok(data.join("triptych").join("starter").join("triptych.toml"))
}

/// Unpacks the concepts beside the project and writes it. A project that is there is opened as it is.
pub fn project(path: &Path) -> Result<Project> {
    let mut project = Project::open(path, BLOCK)?;
    if path.is_file() {
        return Ok(project);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    for (index, token) in TAUGHT {
        let concept = &SHIPPED[index];
        let (pictures, _) = shipped::unpack(concept, &folder.join("concepts").join(concept.folder))?;
        project.concepts.push(ConceptEntry {
            name: concept.title.into(),
            folder: project::named(&pictures, path),
            token: token.into(),
            class: concept.class_word.into(),
        });
    }
    project.training.concept.clone_from(&project.concepts[0].folder);
    project.preview.prompt = FIRST_PROMPT.into();
    project.save_work(path)?;
    Ok(project)
}
