//! Which concept owns which slot of the shared basis.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Project;
use crate::engine::io::atomic::folder_of;
use crate::engine::io::lock::Lock;
use crate::engine::{Error, Result};

/// A taken slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub number: usize,
    /// The adapter file, relative to the project where it lies beneath it.
    pub file: PathBuf,
    pub token: String,
}

impl Project {
    /// Takes a slot for the adapter at `out`: the one it had, the `wanted` one, or the lowest free one, below `capacity`.
    ///
    /// Holds a lock from reading to writing, so that two trainings started together get two slots.
    pub fn claim(
        path: &Path,
        block: usize,
        out: &Path,
        token: &str,
        wanted: Option<usize>,
        width: usize,
    ) -> Result<(Self, usize)> {
        let _lock = Lock::take(path)?;
        let mut project = Self::open(path, block)?;
        let capacity = width / project.block;
        let file = relative(out, path);
        let taken_by = |number: usize, project: &Self| {
            project.slots.iter().find(|slot| slot.number == number && slot.file != file).cloned()
        };
        let mine = project.slot_of(out, path).map(|slot| slot.number);
        let number = match wanted {
            Some(number) => match taken_by(number, &project) {
                Some(other) => {
                    return Err(Error::new(
                        format!("Slot {number} belongs to {} already ({})", other.token, other.file.display()),
                        "Leave out --slot to take a free one; two concepts in one slot get into each other's way",
                    )
                    .at(path));
                }
                None => number,
            },
            None => match mine.filter(|&number| number < capacity) {
                Some(number) => number,
                None => (0..capacity).find(|&number| taken_by(number, &project).is_none()).unwrap_or(capacity),
            },
        };
        if number >= capacity {
            return Err(Error::new(
                format!(
                    "{}: the narrowest layer that is trained reads {width} numbers and each concept owns {} of them, \
                     so there is room for {capacity} concepts",
                    wanted.map_or("No slot is left".into(), |number| format!("There is no slot {number}")),
                    project.block
                ),
                "Delete the lines of a concept you no longer need from the project, start another with a smaller block, train wider layers only, or use --set basis=random",
            )
            .at(path));
        }
        project.slots.retain(|slot| slot.file != file);
        project.slots.push(Slot { number, file, token: token.to_owned() });
        project.slots.sort_by_key(|slot| slot.number);
        project.save(path)?;
        Ok((project, number))
    }

    /// Gives the slot of the adapter at `out` back, and says which are taken then.
    pub fn release(path: &Path, block: usize, out: &Path) -> Result<Vec<Slot>> {
        let _lock = Lock::take(path)?;
        let mut project = Self::open(path, block)?;
        let file = relative(out, path);
        project.slots.retain(|slot| slot.file != file);
        project.save(path)?;
        Ok(project.slots)
    }

    /// The adapter at `from` is at `to` now, and its slot with it.
    pub fn moved(path: &Path, block: usize, from: &Path, to: &Path) -> Result<Vec<Slot>> {
        let _lock = Lock::take(path)?;
        let mut project = Self::open(path, block)?;
        let (from, to) = (relative(from, path), relative(to, path));
        let mut any = false;
        for slot in project.slots.iter_mut().filter(|slot| slot.file == from) {
            (slot.file, any) = (to.clone(), true);
        }
        if any {
            project.save(path)?;
        }
        Ok(project.slots)
    }

    /// The slot that the adapter at `out` has in the project at `path`.
    pub fn slot_of(&self, out: &Path, path: &Path) -> Option<&Slot> {
        let file = relative(out, path);
        self.slots.iter().find(|slot| slot.file == file)
    }
}

pub(super) fn relative(file: &Path, project: &Path) -> PathBuf {
    let folder = folder_of(project);
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let (file, folder) = (absolute(file), absolute(folder));
    file.strip_prefix(&folder).map_or_else(|_| file.clone(), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_handed_out_from_the_lowest_and_run_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let claim = |name: &str, wanted| {
            Project::claim(&path, 8, &folder.path().join(name), "<a>", wanted, 24).map(|(_, slot)| slot)
        };
        assert_eq!(claim("a", None).unwrap(), 0);
        assert_eq!(claim("b", Some(2)).unwrap(), 2);
        assert_eq!(claim("c", None).unwrap(), 1);
        assert_eq!(claim("a", None).unwrap(), 0, "training again keeps the slot");
        assert!(claim("d", None).unwrap_err().what.contains("room for 3"));
        assert!(claim("d", Some(1)).unwrap_err().what.contains("belongs to"));
        assert!(claim("d", Some(7)).unwrap_err().what.contains("no slot 7"));
        let moved = Project::moved(&path, 8, &folder.path().join("b"), &folder.path().join("e")).unwrap();
        assert!(moved.iter().any(|slot| slot.number == 2 && slot.file == Path::new("e")));
        Project::moved(&path, 8, &folder.path().join("e"), &folder.path().join("b")).unwrap();
        let left = Project::release(&path, 8, &folder.path().join("c")).unwrap();
        assert_eq!(left.iter().map(|slot| slot.number).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(claim("c", None).unwrap(), 1, "what was given back is handed out again");
        let project = Project::open(&path, 99).unwrap();
        assert_eq!(project.block, 8, "the project's own block counts");
        assert_eq!(
            project.slots.iter().map(|s| s.file.clone()).collect::<Vec<_>>(),
            ["a", "c", "b"].map(PathBuf::from)
        );
    }

    #[test]
    fn two_at_once_get_two_slots() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let mut slots: Vec<usize> = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8)
                .map(|i| {
                    let (path, out) = (path.clone(), folder.path().join(format!("{i}.safetensors")));
                    scope.spawn(move || Project::claim(&path, 8, &out, "<a>", None, 64).unwrap().1)
                })
                .collect();
            claims.into_iter().map(|claim| claim.join().unwrap()).collect()
        });
        slots.sort_unstable();
        assert_eq!(slots, (0..8).collect::<Vec<_>>());
    }
}
