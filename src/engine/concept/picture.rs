//! One picture file → planar RGB in −1…1, at the size the model wants.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder as _, ImageError, ImageReader, ImageResult, Limits, Rgb, RgbImage};
use sha2::{Digest as _, Sha256};

use crate::engine::io::safetensors::hex;
use crate::engine::{Error, Result};

/// Bytes of the unpacked picture: 134 megapixels of RGBA, three times what cameras make. More is a mistake or a
/// decompression bomb.
const MAX_BYTES: u64 = 512 << 20;

/// Pixels per side of the result: twice the longest SDXL bucket, and a typing error costs 200 MB of result at most.
const MAX_SIDE: usize = 4096;

/// What happens when the picture and the wanted size have different shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The whole picture, with background beside it.
    Pad,
    /// The middle of the picture, filling the size.
    Crop,
}

/// Planar RGB, `[3, height, width]` row by row, each value in −1…1.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub width: usize,
    pub height: usize,
    pub data: Vec<f32>,
}

impl Image {
    /// Left and right exchanged.
    #[must_use]
    pub fn flipped(&self) -> Self {
        let data = self.data.chunks(self.width.max(1)).flat_map(|row| row.iter().rev().copied()).collect();
        Self { data, ..*self }
    }
}

/// Reads a picture upright, lays it on `background`, and resizes it (Lanczos3) to `size` = [width, height] pixels.
pub fn load(path: &Path, size: [usize; 2], background: [u8; 3], fit: Fit) -> Result<Image> {
    check_size(size)?;
    Ok(planar(&fitted(&flat(decode(path)?, background), size, background, fit)))
}

/// Reads a picture upright and whole, as RGB on white.
pub fn open(path: &Path) -> Result<RgbImage> {
    Ok(flat(decode(path)?, [255; 3]))
}

/// As grey on black: of a mask, what is transparent is not painted.
pub fn open_grey(path: &Path) -> Result<GrayImage> {
    Ok(image::imageops::grayscale(&flat(decode(path)?, [0; 3])))
}

/// The middle of a picture, filling `size` = [width, height] pixels.
pub fn cropped(picture: &RgbImage, size: [usize; 2]) -> RgbImage {
    fitted(picture, size, [255; 3], Fit::Crop)
}

pub(super) fn check_size(size: [usize; 2]) -> Result<()> {
    match size.iter().all(|side| (1..=MAX_SIDE).contains(side)) {
        true => Ok(()),
        false => Err(Error::usage(
            format!("A training size of {}×{} pixels is not possible", size[0], size[1]),
            format!("Choose a width and a height between 1 and {MAX_SIDE}"),
        )),
    }
}

/// A picture at another size.
pub(super) fn fitted(picture: &RgbImage, size: [usize; 2], background: [u8; 3], fit: Fit) -> RgbImage {
    let [width, height] = size.map(|side| side as u32);
    match fit {
        Fit::Pad => pad(picture, width, height, Rgb(background)),
        Fit::Crop => crop(picture, width, height),
    }
}

pub(super) fn planar(picture: &RgbImage) -> Image {
    let pixels = picture.as_raw();
    let data = (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3)).map(|&v| f32::from(v) / 127.5 - 1.0).collect();
    Image { width: picture.width() as usize, height: picture.height() as usize, data }
}

/// SHA-256 of the file's bytes in hexadecimal: the part of a latent cache key that changes when the picture does.
pub fn content_hash(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| Error::io("read the picture", path, &source))?;
    Ok(hex(&Sha256::digest(&bytes)))
}

/// The whole picture, upright, or the sentence that says why not.
pub(super) fn decode(path: &Path) -> Result<DynamicImage> {
    let bytes = fs::read(path).map_err(|source| Error::io("read the picture", path, &source))?;
    let again = "Open it in an image editor and save it again, or remove it";
    if bytes.is_empty() {
        return Err(Error::new("The file is empty", "Copy the picture here again, or remove it").at(path));
    }
    // The JPEG decoder fills what is missing with grey instead of failing (image 0.25.10, zune-jpeg 0.5).
    if bytes.starts_with(&[0xFF, 0xD8]) && !jpeg_is_whole(&bytes) {
        return Err(Error::new("The picture ends too early, as after a broken download", again).at(path));
    }
    let picture = pixels(&bytes).map_err(|source| {
        match source {
            ImageError::Limits(_) => Error::new(
                "The picture is too large to open: more than 512 MiB unpacked",
                "Save a copy with at most 8000 pixels on the long side",
            ),
            ImageError::Unsupported(_) => {
                Error::new("The file is not a picture that Triptych can read", "Save it as PNG, JPEG or WebP")
            }
            damaged => Error::new(format!("The picture is damaged: {damaged}"), again),
        }
        .at(path)
    })?;
    if picture.width() == 0 || picture.height() == 0 {
        return Err(Error::new("The picture has no pixels", again).at(path));
    }
    Ok(picture)
}

