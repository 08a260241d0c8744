//! A file appears under its name only when it is whole: write beside, fsync, rename.
//!
//! What is half written has a name of its own and is locked as long as its writer lives, so whatever bears such a name and
//! is not locked was left by a process that died. Every write clears its folder of that.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::engine::{Error, Result};

/// How names of what is half written begin and end.
const PREFIX: &str = ".triptych-";
const SUFFIX: &str = ".part";

/// Calls `write` on a temporary file in the folder of `path`, then renames it to `path`.
/// An existing file at `path` stays untouched until then; on failure the temporary file is removed.
pub fn write(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("write", path, &e);
    let folder = prepare(path)?;
    may_become_a_file(path)?;
    let temporary = temporary(folder).map_err(failed)?;
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

/// As [`write()`], for a folder that is not there yet: `write` makes and fills another beside it, which is then renamed.
pub fn write_folder(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = prepare(path)?;
    let beside = tempfile::Builder::new()
        .prefix(PREFIX)
        .suffix(SUFFIX)
        .tempdir_in(parent)
        .map_err(|e| Error::io("write", parent, &e))?;
    // A system that cannot open a folder cannot clear it away either.
    let lock = File::open(beside.path());
    if let Ok(lock) = &lock {
        lock.lock().ok();
    }
    let new = beside.path().join("new");
    write(&new).map_err(|mut error| {
        // Told by the name that it would have had.
        let inside = error.path.as_deref().and_then(|at| at.strip_prefix(&new).ok()).map(|at| path.join(at));
        error.path = inside.or(error.path);
        error
    })?;
    if !new.exists() {
        return Ok(());
    }
    fs::rename(&new, path).map_err(|e| Error::io("put the folder in its place", path, &e))
}

/// Refuses an output that could never become a file: told before the work rather than after it.
pub fn may_become_a_file(path: &Path) -> Result<()> {
    let what = match fs::metadata(path) {
        Ok(there) if there.is_dir() => "a folder",
        Ok(there) if !there.is_file() => "a device or a pipe",
        _ => return Ok(()),
    };
    Err(Error::new(format!("The output is {what}, but a file is to be written"), "Name a file inside a folder")
        .at(path))
}

/// The folder in which `path` lies or will lie.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what processes that died have left half written in `folder`. What cannot be removed does no harm.
pub fn sweep(folder: &Path) {
    for path in fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PREFIX)
            && name.ends_with(SUFFIX)
            && let Ok(left) = File::open(&path)
            && left.try_lock().is_ok()
        {
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.ok();
        }
    }
}

/// Makes the folder of `path` and clears it.
fn prepare(path: &Path) -> Result<&Path> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, &e))?;
    sweep(folder);
    Ok(folder)
}

/// A locked file.
fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(folder)?;
        // Where nothing can be locked, nothing is taken for a leftover.
        file.as_file().lock().ok();
        // Between its making and its lock, another process may have taken it for one.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Temporary files are private; the result gets the mode of the file it replaces, or the usual one.
#[cfg(unix)]
fn set_permissions(file: &File, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode());
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_permissions(_: &File, _: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    #[test]
    fn what_a_dead_process_has_left_is_cleared_and_what_lives_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at(".triptych-dead.part"), "half").unwrap();
        fs::create_dir_all(at(".triptych-model.part/new")).unwrap();
        for other in [".triptych-notes", "a.part", ".other-dead.part"] {
            fs::write(at(other), "somebody's").unwrap();
        }
        let alive = File::create(at(".triptych-alive.part")).unwrap();
        alive.lock().unwrap();
        write(&at("a.bin"), |out| out.write_all(b"whole")).unwrap();
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
        };
        let others = [".other-dead.part", ".triptych-notes", "a.bin", "a.part"].map(String::from);
        assert_eq!(names(), others.iter().cloned().chain([".triptych-alive.part".into()]).collect());
        // Its process dies.
        drop(alive);
        sweep(folder.path());
        assert_eq!(names(), others.into());
    }

    #[test]
    fn many_that_write_into_one_folder_leave_each_other_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let path = folder.path().join(writer.to_string());
                scope.spawn(move || {
                    for round in 0..25 {
                        write(&path, |out| writeln!(out, "{round}")).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 8);
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/model");
        let fill = |folder: &Path| {
            fs::create_dir(folder).unwrap();
            // Writes below do not take it for a leftover, nor do those beside it.
            write(&folder.join("a"), |out| out.write_all(b"a"))?;
            write(&folder_of(&path).join("beside"), |out| out.write_all(b"b"))
        };
        let spoil = |folder: &Path| fill(folder).and(Err(Error::new("no", "").at(folder.join("a"))));
        assert_eq!(write_folder(&path, spoil).unwrap_err().path, Some(path.join("a")));
        assert_eq!(fs::read_dir(scratch.path().join("deep")).unwrap().count(), 1);
        write_folder(&path, fill).unwrap();
        assert!(path.join("a").is_file());
        assert_eq!(fs::read_dir(scratch.path().join("deep")).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_and_a_device_cannot_become_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| write(path, |out| out.write_all(b"a")).unwrap_err().what;
        assert!(refused(folder.path()).contains("a folder"));
        #[cfg(unix)]
        assert!(refused(Path::new("/dev/null")).contains("a device"));
        assert_eq!(folder_of(Path::new("a.bin")), Path::new("."));
    }
}
