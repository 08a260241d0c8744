//! An artist's folder → the pictures that can be trained on, and a reason for every one that cannot.
//!
//! Captions lie beside the pictures as `<stem>.txt` or `<stem>.caption`. Folders named `N_class word` (kohya's
//! layout: N repeats) are understood, at the top and one level below, and never required.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use walkdir::WalkDir;

use super::{Concept, beside, caption, mask, picture};
use crate::engine::{Error, Result};

/// The last row is refused by the decoder with a sentence; passing over it in silence would look like lost pictures.
#[rustfmt::skip]
const EXTENSIONS: [&str; 13] = [
    "png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff",
    "heic", "heif", "avif", "jxl",
];

/// Above this the number in front is a year or a serial number, not a repeat count.
const MAX_REPEATS: usize = 1000;

/// A picture that decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub path: PathBuf,
    /// As filed, trimmed; see [`super::caption()`] for the text that is trained on.
    pub caption: Option<String>,
    /// Times the picture is shown per epoch, at least 1.
    pub repeats: usize,
    /// `[width, height]` in pixels, upright.
    pub size: [usize; 2],
    /// The mask beside it; see [`super::mask::Mask`].
    pub mask: Option<PathBuf>,
}

/// A file that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub path: PathBuf,
    /// What is wrong and what to do, in whole sentences.
    pub why: String,
}

/// A picture before anybody looked inside.
struct Candidate {
    path: PathBuf,
    repeats: usize,
}

/// Reads a concept folder; every picture is decoded once, so that training does not meet a broken one.
pub fn open(folder: &Path) -> Result<Concept> {
    let about = fs::metadata(folder).map_err(|source| match source.kind() {
        ErrorKind::NotFound => {
            Error::new("There is no such concept folder", "Check that the path exists and is spelled as on disk")
                .at(folder)
        }
        _ => Error::io("open the concept folder", folder, &source),
    })?;
    if !about.is_dir() {
        let advice = "Give the folder that holds the pictures, not one file";
        return Err(Error::new("A concept is a folder of pictures, but this is a file", advice).at(folder));
    }
    let name = folder_name(folder);
    let own = layout(&name);
    let (candidates, class_words, mut skipped) = gather(folder, own.as_ref())?;
    let checked: Vec<_> = candidates.into_par_iter().map(|c| (c.path.clone(), check(c))).collect();
    let mut images = Vec::new();
    for (path, result) in checked {
        match result {
            Ok((picture, broken)) => {
                images.push(picture);
                skipped.extend(broken);
            }
            Err(error) => skipped.push(skip(&path, error)),
        }
    }
    if images.is_empty() {
        return Err(nothing_usable(&skipped).at(folder));
    }
    let class_word = match class_words.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    };
    let name = own.and_then(|own| own.class_word).unwrap_or(name);
    Ok(Concept { name, images, skipped, class_word })
}

/// `10_sks robot` → 10 repeats of class `robot`.
struct Layout {
    repeats: usize,
    class_word: Option<String>,
}

fn layout(name: &str) -> Option<Layout> {
    let (digits, rest) = name.split_once('_')?;
    // `parse` alone would also take "+3".
    let repeats = digits.parse().ok().filter(|n| (1..=MAX_REPEATS).contains(n) && !digits.starts_with('+'))?;
    let words: Vec<_> = rest.split(['_', ' ']).filter(|w| !w.is_empty() && !caption::stands_for_trigger(w)).collect();
    Some(Layout { repeats, class_word: Some(words.join(" ")).filter(|class| !class.is_empty()) })
}

