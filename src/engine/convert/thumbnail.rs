//! A small picture inside an adapter's metadata, which managers of models show (`modelspec.thumbnail`).

use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;

use crate::engine::{Error, Result};

/// Its longer side at most, in pixels.
const SIDE: u32 = 256;

/// The picture as a data URL.
pub fn data_url(path: &Path) -> Result<String> {
    let unreadable = |e: image::ImageError| {
        Error::new(format!("The picture cannot be read: {e}"), "Name a PNG, JPEG or WebP file").at(path)
    };
    let picture = image::open(path).map_err(unreadable)?.thumbnail(SIDE, SIDE).into_rgb8();
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Jpeg).map_err(unreadable)?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes.into_inner())))
}
