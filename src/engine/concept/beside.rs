//! The caption beside a picture: `<stem>.txt` or `<stem>.caption`.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::engine::io::atomic;
use crate::engine::{Error, Result};

/// The first that says something counts.
const ENDINGS: [&str; 2] = ["txt", "caption"];

const UTF8_BOM: &[u8] = b"\xEF\xBB\xBF";

/// The caption of a picture as filed, trimmed; none where there is no file or it is blank.
pub fn read(picture: &Path) -> Result<Option<String>> {
    for ending in ENDINGS {
        if let Some(text) = text(&picture.with_extension(ending))?.filter(|text| !text.is_empty()) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// Writes the caption where `read` finds it, and says where that was. A blank one leaves a blank file.
pub fn write(picture: &Path, caption: &str) -> Result<PathBuf> {
    let mut path = picture.with_extension(ENDINGS[0]);
    for ending in ENDINGS {
        let other = picture.with_extension(ending);
        if text(&other)?.is_some_and(|text| !text.is_empty()) {
            path = other;
            break;
        }
        // A blank file is taken over, so that no second one appears beside it.
        if other.is_file() && !path.is_file() {
            path = other;
        }
    }
    atomic::write(&path, |out| match caption.trim() {
        "" => Ok(()),
        caption => writeln!(out, "{caption}"),
    })?;
    Ok(path)
}

fn text(path: &Path) -> Result<Option<String>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io("read the caption", path, &source)),
    };
    let text = str::from_utf8(bytes.strip_prefix(UTF8_BOM).unwrap_or(&bytes)).map_err(|source| {
        let advice = "Save it again with the encoding UTF-8; until then its picture is left out";
        Error::new(format!("The caption is not UTF-8 text ({source})"), advice).at(path)
    })?;
    Ok(Some(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_is_read_where_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("a.v2.png");
        assert_eq!(write(&picture, " a robot\n").unwrap(), folder.path().join("a.v2.txt"));
        assert_eq!(read(&picture).unwrap().as_deref(), Some("a robot"));
        write(&picture, "").unwrap();
        assert_eq!(read(&picture).unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_ending_that_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("a.png");
        let caption = folder.path().join("a.caption");
        for before in ["", "old"] {
            fs::write(&caption, before).unwrap();
            assert_eq!(write(&picture, "new").unwrap(), caption);
        }
        fs::write(folder.path().join("a.txt"), " ").unwrap();
        assert_eq!(write(&picture, "newer").unwrap(), caption, "the blank one does not count");
        assert_eq!(read(&picture).unwrap().as_deref(), Some("newer"));
    }
}
