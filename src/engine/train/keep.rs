//! Steps kept on the way: whole adapter files in `OUT.steps/`, any of which can become the adapter.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::engine::io::atomic;
use crate::engine::train::beside;
use crate::engine::{Error, Result};

/// The folder that holds the kept steps of the run that writes `out`.
pub fn folder(out: &Path) -> PathBuf {
    beside(out, ".steps")
}

/// The file of one step: `OUT.steps/000080.safetensors`.
pub fn file(out: &Path, step: usize) -> PathBuf {
    folder(out).join(format!("{step:06}.safetensors"))
}

/// The file of the best step: `OUT.steps/000080-best.safetensors`.
pub fn best_file(out: &Path, step: usize) -> PathBuf {
    folder(out).join(format!("{step:06}-best.safetensors"))
}

/// The steps that are kept, earliest first.
pub fn kept(out: &Path) -> Vec<(usize, PathBuf)> {
    found(out, file)
}

/// The best steps that are kept; more than one only where a run was killed between two acts.
pub fn best(out: &Path) -> Vec<(usize, PathBuf)> {
    found(out, best_file)
}

/// The files in the folder that `name` names.
fn found(out: &Path, name: fn(&Path, usize) -> PathBuf) -> Vec<(usize, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder(out)) else { return Vec::new() };
    let step = |path: &Path| path.file_stem()?.to_str()?.split('-').next()?.parse().ok();
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((step(&path)?, path)))
        .filter(|(step, path)| *path == name(out, *step) && path.is_file())
        .collect();
    found.sort();
    found
}

/// Forgets all other best steps.
pub fn forget_worse(out: &Path, step: usize) -> Result<()> {
    best(out).iter().filter(|(other, _)| *other != step).try_for_each(|(_, path)| forget(path))
}

/// Forgets all but the latest `last` kept steps, and tells which; 0 forgets none. A best step is not among them.
pub fn thin(out: &Path, last: usize) -> Result<Vec<usize>> {
    let kept = kept(out);
    let gone = if last == 0 { 0 } else { kept.len().saturating_sub(last) };
    kept.into_iter().take(gone).map(|(step, path)| forget(&path).map(|()| step)).collect()
}

fn forget(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| Error::io("remove an old kept step", path, &e))
}

/// Makes a kept step the adapter: `out` is replaced by the whole file at once. The step stays kept.
pub fn keep(out: &Path, step: usize) -> Result<()> {
    let from = Some(best_file(out, step)).filter(|path| path.is_file()).unwrap_or_else(|| file(out, step));
    let bytes = std::fs::read(&from).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let steps: BTreeSet<usize> = kept(out).into_iter().chain(best(out)).map(|(step, _)| step).collect();
            let steps: Vec<String> = steps.iter().map(usize::to_string).collect();
            let advice = match steps.is_empty() {
                true => "Train with --set keep_every=N".to_owned(),
                false => format!("Choose one of {}", steps.join(", ")),
            };
            Error::new(format!("Step {step} was not kept"), advice).at(&from)
        }
        _ => Error::io("read the kept step", &from, &e),
    })?;
    atomic::write(out, |file| file.write_all(&bytes))
}

/// Forgets all kept steps; what is not there is fine.
pub fn remove(out: &Path) -> Result<()> {
    kept(out).into_iter().chain(best(out)).try_for_each(|(_, path)| forget(&path))?;
    // Whatever else somebody has put there stays, and the folder with it.
    let _ = std::fs::remove_dir(folder(out));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_listed_chosen_and_forgotten() {
        let folder_of = tempfile::tempdir().unwrap();
        let out = folder_of.path().join("a.safetensors");
        assert!(kept(&out).is_empty() && remove(&out).is_ok());
        assert!(keep(&out, 5).unwrap_err().advice.contains("keep_every"));
        std::fs::create_dir(folder(&out)).unwrap();
        for step in [1_000_000, 80, 5] {
            std::fs::write(file(&out, step), step.to_string()).unwrap();
        }
        let other = folder(&out).join("7.safetensors");
        std::fs::write(&other, "not ours").unwrap();
        assert_eq!(kept(&out).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [5, 80, 1_000_000]);
        assert!(file(&out, 80).ends_with("a.safetensors.steps/000080.safetensors"));
        keep(&out, 80).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "80");
        assert!(keep(&out, 7).unwrap_err().advice.contains("5, 80, 1000000"));
        remove(&out).unwrap();
        assert!(kept(&out).is_empty() && other.is_file() && out.is_file());
    }

    #[test]
    fn the_last_steps_stay_and_the_best_beside_them() {
        let folder_of = tempfile::tempdir().unwrap();
        let out = folder_of.path().join("a.safetensors");
        std::fs::create_dir(folder(&out)).unwrap();
        for step in [10, 20, 30, 40] {
            std::fs::write(file(&out, step), "kept").unwrap();
        }
        for step in [10, 20] {
            std::fs::write(best_file(&out, step), "best").unwrap();
        }
        forget_worse(&out, 20).unwrap();
        assert!(thin(&out, 0).unwrap().is_empty());
        assert_eq!(thin(&out, 2).unwrap(), [10, 20]);
        assert!(thin(&out, 2).unwrap().is_empty());
        let steps = |found: Vec<(usize, PathBuf)>| found.into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!((steps(kept(&out)), steps(best(&out))), (vec![30, 40], vec![20]));
        keep(&out, 20).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "best");
        assert!(keep(&out, 10).unwrap_err().advice.contains("20, 30, 40"));
        remove(&out).unwrap();
        assert!(!folder(&out).exists());
    }
}