/// The candidates in order of their names, the distinct class words of their folders, and what is not one.
fn gather(folder: &Path, own: Option<&Layout>) -> Result<(Vec<Candidate>, Vec<String>, Vec<Skipped>)> {
    let mut candidates = Vec::new();
    let mut class_words: Vec<String> = Vec::new();
    let mut skipped = Vec::new();
    let mut labels = Vec::new();
    let walk = WalkDir::new(folder).min_depth(1).max_depth(2).follow_links(true).sort_by_file_name().into_iter();
    let wanted = walk.filter_entry(|entry| {
        let name = entry.file_name().to_string_lossy();
        !name.starts_with('.') && (entry.depth() > 1 || !entry.file_type().is_dir() || layout(&name).is_some())
    });
    for entry in wanted {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.depth() == 0 => return Err(unreadable(&error, folder)),
            Err(error) => {
                let path = error.path().unwrap_or(folder);
                skipped.push(skip(path, unreadable(&error, path)));
                continue;
            }
        };
        let path = entry.path();
        if !entry.file_type().is_file() || !is_picture(path) {
            continue;
        }
        if is_condition(path) {
            skipped.push(skip(path, Error::new("This is a OneTrainer condition, and conditions are not used", "")));
            continue;
        }
        if mask::is_label(path) {
            labels.push(path.to_path_buf());
            continue;
        }
        let inner = path.parent().filter(|_| entry.depth() == 2).and_then(|parent| layout(&folder_name(parent)));
        let layout = inner.as_ref().or(own);
        candidates.push(Candidate { path: path.to_path_buf(), repeats: layout.map_or(1, |layout| layout.repeats) });
        if let Some(class) = layout.and_then(|layout| layout.class_word.as_ref())
            && !class_words.contains(class)
        {
            class_words.push(class.clone());
        }
    }
    let masks: BTreeSet<PathBuf> = candidates.iter().flat_map(|candidate| mask::beside(&candidate.path)).collect();
    // A picture may be called `carnival.mask.png`: without a `carnival` it is no mask.
    candidates.retain(|candidate| !masks.contains(&candidate.path));
    for label in labels.into_iter().filter(|label| !masks.contains(label)) {
        let why =
            Error::new("This is a mask without its picture", "Name both alike: robot.png and robot-masklabel.png");
        skipped.push(skip(&label, why));
    }
    Ok((candidates, class_words, skipped))
}

/// The picture, and its mask where that is broken: the picture can be trained on without.
fn check(candidate: Candidate) -> Result<(Picture, Option<Skipped>)> {
    let Candidate { path, repeats } = candidate;
    let decoded = picture::decode(&path)?;
    let size = [decoded.width(), decoded.height()].map(|side| side as usize);
    let mask = mask::beside(&path).into_iter().find(|mask| mask.is_file());
    let (mask, broken) = match mask.map(|mask| picture::decode(&mask).map(|_| mask)) {
        Some(Ok(mask)) => (Some(mask), None),
        Some(Err(error)) => (None, Some(skip(&path, error))),
        None => (None, None),
    };
    Ok((Picture { caption: beside::read(&path)?, path, repeats, size, mask }, broken))
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found.eq_ignore_ascii_case(known)))
}

/// `OneTrainer` keeps conditions beside the pictures; trained on as pictures they would spoil the concept.
fn is_condition(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("-condlabel"))
}

fn folder_name(folder: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    // `.` and `..` have a name only once resolved, the root has none.
    name(folder).or_else(|| name(&folder.canonicalize().ok()?)).unwrap_or_else(|| "concept".to_owned())
}

fn unreadable(error: &walkdir::Error, path: &Path) -> Error {
    match error.io_error() {
        Some(source) => Error::io("read this", path, source),
        None => Error::new("The link leads back to a folder above it", "Remove the link").at(path),
    }
}

/// The error's own path wins: it may name the caption rather than the picture.
fn skip(path: &Path, error: Error) -> Skipped {
    let path = error.path.clone().unwrap_or_else(|| path.to_path_buf());
    Skipped { path, why: Error { path: None, ..error }.to_string() }
}

