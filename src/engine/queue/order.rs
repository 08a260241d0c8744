//! One training of the queue, as its file says it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::io::{Folder, atomic};
use crate::engine::model::StableDiffusion;
use crate::engine::session::{self, Lesson, Training};
use crate::engine::train::configuration::{Together, is_one, is_whole, one, whole};
use crate::engine::{Error, Result, adapter, field};

/// What [`Training`] asks for, with its model and pictures; paths from the root, for whoever runs it wherever they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    #[serde(default)]
    pub state: State,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `starter`, a folder in diffusers layout, or a single file.
    #[serde(default = "starter")]
    pub model: String,
    /// Folder of pictures.
    pub concept: PathBuf,
    pub token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repeats: usize,
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub weight: f32,
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<PathBuf>,
    #[serde(default)]
    pub seed: u64,
    /// The adapter file to write.
    pub out: PathBuf,
    /// Goes on from the saved state of `out`. Set when an order that has begun is interrupted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stamp: bool,
    /// Changed fields of the method and of training.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub set: toml::Table,
    /// Further concepts of the same adapter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Together>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    #[default]
    Waiting,
    Running,
    Done,
    Failed,
}

fn starter() -> String {
    "starter".into()
}

impl Order {
    /// A wrong field, value or token is told now and not hours later. Whether the model and the pictures are there is
    /// told when its turn comes: they may be made until then.
    pub fn new(model: &str, concepts: &[PathBuf], training: &Training) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io("find", path, &e));
        let model = match StableDiffusion::folder(model) {
            Folder::Embedded { .. } => model.to_owned(),
            Folder::Disk(path) => absolute(&path)?.display().to_string(),
        };
        let pairs = concepts
            .iter()
            .zip(&training.lessons)
            .map(|(concept, lesson)| Ok(lesson.clone().about(absolute(concept)?)));
        let mut together = pairs.collect::<Result<Vec<_>>>()?;
        if together.is_empty() || concepts.len() != training.lessons.len() {
            return Err(Error::usage("Each concept needs a token", "Give as many tokens as concepts"));
        }
        let Together { concept, token, class, repeats, weight } = together.remove(0);
        let order = Self {
            state: State::Waiting,
            error: None,
            model,
            concept,
            token,
            class,
            repeats,
            weight,
            method: training.method.name.to_owned(),
            slot: training.slot,
            project: training.project.as_deref().map(absolute).transpose()?,
            seed: training.seed,
            out: absolute(&training.out)?,
            resume: training.resume,
            stamp: training.stamp,
            set: training.changes.iter().map(|(name, text)| (name.clone(), field::plain(text))).collect(),
            together,
        };
        order.training()?;
        Ok(order)
    }

    /// What [`session::Session::train`] is to do. Method, fields, token and paths are checked.
    pub fn training(&self) -> Result<Training> {
        let method = adapter::method(&self.method)?;
        let changes = field::changes(&self.set)?;
        session::settings(method, &changes)?;
        let lessons = self.lessons();
        session::check(&lessons)?;
        let model = match StableDiffusion::folder(&self.model) {
            Folder::Embedded { .. } => None,
            Folder::Disk(path) => Some(path),
        };
        let paths = [Some(&self.out), self.project.as_ref(), model.as_ref()];
        if let Some(path) = paths.into_iter().flatten().chain(self.concepts()).find(|path| !path.is_absolute()) {
            return Err(Error::usage(
                format!("{} means another place in every folder", path.display()),
                "Write the path from the root, such as /home/me/robot",
            ));
        }
        Ok(Training {
            lessons,
            method,
            changes,
            slot: self.slot,
            project: self.project.clone(),
            seed: self.seed,
            out: self.out.clone(),
            resume: self.resume,
            stamp: self.stamp,
            wishes: None,
        })
    }

    /// The folders of pictures.
    pub fn concepts(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.concept).chain(self.together.iter().map(|other| &other.concept))
    }

    /// What is asked of each of them.
    fn lessons(&self) -> Vec<Lesson> {
        let Self { token, class, repeats, weight, .. } = self.clone();
        let others = self.together.iter().cloned().map(|other| Lesson::of(other).1);
        std::iter::once(Lesson { token, class_word: class, repeats, weight }).chain(others).collect()
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
        let order: Self = toml::from_str(&text).map_err(|e| {
            Error::new(format!("The order cannot be read: {}", e.message()), "Mend the file by hand, or remove it")
                .at(path)
        })?;
        order.training().map_err(|e| e.at(path))?;
        Ok(order)
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| {
            Error::new(
                format!("The order cannot be written ({e})"),
                "Choose a seed below 9 223 372 036 854 775 808, and folders whose names are plain text",
            )
            .at(path)
        })?;
        atomic::write(path, |out| out.write_all(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(changes: &[(&str, &str)]) -> Training {
        Training {
            lessons: vec![Lesson::new("<a>", Some("robot".into()))],
            method: adapter::method("lora").unwrap(),
            changes: changes.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
            slot: None,
            project: None,
            seed: 3,
            out: "robot.safetensors".into(),
            resume: false,
            stamp: false,
            wishes: None,
        }
    }

    #[test]
    fn a_file_says_what_the_training_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let changes = [("background", "000000"), ("flip", "false"), ("lr", "1e-3"), ("steps", "400")];
        Order::new("starter", &["pictures".into()], &training(&changes)).unwrap().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in ["state = \"waiting\"", "steps = 400", "flip = false", "background = \"000000\""] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let order = Order::read(&path).unwrap();
        assert!(order.concept.is_absolute() && order.out.is_absolute() && order.model == "starter");
        let read = order.training().unwrap();
        let texts: Vec<_> = read.changes.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!((texts.as_slice(), read.seed, read.method.name), (&changes[..], 3, "lora"));
    }

    #[test]
    fn concepts_that_are_taught_together_are_one_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let head = Lesson { repeats: 3, weight: 0.5, ..Lesson::new("<head>", None) };
        let lessons = vec![Lesson::new("<a>", Some("robot".into())), head];
        let training = Training { lessons: lessons.clone(), ..training(&[("steps", "4")]) };
        let order = Order::new("starter", &["robot".into(), "head".into()], &training).unwrap();
        order.write(&path).unwrap();
        let read = Order::read(&path).unwrap();
        assert_eq!((&read, read.training().unwrap().lessons), (&order, lessons));
        let folders: Vec<_> = read.concepts().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(folders, ["robot", "head"]);
        assert!(Order::new("starter", &["robot".into()], &training).unwrap_err().what.contains("needs a token"));
    }

    #[test]
    fn what_could_not_run_is_refused() {
        let refused = |change: (&str, &str)| {
            Order::new("starter", &["pictures".into()], &training(&[change])).unwrap_err().to_string()
        };
        assert!(refused(("colour", "red")).contains("There is no field “colour”"));
        assert!(refused(("rank", "many")).contains("rank cannot be “many”"));
        let good = Order::new("starter", &["pictures".into()], &training(&[])).unwrap();
        let relative = Order { concept: "pictures".into(), ..good.clone() };
        assert!(relative.training().unwrap_err().advice.contains("from the root"));
        assert!(Order { token: "two words".into(), ..good.clone() }.training().is_err());
        assert!(Order { method: "stew".into(), ..good }.training().is_err());
    }
}
