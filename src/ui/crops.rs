//! Pictures as training will see them, made once for each picture and each view.

use egui::{ColorImage, Context, TextureHandle, TextureOptions};

use crate::engine::Result;
use crate::engine::concept::mask::Mask;
use crate::engine::concept::{Picture, View};
use crate::ui::cards::Loading;

/// Crops kept.
const MOST: usize = 48;

/// A view of a picture, and what masks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub picture: Picture,
    pub view: View,
    pub mask: Mask,
    /// Pixels to a side of a latent pixel.
    pub factor: usize,
}

#[derive(Clone)]
pub struct Crop {
    pub seen: TextureHandle,
    /// In latent pixels; none where the whole picture counts.
    pub mask: Option<TextureHandle>,
}

#[derive(Default)]
pub struct Crops {
    /// The newest last.
    known: Vec<(Key, Loading<Crop>)>,
}

impl Crops {
    pub fn get(&self, key: &Key) -> Option<&Loading<Crop>> {
        self.known.iter().find(|(known, _)| known == key).map(|(_, crop)| crop)
    }

    pub fn put(&mut self, key: Key, crop: Loading<Crop>) {
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

/// The very pixels that training gets, and how much each latent pixel of them counts.
pub fn make(Key { picture, view, mask, factor }: &Key, ctx: &Context) -> Result<Crop> {
    let image = view.load(&picture.path)?;
    let plane = image.width * image.height;
    let byte = |at: usize| ((image.data[at] + 1.0) * 127.5).round() as u8;
    let rgb: Vec<u8> = (0..plane).flat_map(|at| [byte(at), byte(plane + at), byte(2 * plane + at)]).collect();
    let seen = ColorImage::from_rgb([image.width, image.height], &rgb);
    let texture = |name: &str, image: ColorImage| ctx.load_texture(name, image, TextureOptions::NEAREST);
    let mask = mask.of(picture, view, *factor)?.map(|mask| {
        let grey: Vec<u8> = mask.iter().map(|m| (m * 255.0).round() as u8).collect();
        texture("mask", ColorImage::from_gray(view.size.map(|side| side / factor), &grey))
    });
    Ok(Crop { seen: texture("crop", seen), mask })
}
