//! A folder of folders: each holds the pictures of one class and is named after it.

use std::path::{Path, PathBuf};

use crate::engine::concept::{self, Skipped};
use crate::engine::random::Philox;
use crate::engine::{Error, Result};

/// A stream of its own.
const SPLIT: u32 = u32::from_be_bytes(*b"held");

#[derive(Clone, Debug)]
pub struct DataSet {
    /// In order of their names.
    pub classes: Vec<String>,
    /// Class by class, each in order of its files' names.
    pub items: Vec<Item>,
    /// Files that could not be used.
    pub skipped: Vec<Skipped>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub path: PathBuf,
    /// Index of its class.
    pub class: usize,
}

/// Places in the data set's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub training: Vec<usize>,
    /// What accuracy is measured on.
    pub held_out: Vec<usize>,
}

impl DataSet {
    /// Every picture is decoded once. Files beside the folders are left alone.
    pub fn open(folder: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read the data set", folder, &e))?;
        let entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(|e| Error::io("read", folder, &e))?;
        let mut folders: Vec<PathBuf> =
            entries.iter().map(std::fs::DirEntry::path).filter(|path| path.is_dir()).collect();
        folders.retain(|path| !class_name(path).starts_with('.'));
        folders.sort();
        if folders.len() < 2 {
            return Err(Error::new(
                format!("A data set has a folder of pictures for each class, and there are {} here", folders.len()),
                "Make at least two folders, named after what their pictures show",
            )
            .at(folder));
        }
        let mut set = Self {
            classes: folders.iter().map(|path| class_name(path)).collect(),
            items: Vec::new(),
            skipped: Vec::new(),
        };
        for (class, path) in folders.iter().enumerate() {
            let found = concept::open(path)?;
            if found.images.len() < 2 {
                return Err(Error::new(
                    format!("The class “{}” has a single picture", set.classes[class]),
                    "Add another: one is learnt from, one is kept to measure on",
                )
                .at(path));
            }
            set.items.extend(found.images.into_iter().map(|picture| Item { path: picture.path, class }));
            set.skipped.extend(found.skipped);
        }
        Ok(set)
    }

    /// Keeps the same share of each class out of training, at least one picture and never all; which ones is drawn by `seed`.
    pub fn split(&self, share: f64, seed: u64) -> Split {
        let random = Philox::new(seed).stream(SPLIT);
        let mut split = Split { training: Vec::new(), held_out: Vec::new() };
        for class in 0..self.classes.len() {
            let places: Vec<usize> = (0..self.items.len()).filter(|&i| self.items[i].class == class).collect();
            let n = places.len();
            let kept = ((share * n as f64).round() as usize).clamp(1, n - 1);
            let order = random.permutation(class as u32, n);
            split.held_out.extend(order[..kept].iter().map(|&i| places[i]));
            split.training.extend(order[kept..].iter().map(|&i| places[i]));
        }
        split.held_out.sort_unstable();
        split.training.sort_unstable();
        split
    }
}

fn class_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sizes: &[usize]) -> DataSet {
        let items = sizes
            .iter()
            .enumerate()
            .flat_map(|(class, &n)| (0..n).map(move |i| Item { path: format!("{class}/{i}.png").into(), class }));
        DataSet { classes: sizes.iter().map(usize::to_string).collect(), items: items.collect(), skipped: Vec::new() }
    }

    #[test]
    fn a_split_is_even_drawn_by_the_seed_and_loses_nothing() {
        let set = set(&[2, 10, 50]);
        let split = set.split(0.2, 7);
        let count = |places: &[usize], class| places.iter().filter(|&&i| set.items[i].class == class).count();
        assert_eq!([0, 1, 2].map(|class| count(&split.held_out, class)), [1, 2, 10]);
        let mut all = [split.training.clone(), split.held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..62).collect::<Vec<_>>());
        assert_eq!(set.split(0.2, 7), split);
        assert_ne!(set.split(0.2, 8), split);
        assert_eq!([0, 1, 2].map(|class| count(&set.split(0.99, 7).training, class)), [1, 1, 1]);
    }

    #[test]
    fn what_is_no_data_set_is_a_sentence() {
        let scratch = tempfile::tempdir().unwrap();
        let picture = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(4, 4).save(path).unwrap();
        };
        let refused = || DataSet::open(scratch.path()).unwrap_err();
        picture("alone.png");
        picture("cats/a.png");
        assert!(refused().what.contains("there are 1 here"), "{}", refused());
        picture("dogs/a.png");
        picture("dogs/b.png");
        assert!(refused().what.contains("“cats” has a single picture"), "{}", refused());
        picture("cats/b.png");
        picture(".hidden/a.png");
        std::fs::write(scratch.path().join("cats/c.png"), "no picture").unwrap();
        let set = DataSet::open(scratch.path()).unwrap();
        assert_eq!(
            (set.classes.clone(), set.items.len(), set.skipped.len()),
            (vec!["cats".into(), "dogs".into()], 4, 1)
        );
        std::fs::create_dir(scratch.path().join("empty")).unwrap();
        assert!(refused().path.unwrap().ends_with("empty"));
    }
}
