//! The concepts that come with the program.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};

use crate::engine::io::atomic;
use crate::engine::{Error, Result};

static CONCEPTS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/assets/concepts");

/// A shipped concept and the word for what it is an example of.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    pub folder: &'static str,
    pub title: &'static str,
    pub class_word: &'static str,
}

pub const SHIPPED: &[Shipped] = &[
    Shipped { folder: "kenney_robot", title: "blue robot", class_word: "robot" },
    Shipped { folder: "dicebear_adventurer", title: "red-haired head", class_word: "person" },
    Shipped { folder: "dicebear_big-smile", title: "clown", class_word: "person" },
    Shipped { folder: "dicebear_pixel-art", title: "pixel-art head", class_word: "person" },
    Shipped { folder: "kenney_female_adventurer", title: "adventurer", class_word: "woman" },
    Shipped { folder: "kenney_male_person", title: "man in an orange jacket", class_word: "man" },
];

/// Each fifth picture, three at most, is kept out of training to judge the result by.
fn is_held_out(index: usize) -> bool {
    index % 5 == 1 && index < 15
}

/// Writes a concept's pictures and captions under `folder`: those to train on into `train`, the others into `held-out`.
pub fn unpack(shipped: &Shipped, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let dir = CONCEPTS.get_dir(shipped.folder).ok_or_else(|| {
        Error::new(format!("The concept {} is not part of this program", shipped.folder), "Install the program again")
    })?;
    let mut pictures: Vec<&Path> =
        dir.files().map(include_dir::File::path).filter(|path| path.extension().is_some_and(|e| e == "png")).collect();
    pictures.sort_unstable();
    let (train, held_out) = (folder.join("train"), folder.join("held-out"));
    for (i, picture) in pictures.into_iter().enumerate() {
        let to = if is_held_out(i) { &held_out } else { &train };
        for file in [picture.to_path_buf(), picture.with_extension("txt")] {
            if let (Some(content), Some(name)) = (CONCEPTS.get_file(&file), file.file_name()) {
                atomic::write(&to.join(name), |out| out.write_all(content.contents()))?;
            }
        }
    }
    Ok((train, held_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_concept_opens_and_keeps_three_back() {
        for shipped in SHIPPED {
            let folder = tempfile::tempdir().unwrap();
            let (train, held_out) = unpack(shipped, folder.path()).unwrap();
            let (train, held_out) = (super::super::open(&train).unwrap(), super::super::open(&held_out).unwrap());
            assert_eq!(held_out.images.len(), 3, "{}", shipped.folder);
            assert!(train.images.len() >= 10 && train.skipped.is_empty(), "{}", shipped.folder);
            assert!(train.images.iter().all(|picture| picture.caption.is_some()), "{}", shipped.folder);
        }
    }
}
