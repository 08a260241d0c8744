//! Locks between processes, gone with the process that holds them.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::engine::io::atomic::folder_of;
use crate::engine::{Error, Result};

/// The lock that belongs to a file or a job.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until the lock of `path` is free. Makes the folder it lies in.
    pub fn take(path: &Path) -> Result<Self> {
        let (path, file) = open(path)?;
        file.lock().map_err(|e| Error::io("lock", &path, &e))?;
        Ok(Self { _file: file })
    }

    /// `None` while somebody holds it, in this process or another.
    pub fn try_take(path: &Path) -> Result<Option<Self>> {
        let (path, file) = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path, &e)),
        }
    }
}

/// The hidden file that is locked, for programs that replace `path` itself when they write it.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

fn open(path: &Path) -> Result<(PathBuf, File)> {
    let path = beside(path);
    let failed = |e: std::io::Error| Error::io("lock", &path, &e);
    std::fs::create_dir_all(folder_of(&path)).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    Ok((path, file))
}
