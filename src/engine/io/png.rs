//! Pictures as PNG, with what made them (prompt, seed, adapters) in the file's text chunks.
//!
//! A picture is a function of its pixels and texts: no time and no program state is written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;

use image::RgbImage;

use crate::engine::io::atomic;
use crate::engine::{Error, Result};

/// The chunk in which A1111 and the programs after it look for the prompt and the settings.
pub const PARAMETERS: &str = "parameters";

/// Writes 8-bit RGB. The keys of `text` are chunk keywords: 1 to 79 Latin-1 characters.
pub fn write(path: &Path, picture: &RgbImage, text: &BTreeMap<String, String>) -> Result<()> {
    let bytes = encode(picture, text).map_err(|e| {
        let size = format!("{}×{}", picture.width(), picture.height());
        Error::new(format!("The {size} picture cannot be written as PNG ({e})"), "Choose another size or shorter names")
            .at(path)
    })?;
    atomic::write(path, |out| out.write_all(&bytes))
}

/// The pixels of a picture that [`write()`] wrote.
pub fn read(path: &Path) -> Result<RgbImage> {
    let picture = image::open(path).map_err(|e| {
        Error::new(format!("The picture cannot be read ({e})"), "Look whether the file is still there and whole")
            .at(path)
    })?;
    Ok(picture.into_rgb8())
}

/// Every text of a PNG, whoever wrote it. Of two chunks with one keyword the later counts.
pub fn read_text(path: &Path) -> Result<BTreeMap<String, String>> {
    let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
    decode(file).map_err(|e| {
        Error::new(format!("This is not a whole PNG picture ({e})"), "Save or copy it again, or choose another file")
            .at(path)
    })
}

fn encode(picture: &RgbImage, text: &BTreeMap<String, String>) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in text {
        // tEXt is Latin-1 by its specification, but some readers take it for UTF-8: only ASCII is safe in it.
        if text.is_ascii() {
            encoder.add_text_chunk(keyword.clone(), text.clone())?;
        } else {
            encoder.add_itxt_chunk(keyword.clone(), text.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn decode(file: File) -> Result<BTreeMap<String, String>, png::DecodingError> {
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info()?;
    // Some programs put the texts behind the pixels.
    reader.finish()?;
    let info = reader.info();
    let mut text = BTreeMap::new();
    for chunk in &info.uncompressed_latin1_text {
        text.insert(chunk.keyword.clone(), chunk.text.clone());
    }
    for chunk in &info.compressed_latin1_text {
        text.insert(chunk.keyword.clone(), chunk.get_text()?);
    }
    for chunk in &info.utf8_text {
        text.insert(chunk.keyword.clone(), chunk.get_text()?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 50, y as u8 * 100, 7]))
    }

    fn texts() -> BTreeMap<String, String> {
        let parameters = "ein grüner Käfer, <sks> 🤖\nNegative prompt: blur\nSteps: 20, Seed: 7";
        BTreeMap::from([(PARAMETERS.into(), parameters.into()), ("adapters".into(), "robot.safetensors:0.8".into())])
    }

    #[test]
    fn texts_and_pixels_come_back_and_the_bytes_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let [path, again] = ["a.png", "b.png"].map(|name| folder.path().join(name));
        write(&path, &picture(), &texts()).unwrap();
        write(&again, &picture(), &texts()).unwrap();
        assert_eq!(read_text(&path).unwrap(), texts());
        assert_eq!(read(&path).unwrap(), picture());
        assert!(read(&folder.path().join("gone.png")).unwrap_err().what.contains("cannot be read"));
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    }

    #[test]
    fn ascii_stays_in_the_chunk_that_every_program_reads() {
        let bytes = encode(&picture(), &texts()).unwrap();
        let has = |kind: &str, keyword: &str| {
            let wanted = [kind.as_bytes(), keyword.as_bytes(), b"\0"].concat();
            bytes.windows(wanted.len()).any(|window| window == wanted)
        };
        assert!(has("tEXt", "adapters") && has("iTXt", PARAMETERS));
    }

    #[test]
    fn a_broken_file_is_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let whole = encode(&picture(), &texts()).unwrap();
        for bytes in [&b""[..], b"not a picture", &whole[..40], &whole[..whole.len() - 20]] {
            std::fs::write(&path, bytes).unwrap();
            let error = read_text(&path).unwrap_err();
            assert!(error.what.contains("PNG") && error.path.is_some(), "{error}");
        }
        assert!(read_text(&folder.path().join("none.png")).unwrap_err().advice.contains("Check that the path exists"));
    }

    #[test]
    fn a_picture_without_pixels_or_an_endless_name_is_a_sentence_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let error = write(&path, &RgbImage::new(0, 3), &texts()).unwrap_err();
        assert!(error.what.contains("0×3"), "{error}");
        write(&path, &picture(), &BTreeMap::from([("x".repeat(80), String::new())])).unwrap_err();
        assert!(!path.exists());
    }
}