fn nothing_usable(skipped: &[Skipped]) -> Error {
    let advice = "Put 5 to 20 pictures of the concept there (PNG, JPEG or WebP), each with its caption in a text file of \
                  the same name if you have one; sub-folders are read when they are named like “10_robot” (repeats, \
                  class word)";
    match skipped {
        [] => Error::new("There are no pictures in this folder", advice),
        [first, ..] => {
            let name = first.path.file_name().unwrap_or_default().to_string_lossy();
            Error::new(format!("None of the pictures in this folder can be used; {name}: {}", first.why), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use image::{Rgb, RgbImage};
    use tempfile::TempDir;

    fn folder() -> TempDir {
        TempDir::new().unwrap()
    }

    fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn png(folder: &Path, name: &str) -> PathBuf {
        let path = put(folder, name, b"");
        RgbImage::from_pixel(1, 1, Rgb([9, 9, 9])).save_with_format(&path, image::ImageFormat::Png).unwrap();
        path
    }

    fn names(concept: &Concept) -> Vec<String> {
        concept.images.iter().map(|p| p.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn pictures_are_sorted_and_everything_else_is_passed_over() {
        let dir = folder();
        for name in ["b.PNG", "a.jpeg", "c.WebP", ".hidden.png", "._a.png", "sub/d.png"] {
            png(dir.path(), name);
        }
        put(dir.path(), "notes.md", b"");
        put(dir.path(), "noextension", b"");
        let concept = open(dir.path()).unwrap();
        assert_eq!(names(&concept), ["a.jpeg", "b.PNG", "c.WebP"]);
        assert_eq!((concept.skipped.len(), concept.class_word), (0, None));
        assert!(concept.images.iter().all(|p| p.repeats == 1 && p.caption.is_none()));
        assert_eq!(concept.name, dir.path().file_name().unwrap().to_string_lossy());
    }

    #[test]
    fn captions_lie_beside_the_pictures() {
        let dir = folder();
        for name in ["a.png", "b.png", "c.png", "d.png", "e.v2.png"] {
            png(dir.path(), name);
        }
        put(dir.path(), "a.txt", b"\xEF\xBB\xBF  a [trigger] robot\r\n");
        put(dir.path(), "b.caption", "ein Männchen".as_bytes());
        put(dir.path(), "c.txt", b"\xEF\xBB\xBF \n");
        put(dir.path(), "d.txt", b" ");
        put(dir.path(), "d.caption", b"second");
        put(dir.path(), "e.v2.txt", b"dotted");
        let captions: Vec<_> = open(dir.path()).unwrap().images.into_iter().map(|p| p.caption).collect();
        let expected = [Some("a [trigger] robot"), Some("ein Männchen"), None, Some("second"), Some("dotted")];
        assert_eq!(captions, expected.map(|c| c.map(str::to_owned)));
    }

    #[test]
    fn kohya_folders_give_repeats_and_class_word() {
        let dir = folder();
        png(dir.path(), "10_sks robot/a.png");
        png(dir.path(), "2_robot/b.png");
        png(dir.path(), "2_robot/deeper/c.png");
        png(dir.path(), "3_empty head/readme");
        png(dir.path(), "0_off/d.png");
        png(dir.path(), "2024_party/e.png");
        let concept = open(dir.path()).unwrap();
        assert_eq!(names(&concept), ["a.png", "b.png"]);
        assert_eq!(concept.images.iter().map(|p| p.repeats).collect::<Vec<_>>(), [10, 2]);
        assert_eq!(concept.class_word.as_deref(), Some("robot"));
        png(dir.path(), "1_cat/f.png");
        png(dir.path(), "z.png");
        let mixed = open(dir.path()).unwrap();
        assert_eq!(mixed.images.iter().map(|p| p.repeats).collect::<Vec<_>>(), [10, 1, 2, 1]);
        assert_eq!(mixed.class_word, None);
        let one = open(&dir.path().join("10_sks robot")).unwrap();
        assert_eq!((one.name.as_str(), one.class_word.as_deref(), one.images[0].repeats), ("robot", Some("robot"), 10));
    }

    #[test]
    fn layout_reads_only_its_own_pattern() {
        for (name, expected) in [
            ("10_robot", Some((10, Some("robot")))),
            ("5_<x> cat_face", Some((5, Some("cat face")))),
            ("7_", Some((7, None))),
            ("7_[trigger]", Some((7, None))),
            ("robot", None),
            ("3d_robot", None),
            ("+3_robot", None),
            ("-3_robot", None),
            ("0_robot", None),
            ("2024_robot", None),
            ("99999999999999999999999_robot", None),
        ] {
            let found = layout(name).map(|l| (l.repeats, l.class_word));
            assert_eq!(found, expected.map(|(n, class): (_, Option<&str>)| (n, class.map(str::to_owned))), "{name}");
        }
    }

    #[test]
    fn bad_files_are_listed_and_do_not_stop_the_rest() {
        let dir = folder();
        let good = fs::read(png(dir.path(), "good.png")).unwrap();
        png(dir.path(), "wordless.png");
        png(dir.path(), "lost-masklabel.png");
        png(dir.path(), "good-condlabel.png");
        put(dir.path(), "cut.png", &good[..good.len() / 2]);
        put(dir.path(), "text.png", b"hello");
        put(dir.path(), "zero.jpg", b"");
        put(dir.path(), "phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic");
        put(dir.path(), "wordless.txt", b"caf\xE9");
        let concept = open(dir.path()).unwrap();
        assert_eq!(names(&concept), ["good.png"]);
        for (name, word) in [
            ("lost-masklabel.png", "mask without its picture"),
            ("good-condlabel.png", "condition"),
            ("cut.png", "damaged"),
            ("text.png", "not a picture"),
            ("zero.jpg", "empty"),
            ("phone.heic", "Save it as PNG"),
            ("wordless.txt", "UTF-8"),
        ] {
            let skipped = concept.skipped.iter().find(|s| s.path.ends_with(name)).unwrap();
            assert!(skipped.why.contains(word) && skipped.why.ends_with('.'), "{skipped:?}");
        }
        assert_eq!(concept.skipped.len(), 7);
    }

    #[test]
    fn masks_belong_to_their_pictures() {
        let dir = folder();
        for name in ["a.png", "a-masklabel.png", "b.jpg", "b.mask.png", "carnival.mask.png", "c.png"] {
            png(dir.path(), name);
        }
        put(dir.path(), "c.mask.png", b"torn");
        let concept = open(dir.path()).unwrap();
        assert_eq!(names(&concept), ["a.png", "b.jpg", "c.png", "carnival.mask.png"]);
        let masks: Vec<_> =
            concept.images.iter().map(|p| p.mask.as_ref().map(|mask| mask.file_name().unwrap())).collect();
        assert_eq!(masks, [Some("a-masklabel.png".as_ref()), Some("b.mask.png".as_ref()), None, None]);
        let skipped: Vec<_> = concept.skipped.iter().map(|s| s.path.file_name().unwrap()).collect();
        assert_eq!(skipped, ["c.mask.png"], "the picture stays");
        assert!(concept.images.iter().all(|p| p.size == [1, 1]));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_broken_ones_listed() {
        let dir = folder();
        let elsewhere = folder();
        let target = png(elsewhere.path(), "t.png");
        std::os::unix::fs::symlink(target, dir.path().join("link.png")).unwrap();
        std::os::unix::fs::symlink("/no/such/file.png", dir.path().join("gone.png")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("1_loop")).unwrap();
        let concept = open(dir.path()).unwrap();
        assert_eq!(names(&concept), ["link.png"]);
        let why: Vec<_> = concept.skipped.iter().map(|s| (s.path.file_name().unwrap(), s.why.as_str())).collect();
        assert!(why[0].0 == "1_loop" && why[0].1.contains("leads back"), "{why:?}");
        assert!(why[1].0 == "gone.png" && why[1].1.contains("path exists"), "{why:?}");
        assert_eq!(why.len(), 2);
    }

    #[test]
    fn unusable_folders_say_what_to_put_there() {
        let dir = folder();
        let empty = open(dir.path()).unwrap_err();
        assert!(empty.what.contains("no pictures") && empty.advice.contains("5 to 20"), "{empty}");
        let file = put(dir.path(), "broken.png", b"hello");
        let broken = open(dir.path()).unwrap_err();
        assert!(broken.what.contains("broken.png: The file is not a picture"), "{broken}");
        assert!(open(&file).unwrap_err().what.contains("this is a file"));
        let missing = dir.path().join("missing");
        let error = open(&missing).unwrap_err();
        assert_eq!(error.path, Some(missing));
        assert!(error.what.contains("no such concept folder"), "{error}");
    }
}
