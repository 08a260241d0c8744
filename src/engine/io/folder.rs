//! A folder of model files: on disk, or inside the program.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use include_dir::Dir;

use crate::engine::io::{Checkpoint, pickle, shards};
use crate::engine::{Error, Result};

#[derive(Clone, Debug)]
pub enum Folder {
    Disk(PathBuf),
    /// `name` is what messages call it.
    Embedded {
        name: &'static str,
        dir: &'static Dir<'static>,
    },
}

impl Folder {
    /// The path messages name; for an embedded folder its name.
    pub fn path(&self) -> &Path {
        match self {
            Self::Disk(path) => path,
            Self::Embedded { name, .. } => Path::new(name),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Disk(path) => path.join(name).is_file(),
            Self::Embedded { dir, .. } => dir.get_file(name).is_some(),
        }
    }

    pub fn bytes(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        let path = self.path().join(name);
        match self {
            Self::Disk(_) => std::fs::read(&path).map(Cow::Owned).map_err(|e| Error::io("read", &path, &e)),
            Self::Embedded { dir, .. } => dir
                .get_file(name)
                .map(|file| Cow::Borrowed(file.contents()))
                .ok_or_else(|| Error::io("read", &path, &std::io::ErrorKind::NotFound.into())),
        }
    }

    pub fn text(&self, name: &str) -> Result<String> {
        String::from_utf8(self.bytes(name)?.into_owned()).map_err(|e| {
            Error::new(format!("The file is not text ({e})"), "Fetch or export it again").at(self.path().join(name))
        })
    }

    /// A JSON file as the fields that `T` names.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_str(&self.text(name)?).map_err(|e| {
            Error::new(
                format!("The configuration cannot be read: {e}"),
                "The model may be of another family, or the file damaged: fetch it again",
            )
            .at(self.path().join(name))
        })
    }

    /// The weights of a network: the first of `files` in the folder `part`; else the shards of the first whose
    /// `.index.json` exists.
    pub fn checkpoint(&self, part: &str, files: [&str; 2]) -> Result<Checkpoint> {
        let names = files.map(|file| format!("{part}/{file}"));
        let found = match self {
            Self::Disk(path) => {
                let one = names.iter().map(|name| path.join(name)).find(|file| file.is_file());
                let index =
                    names.iter().map(|name| path.join(format!("{name}.index.json"))).find(|file| file.is_file());
                one.map(|file| Checkpoint::open(&file)).or_else(|| index.map(|index| shards::open(&index)))
            }
            Self::Embedded { dir, .. } => names
                .iter()
                .find_map(|name| dir.get_file(name))
                .map(|file| Checkpoint::embedded(&self.path().join(file.path()), file.contents())),
        };
        found.unwrap_or_else(|| match self.pickle_in(part) {
            Some(file) => Err(pickle::refusal().at(file)),
            None => Err(Error::new(
                format!("None of {} is there", names.join(", ")),
                "The model folder is incomplete: fetch the missing file",
            )
            .at(self.path())),
        })
    }

    /// A pickle in one of its folders.
    fn pickle_in(&self, part: &str) -> Option<PathBuf> {
        let Self::Disk(path) = self else { return None };
        let files = std::fs::read_dir(path.join(part)).ok()?;
        files.filter_map(|file| Some(file.ok()?.path())).filter(|file| pickle::is_named_so(file)).min()
    }
}
