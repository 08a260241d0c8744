//! Pictures as training will see them, made once for each picture and each way to prepare it.

use std::path::PathBuf;

use egui::{ColorImage, Context, TextureHandle, TextureOptions};

use crate::engine::Result;
use crate::engine::concept::{self, latents::Preparation};
use crate::ui::cards::Loading;

/// Crops kept.
const MOST: usize = 48;

/// A picture, and how it is prepared.
pub type Key = (PathBuf, Preparation);

#[derive(Default)]
pub struct Crops {
    /// The newest last.
    known: Vec<(Key, Loading<TextureHandle>)>,
}

impl Crops {
    pub fn get(&self, (picture, how): (&PathBuf, &Preparation)) -> Option<&Loading<TextureHandle>> {
        self.known.iter().find(|((path, known), _)| known == how && path == picture).map(|(_, crop)| crop)
    }

    pub fn put(&mut self, key: Key, crop: Loading<TextureHandle>) {
        match self.known.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = crop,
            None => self.known.push((key, crop)),
        }
        if self.known.len() > MOST {
            self.known.remove(0);
        }
    }

    /// The pictures may have changed.
    pub fn clear(&mut self) {
        self.known.clear();
    }
}

/// The very pixels that training gets.
pub fn make((picture, how): &Key, ctx: &Context) -> Result<TextureHandle> {
    let image = concept::load(picture, how.size, how.background, how.fit)?;
    let plane = image.width * image.height;
    let byte = |at: usize| ((image.data[at] + 1.0) * 127.5).round() as u8;
    let rgb: Vec<u8> = (0..plane).flat_map(|at| [byte(at), byte(plane + at), byte(2 * plane + at)]).collect();
    let color = ColorImage::from_rgb([image.width, image.height], &rgb);
    Ok(ctx.load_texture("crop", color, TextureOptions::NEAREST))
}
