//! A file appears under its name only when it is whole: write beside, fsync, rename.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use crate::engine::{Error, Result};

/// Calls `write` on a temporary file in the folder of `path`, then renames it to `path`.
/// An existing file at `path` stays untouched until then; on failure the temporary file is removed.
pub fn write(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("write", path, &e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, &e))?;
    if path.is_dir() {
        return Err(Error::new("The output is a folder, but a file is to be written", "Name a file inside it").at(path));
    }
    let temporary =
        tempfile::Builder::new().prefix(".triptych-").suffix(".part").tempfile_in(folder).map_err(failed)?;
    let mut out = BufWriter::new(temporary.as_file());
    write(&mut out).and_then(|()| out.flush()).map_err(failed)?;
    drop(out);
    temporary.as_file().sync_all().map_err(failed)?;
    set_permissions(temporary.as_file(), path).map_err(failed)?;
    temporary.persist(path).map_err(|e| failed(e.error))?;
    // The rename itself is durable only once the folder is. Not every system can open a folder; it is best effort.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
    Ok(())
}

/// Temporary files are private; the result gets the mode of the file it replaces, or the usual one.
#[cfg(unix)]
fn set_permissions(file: &File, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0o644, |m| m.permissions().mode());
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_permissions(_: &File, _: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_debris() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, |out| out.write_all(b"old")).unwrap();
        let error = write(&path, |out| {
            out.write_all(b"new")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.advice.contains("disk space"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
