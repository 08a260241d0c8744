//! The project file: the model, concepts and adapters an artist works with, how they are mixed, and who owns which slot.
//!
//! One readable file, `triptych.toml`; everything it names lies beside it where it can. A file written by an older
//! version opens: what it lacks takes its default.

mod desk;
mod slots;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use serde::{Deserialize, Serialize};

pub use desk::{Desk, FURTHEST, Fader};
pub use slots::Slot;

use crate::engine::io::atomic;
use crate::engine::io::lock::Lock;
use crate::engine::preview::{Init, Mask, Request, STRENGTH};
use crate::engine::words;
use crate::engine::{Error, Result};

/// Of the file's layout. A newer file than this program knows is refused rather than cut down.
const VERSION: u32 = 2;

/// `triptych.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Project {
    #[serde(default = "first_version")]
    pub version: u32,
    /// Columns of the basis that each concept owns. Fixed: with another block, slots would overlap.
    pub block: usize,
    /// `starter`, a folder in diffusers layout, or a single file.
    #[serde(default = "starter")]
    pub model: String,
    #[serde(default)]
    pub training: TrainingForm,
    #[serde(default)]
    pub preview: PreviewForm,
    #[serde(default)]
    pub desk: Desk,
    #[serde(default, rename = "concept", skip_serializing_if = "Vec::is_empty")]
    pub concepts: Vec<ConceptEntry>,
    #[serde(default, rename = "adapter", skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterEntry>,
    #[serde(default, rename = "slot", skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<Slot>,
}

/// A concept as the project knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConceptEntry {
    /// What the artist calls it.
    pub name: String,
    /// Relative to the project where it lies beneath it.
    pub folder: PathBuf,
    pub token: String,
    #[serde(default)]
    pub class: String,
}

/// An adapter file as the project knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterEntry {
    pub name: String,
    /// Relative to the project where it lies beneath it.
    pub file: PathBuf,
    /// Folder of the concept it was taught, where that is known: methods that look at pictures need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concept: Option<PathBuf>,
}

impl AdapterEntry {
    /// Of a file that nobody has named yet: it is called what the file is.
    pub fn of(file: PathBuf) -> Self {
        Self { name: words::stem(&file), file, concept: None }
    }
}

/// What the next training is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingForm {
    /// Folder of the concept, as its entry has it.
    pub concept: PathBuf,
    /// How often its pictures are shown for once of another's, and the weight of its loss, where others are taught with it.
    pub repeats: usize,
    pub weight: f32,
    pub method: String,
    pub seed: u64,
    /// Fields that differ from their defaults.
    pub changes: BTreeMap<String, String>,
    /// Further concepts of the same adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Together>,
}

/// A further concept of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// Its folder, as its entry has it.
    pub concept: PathBuf,
    pub repeats: usize,
    pub weight: f32,
}

/// What the next picture is asked to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreviewForm {
    pub prompt: String,
    pub negative: String,
    pub clip_skip: usize,
    pub sampler: String,
    pub steps: usize,
    pub cfg: f64,
    pub seed: u64,
    /// Whether the seed stays when another picture is asked for.
    pub seed_locked: bool,
    /// `[width, height]`; `None` is the model's own.
    pub size: Option<[usize; 2]>,
    /// Picture to start from, relative to the project where it lies beneath it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// How far that picture may change, 0…1.
    pub strength: f64,
    /// What of it is repainted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
    /// Fields of sampling that differ from their defaults.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub changes: BTreeMap<String, String>,
}

impl Default for TrainingForm {
    fn default() -> Self {
        Self {
            concept: PathBuf::new(),
            repeats: 1,
            weight: 1.0,
            method: "orthogonal".into(),
            seed: 0,
            changes: BTreeMap::new(),
            together: Vec::new(),
        }
    }
}

impl Default for PreviewForm {
    fn default() -> Self {
        Request::default().into()
    }
}

impl From<Request> for PreviewForm {
    fn from(
        Request { prompt, negative, clip_skip, sampler, steps, cfg, seed, size, changes, init, .. }: Request,
    ) -> Self {
        let (init, strength, mask) = match init {
            Some(Init { file, strength, mask, .. }) => (Some(file), strength, mask),
            None => (None, STRENGTH, None),
        };
        Self {
            prompt,
            negative,
            clip_skip,
            sampler,
            steps,
            cfg,
            seed,
            seed_locked: true,
            size,
            init,
            strength,
            mask,
            changes,
        }
    }
}

impl PreviewForm {
    /// One picture of it, which starts from `picture` where the form names one.
    pub fn request(&self, picture: Option<Arc<RgbImage>>) -> Request {
        let Self {
            prompt, negative, clip_skip, sampler, steps, cfg, seed, size, changes, init, strength, mask, ..
        } = self.clone();
        let init = init.zip(picture).map(|(file, picture)| Init { file, picture, strength, mask });
        Request { prompt, negative, clip_skip, sampler, steps, cfg, seed, size, changes, init, ..Request::default() }
    }
}

/// The project that belongs to an adapter file when none is named.
pub fn beside(out: &Path) -> PathBuf {
    out.with_file_name("triptych.toml")
}

