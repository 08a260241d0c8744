//! What is kept of what can be computed again.

use std::path::{Path, PathBuf};

use serde::Serialize;
use walkdir::WalkDir;

use crate::engine::{cache, tuning};

#[derive(Clone, Debug, Serialize)]
pub struct Caches {
    /// `None` where the system names no place.
    pub folder: Option<PathBuf>,
    pub latents: Kept,
    /// Passes of the self-test, one for each driver and model.
    pub self_tests: Kept,
    /// cubecl's database, which can be told another place.
    pub kernels: PathBuf,
    pub kernels_bytes: u64,
    /// Operations and sizes that it knows the fastest kernel of.
    pub tuned: u64,
}

/// Of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub files: usize,
    pub bytes: u64,
}

impl Caches {
    pub(super) fn here() -> Self {
        // Where no GPU was opened, nothing has said yet where its kernels would be.
        tuning::begin(false);
        let folder = cache::folder();
        let within = |name: &str| folder.as_deref().map_or_else(Kept::default, |folder| kept(&folder.join(name)));
        let kernels = tuning::file();
        Self {
            latents: within("latents"),
            self_tests: within("self_test"),
            kernels_bytes: with_log(&kernels),
            tuned: tuning::tuned(),
            kernels: at_home(&kernels),
            folder: folder.as_deref().map(at_home),
        }
    }
}

fn kept(folder: &Path) -> Kept {
    let files = WalkDir::new(folder).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    files
        .filter(std::fs::Metadata::is_file)
        .fold(Kept::default(), |kept, file| Kept { files: kept.files + 1, bytes: kept.bytes + file.len() })
}

/// A database and the log of its last changes beside it.
fn with_log(file: &Path) -> u64 {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    [file, Path::new(&log)].iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// A report is shown to others, who need not know what the user is called.
fn at_home(path: &Path) -> PathBuf {
    match dirs::home_dir().and_then(|home| path.strip_prefix(home).ok().map(Path::to_path_buf)) {
        Some(rest) => Path::new("~").join(rest),
        None => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_counted_whole_and_what_is_not_there_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        for (name, content) in [("a", "123"), ("deep/b", "45")] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        assert_eq!(kept(folder.path()), Kept { files: 2, bytes: 5 });
        assert_eq!(kept(&folder.path().join("none")), Kept::default());
        std::fs::write(folder.path().join("a-wal"), "6").unwrap();
        assert_eq!(with_log(&folder.path().join("a")), 4);
    }

    #[test]
    fn nobody_is_named() {
        let Some(home) = dirs::home_dir() else { return };
        assert_eq!(at_home(&home.join("cache")), Path::new("~/cache"));
        assert_eq!(at_home(Path::new("/elsewhere/cache")), Path::new("/elsewhere/cache"));
    }
}
