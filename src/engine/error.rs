//! The one error type: what happened, what to do about it, and the file it concerns.

use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that was asked for does not exist or is out of range (an unknown method, field or setting).
    Usage,
    /// The work itself failed.
    Failed,
    /// The user stopped it; nothing is wrong.
    Cancelled,
}

/// A sentence an artist can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    /// What happened, one sentence without a full stop.
    pub what: String,
    /// What to do next, one sentence; empty when `what` already says it.
    pub advice: String,
    pub path: Option<PathBuf>,
}

impl Error {
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, what: what.into(), advice: advice.into(), path: None }
    }

    pub fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, ..Self::new(what, advice) }
    }

    pub fn cancelled() -> Self {
        Self { kind: Kind::Cancelled, ..Self::new("Stopped", "") }
    }

    /// An operating-system failure while doing `doing` ("read", "write", …) to `path`.
    pub fn io(doing: &str, path: &Path, source: &std::io::Error) -> Self {
        let advice = match source.kind() {
            std::io::ErrorKind::NotFound => "Check that the path exists and is spelled as on disk",
            std::io::ErrorKind::PermissionDenied => "Check the permissions of the file and its folder",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "Free some disk space and try again; nothing was overwritten"
            }
            std::io::ErrorKind::InvalidData => "It is no text file: choose another, or save it again as UTF-8",
            std::io::ErrorKind::FileTooLarge => "Choose a disk that takes larger files; nothing was overwritten",
            std::io::ErrorKind::ReadOnlyFilesystem => "Choose a folder that can be written to",
            _ => "Check the disk and try again",
        };
        Self::new(format!("Could not {doing}: {source}"), advice).at(path)
    }

    /// Names the file; the innermost name wins.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.what.trim_end_matches('.'))?;
        if !self.advice.is_empty() {
            write!(f, " {}.", self.advice.trim_end_matches('.'))?;
        }
        match &self.path {
            Some(path) => write!(f, "\n  {}", path.display()),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