impl Project {
    pub fn new(block: usize) -> Self {
        Self {
            version: VERSION,
            block,
            model: starter(),
            training: TrainingForm::default(),
            preview: PreviewForm::default(),
            desk: Desk::default(),
            concepts: Vec::new(),
            adapters: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Reads a project, or starts one with `block` columns a slot.
    pub fn open(path: &Path, block: usize) -> Result<Self> {
        if !path.is_file() {
            return Ok(Self::new(block));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
        let broken = |why: String| {
            Error::new(format!("The project cannot be read: {why}"), "Mend it by hand, or name another with --project")
                .at(path)
        };
        let mut project: Self = toml::from_str(&text).map_err(|e| broken(e.message().to_owned()))?;
        if project.block == 0 {
            return Err(broken("block must be at least 1".into()));
        }
        if let Some(fader) = project.desk.off_the_scale() {
            return Err(broken(format!("the strength of {} is not a number", fader.file.display())));
        }
        if project.version > VERSION {
            return Err(Error::new("The project was written by a newer Triptych", "Install that version").at(path));
        }
        project.version = VERSION;
        Ok(project)
    }

    /// Writes everything but the slots: those belong to whoever claimed them last, maybe another program.
    pub fn save_work(&mut self, path: &Path) -> Result<()> {
        let _lock = Lock::take(path)?;
        if path.is_file() {
            let there = Self::open(path, self.block)?;
            (self.block, self.slots) = (there.block, there.slots);
        }
        self.save(path)
    }

    /// Names every file as a project at `to` does, after it was one at `from`.
    pub fn rebase(&mut self, from: &Path, to: &Path) {
        let move_one = |file: &mut PathBuf| {
            if !file.as_os_str().is_empty() {
                *file = named(&placed(file, from), to);
            }
        };
        self.concepts.iter_mut().for_each(|entry| move_one(&mut entry.folder));
        for entry in &mut self.adapters {
            move_one(&mut entry.file);
            entry.concept.iter_mut().for_each(move_one);
        }
        self.desk.faders.iter_mut().for_each(|fader| move_one(&mut fader.file));
        self.slots.iter_mut().for_each(|slot| move_one(&mut slot.file));
        move_one(&mut self.training.concept);
        self.preview.init.iter_mut().for_each(move_one);
        self.training.together.iter_mut().for_each(|other| move_one(&mut other.concept));
        if self.model != starter() {
            let mut model = PathBuf::from(&self.model);
            move_one(&mut model);
            self.model = model.to_string_lossy().into_owned();
        }
    }

    /// Writes the project where none is, with its slots.
    pub fn save_as(&self, path: &Path) -> Result<()> {
        let _lock = Lock::take(path)?;
        if path.exists() {
            return Err(Error::new("There is a project of this name already", "Choose another name").at(path));
        }
        self.save(path)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self)
            .map_err(|e| Error::new(format!("The project cannot be written ({e})"), "Report this").at(path))?;
        atomic::write(path, |out| out.write_all(text.as_bytes()))
    }
}

/// As a project at `project` names `file`: relative where it lies beneath it.
pub fn named(file: &Path, project: &Path) -> PathBuf {
    slots::relative(file, project)
}

/// Where what a project at `project` calls `file` lies.
pub fn placed(file: &Path, project: &Path) -> PathBuf {
    project.parent().map_or_else(|| file.to_path_buf(), |folder| folder.join(file))
}

/// Files without a version are of the first.
fn first_version() -> u32 {
    1
}

fn starter() -> String {
    "starter".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_of_the_first_version_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("triptych.toml");
        std::fs::write(&path, "block = 8\n[[slot]]\nnumber = 1\nfile = \"a\"\ntoken = \"<a>\"\n").unwrap();
        let mut project = Project::open(&path, 16).unwrap();
        assert_eq!((project.block, project.slots.len(), project.model.as_str()), (8, 1, "starter"));
        project.concepts.push(ConceptEntry { name: "robot".into(), ..ConceptEntry::default() });
        project.desk.faders.push(Fader::new("a".into()));
        project.desk.faders[0].blocks.insert("mid".into(), 0.5);
        let mut mask = Mask::new([4, 2]);
        mask.invert();
        project.preview = PreviewForm {
            init: Some("start.png".into()),
            strength: 0.5,
            mask: Some(mask),
            changes: BTreeMap::from([("spacing".to_owned(), "trailing".to_owned())]),
            ..PreviewForm::default()
        };
        project.slots.clear();
        project.save_work(&path).unwrap();
        let again = Project::open(&path, 16).unwrap();
        assert_eq!(again.slots.len(), 1, "slots are not the window's to lose");
        assert_eq!(again, project);
    }

    #[test]
    fn a_project_saved_elsewhere_finds_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("a/triptych.toml"), folder.path().join("b/triptych.toml"));
        let mut project = Project::new(8);
        let entry = AdapterEntry { name: "x".into(), file: "adapters/x".into(), concept: Some("pictures".into()) };
        project.adapters.push(entry);
        project.desk.faders.push(Fader::new("adapters/x".into()));
        let before = placed(&project.adapters[0].file, &old);
        project.rebase(&old, &new);
        assert_eq!(placed(&project.desk.faders[0].file, &new), before);
        assert_eq!((project.model.as_str(), project.training.concept.as_os_str().len()), ("starter", 0));
        project.save_as(&new).unwrap();
        assert!(project.save_as(&new).unwrap_err().what.contains("already"));
    }

    #[test]
    fn newer_projects_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("triptych.toml");
        std::fs::write(&path, "version = 99\nblock = 8\n").unwrap();
        assert!(Project::open(&path, 8).unwrap_err().what.contains("newer"));
    }

    #[test]
    fn what_lies_beneath_is_named_relative() {
        let project = Path::new("/home/a/p/triptych.toml");
        assert_eq!(named(Path::new("/home/a/p/x/y.safetensors"), project), Path::new("x/y.safetensors"));
        assert_eq!(named(Path::new("/other/y"), project), Path::new("/other/y"));
        assert_eq!(placed(Path::new("x/y"), project), Path::new("/home/a/p/x/y"));
        assert_eq!(placed(Path::new("/other/y"), project), Path::new("/other/y"));
    }
}