/// The content decides the format: pictures from the web often carry the wrong extension.
fn pixels(bytes: &[u8]) -> ImageResult<DynamicImage> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    // `ImageReader::decode` counts the output like this, but it cannot be asked for the orientation.
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // Damaged EXIF is no reason to lose the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Whether the JPEG reaches its end marker (ITU T.81 §B.1.1): segments are jumped over by their length, so that the
/// end marker of an embedded thumbnail does not count.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    // Stuffed bytes, fill bytes, TEM, restart markers and the start of the image stand alone.
    let marks = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0x01 | 0xFF | 0xD0..=0xD8);
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(marks) {
        match rest[at + 1..] {
            [0xD9, ..] => return true,
            [_, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(at + 2 + length..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
}

/// Alpha is laid on the background before any resizing: transparent pixels have colours nobody sees, and a filter
/// would mix them into the edge.
pub(super) fn flat(picture: DynamicImage, background: [u8; 3]) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (out, pixel) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [colour @ .., alpha] = pixel.0.map(u32::from);
        for c in 0..3 {
            out.0[c] = ((colour[c] * alpha + u32::from(background[c]) * (255 - alpha) + 127) / 255) as u8;
        }
    }
    rgb
}

fn pad(picture: &RgbImage, width: u32, height: u32, background: Rgb<u8>) -> RgbImage {
    let [w, h] = [picture.width(), picture.height()].map(f64::from);
    let scale = (f64::from(width) / w).min(f64::from(height) / h);
    // A very long strip still keeps one pixel.
    let inner_width = ((w * scale).round() as u32).clamp(1, width);
    let inner_height = ((h * scale).round() as u32).clamp(1, height);
    let inner = imageops::resize(picture, inner_width, inner_height, FilterType::Lanczos3);
    let mut out = RgbImage::from_pixel(width, height, background);
    let left = i64::from((width - inner_width) / 2);
    imageops::replace(&mut out, &inner, left, i64::from((height - inner_height) / 2));
    out
}

/// Cut first, then resized: the other order would blow a 1×10 000 strip up to gigabytes.
fn crop(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let [w, h] = [picture.width(), picture.height()];
    let across = (f64::from(h) * f64::from(width) / f64::from(height)).round() as u32;
    let down = (f64::from(w) * f64::from(height) / f64::from(width)).round() as u32;
    let [inner_width, inner_height] = [across.clamp(1, w), down.clamp(1, h)];
    let inner = imageops::crop_imm(picture, (w - inner_width) / 2, (h - inner_height) / 2, inner_width, inner_height);
    imageops::resize(&inner.to_image(), width, height, FilterType::Lanczos3)
}

#[cfg(test)]
mod tests {
    use super::*;

    use image::{GrayImage, ImageFormat, Luma, Rgba, RgbaImage};
    use std::path::PathBuf;
    use tempfile::TempDir;

    const RED: [u8; 3] = [255, 0, 0];
    const GREEN: [u8; 3] = [0, 255, 0];
    const BLUE: [u8; 3] = [0, 0, 255];

    fn folder_with(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn load_bytes(name: &str, bytes: &[u8], size: [usize; 2], fit: Fit) -> Result<Image> {
        let (_folder, path) = folder_with(name, bytes);
        load(&path, size, GREEN, fit)
    }

    /// Left half red, right half blue.
    fn two_halves(width: u32, height: u32) -> DynamicImage {
        RgbImage::from_fn(width, height, |x, _| Rgb(if x < width / 2 { RED } else { BLUE })).into()
    }

    fn colour(image: &Image, x: usize, y: usize) -> [u8; 3] {
        let plane = image.width * image.height;
        [0, 1, 2].map(|c| ((image.data[c * plane + y * image.width + x] + 1.0) * 127.5).round() as u8)
    }

    fn near(a: [u8; 3], b: [u8; 3], tolerance: u8) -> bool {
        a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= tolerance)
    }

    /// Puts an EXIF segment with the given orientation behind the start marker of a JPEG.
    fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut tiff = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        tiff.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        let length = (tiff.len() + 2) as u16;
        [&jpeg[..2], &[0xFF, 0xE1], &length.to_be_bytes(), &tiff, &jpeg[2..]].concat()
    }

    #[test]
    fn planes_are_red_green_blue_and_span_minus_one_to_one() {
        let image = load_bytes("a.png", &encoded(&two_halves(2, 1), ImageFormat::Png), [2, 1], Fit::Crop).unwrap();
        assert_eq!(image, Image { width: 2, height: 1, data: vec![1.0, -1.0, -1.0, -1.0, -1.0, 1.0] });
        assert_eq!(image.flipped().data, [-1.0, 1.0, -1.0, -1.0, 1.0, -1.0]);
        assert_eq!(image.flipped().flipped(), image);
    }

    #[test]
    fn pad_keeps_everything_and_crop_fills() {
        let png = encoded(&two_halves(80, 40), ImageFormat::Png);
        let padded = load_bytes("a.png", &png, [40, 40], Fit::Pad).unwrap();
        assert_eq!([colour(&padded, 0, 9), colour(&padded, 39, 30)], [GREEN, GREEN]);
        assert_eq!([colour(&padded, 2, 20), colour(&padded, 37, 20)], [RED, BLUE]);
        let cropped = load_bytes("a.png", &png, [40, 20], Fit::Crop).unwrap();
        assert_eq!([colour(&cropped, 0, 0), colour(&cropped, 39, 19)], [RED, BLUE]);
        let tall = RgbImage::from_fn(40, 80, |_, y| Rgb(if (20..60).contains(&y) { RED } else { BLUE }));
        let middle = load_bytes("a.png", &encoded(&tall.into(), ImageFormat::Png), [40, 40], Fit::Crop).unwrap();
        assert!((0..40).all(|y| colour(&middle, y, y) == RED));
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        let jpeg = encoded(&two_halves(64, 32), ImageFormat::Jpeg);
        // Orientation → the places where red and blue then stand in a picture of 32×64 or 64×32 pixels.
        for (orientation, size, red, blue) in [
            (1, [64, 32], [8, 16], [56, 16]),
            (2, [64, 32], [56, 16], [8, 16]),
            (3, [64, 32], [56, 16], [8, 16]),
            (6, [32, 64], [16, 8], [16, 56]),
            (8, [32, 64], [16, 56], [16, 8]),
        ] {
            let bytes = with_orientation(&jpeg, orientation);
            let image = load_bytes("a.jpg", &bytes, size, Fit::Crop).unwrap();
            assert!(near(colour(&image, red[0], red[1]), RED, 8), "orientation {orientation}");
            assert!(near(colour(&image, blue[0], blue[1]), BLUE, 8), "orientation {orientation}");
        }
    }

    #[test]
    fn hidden_colours_never_show() {
        // An opaque red disc on fully transparent blue, over a red background: everything must be exactly red.
        let disc = RgbaImage::from_fn(64, 64, |x, y| {
            let inside = x.abs_diff(32).pow(2) + y.abs_diff(32).pow(2) < 400;
            Rgba(if inside { [255, 0, 0, 255] } else { [0, 0, 255, 0] })
        });
        let (_folder, path) = folder_with("a.png", &encoded(&disc.into(), ImageFormat::Png));
        let image = load(&path, [23, 23], RED, Fit::Crop).unwrap();
        assert!((0..23 * 23).all(|i| colour(&image, i % 23, i / 23) == RED));
        let half = RgbaImage::from_pixel(3, 3, Rgba([255, 0, 0, 128]));
        let image = load_bytes("b.png", &encoded(&half.into(), ImageFormat::Png), [3, 3], Fit::Pad).unwrap();
        assert_eq!(colour(&image, 1, 1), [128, 127, 0]);
    }

    #[test]
    fn every_format_is_read_whatever_the_extension_and_depth() {
        let source = RgbImage::from_pixel(20, 20, Rgb([200, 100, 50]));
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
        ] {
            let image = load_bytes("a.png", &encoded(&source.clone().into(), format), [8, 8], Fit::Pad).unwrap();
            assert!(near(colour(&image, 4, 4), [200, 100, 50], 4), "{format:?}");
        }
        let deep: DynamicImage = DynamicImage::from(source).into_rgba16().into();
        let image = load_bytes("a.png", &encoded(&deep, ImageFormat::Png), [8, 8], Fit::Pad).unwrap();
        assert_eq!(colour(&image, 4, 4), [200, 100, 50]);
    }

    #[test]
    fn one_pixel_strips_and_forty_megapixels() {
        for (width, height) in [(1, 1), (1, 10_000), (10_000, 1)] {
            let png = encoded(&RgbImage::from_pixel(width, height, Rgb(RED)).into(), ImageFormat::Png);
            for fit in [Fit::Pad, Fit::Crop] {
                let image = load_bytes("a.png", &png, [64, 48], fit).unwrap();
                assert_eq!(image.data.len(), 3 * 64 * 48);
                assert_eq!(colour(&image, 31, 23), RED, "{width}×{height} {fit:?}");
            }
        }
        let large = encoded(&GrayImage::from_pixel(8000, 5000, Luma([255])).into(), ImageFormat::Png);
        assert_eq!(colour(&load_bytes("a.png", &large, [64, 64], Fit::Crop).unwrap(), 32, 32), [255; 3]);
    }

    /// The checksum of a PNG chunk (CRC-32, reflected).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
        })
    }

    #[test]
    fn bad_files_give_sentences() {
        let noise = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8]));
        let files = |format| encoded(&noise.clone().into(), format);
        let mut cases = vec![("empty.png", vec![], "empty"), ("note.png", b"just text\n".to_vec(), "not a picture")];
        for (name, format, word) in [
            ("cut.png", ImageFormat::Png, "damaged"),
            ("cut.jpg", ImageFormat::Jpeg, "ends too early"),
            ("cut.webp", ImageFormat::WebP, "damaged"),
            ("cut.gif", ImageFormat::Gif, "damaged"),
            ("cut.bmp", ImageFormat::Bmp, "damaged"),
            ("cut.tiff", ImageFormat::Tiff, "damaged"),
        ] {
            let bytes = files(format);
            cases.push((name, bytes[..bytes.len() / 2].to_vec(), word));
        }
        let mut huge = files(ImageFormat::Png);
        huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let crc = crc32(&huge[12..29]);
        huge[29..33].copy_from_slice(&crc.to_be_bytes());
        cases.push(("huge.png", huge, "too large"));
        for (name, bytes, word) in cases {
            let error = load_bytes(name, &bytes, [8, 8], Fit::Pad).unwrap_err();
            assert!(error.what.contains(word) && !error.advice.is_empty(), "{name}: {error}");
            assert_eq!(error.path.unwrap().file_name().unwrap(), name);
        }
        let missing = load(Path::new("/no/such.png"), [8, 8], RED, Fit::Pad).unwrap_err();
        assert!(missing.to_string().contains("/no/such.png"), "{missing}");
    }

    /// Cuts every format everywhere and turns bytes over: sentences or pictures, never a panic.
    #[test]
    fn damage_never_panics() {
        let noise: DynamicImage = RgbImage::from_fn(9, 7, |x, y| Rgb([(x * 37) as u8, (y * 91) as u8, 7])).into();
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
        ] {
            let whole = encoded(&noise, format);
            for at in 0..whole.len() {
                let _ = pixels(&whole[..at]);
                jpeg_is_whole(&whole[..at]);
                let mut flipped = whole.clone();
                flipped[at] ^= 0xFF;
                let _ = pixels(&flipped);
                jpeg_is_whole(&flipped);
            }
        }
    }

    #[test]
    fn a_thumbnail_does_not_hide_a_cut_and_a_trailer_does_not_matter() {
        let jpeg = encoded(&two_halves(64, 64), ImageFormat::Jpeg);
        let length = (jpeg.len() + 2) as u16;
        let nested = [&jpeg[..2], &[0xFF, 0xE1], &length.to_be_bytes(), &jpeg, &jpeg[2..]].concat();
        assert!(jpeg_is_whole(&nested));
        assert!(!jpeg_is_whole(&nested[..nested.len() - 2]));
        assert!(jpeg_is_whole(&[jpeg.as_slice(), b"\xFF\xDAtrailer"].concat()));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let png = encoded(&two_halves(2, 2), ImageFormat::Png);
        for size in [[0, 8], [8, 0], [usize::MAX, 8]] {
            assert!(load_bytes("a.png", &png, size, Fit::Pad).unwrap_err().what.contains("not possible"));
        }
    }

    #[test]
    fn the_hash_is_the_files_sha256() {
        let (_folder, path) = folder_with("a.png", b"abc");
        // FIPS 180-4, example "abc".
        assert_eq!(content_hash(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(content_hash(&path.with_extension("gone")).is_err());
    }
}
