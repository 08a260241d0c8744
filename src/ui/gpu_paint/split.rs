//! A picture, and another one over its left part.

use egui::{Color32, Rect, Shape};
use image::RgbImage;

use super::{Numbers, Painting, Thing};

pub(super) const THING: Thing =
    Thing { name: "split", shader: include_str!("../../../shaders/paint/split.wgsl"), lists: 2 };

/// A picture as shaders read it.
#[derive(Clone, Debug)]
pub struct Planes {
    /// Red, green and blue in 0…1, each row by row.
    pub numbers: Numbers,
    /// Width and height.
    pub size: [u32; 2],
    /// Whether it is smoothed where it is enlarged; otherwise its pixels stay square.
    pub soft: bool,
}

impl Planes {
    /// Of a picture on the host.
    pub fn of(image: &RgbImage, soft: bool) -> Self {
        let mut numbers = vec![0.0; image.len()];
        for (i, pixel) in image.pixels().enumerate() {
            for (c, &value) in pixel.0.iter().enumerate() {
                numbers[c * image.len() / 3 + i] = f32::from(value) / 255.0;
            }
        }
        Self { numbers: Numbers::Host(numbers.into()), size: image.dimensions().into(), soft }
    }
}

pub struct Split<'a> {
    pub picture: &'a Planes,
    /// Left of the divider.
    pub before: Option<(&'a Planes, Divider)>,
}

#[derive(Clone, Copy)]
pub struct Divider {
    /// Share of the width: 0 the left edge, 1 the right one.
    pub at: f32,
    /// In points.
    pub width: f32,
    pub color: Color32,
}

impl Split<'_> {
    pub fn shape(&self, rect: Rect, pixels_per_point: f32) -> Shape {
        self.painting(rect, pixels_per_point).shape(rect)
    }

    pub(super) fn painting(&self, rect: Rect, pixels_per_point: f32) -> Painting {
        let alone = Divider { at: 0.0, width: 0.0, color: Color32::TRANSPARENT };
        let (before, divider) = self.before.unwrap_or((self.picture, alone));
        let pictures = [before, self.picture];
        let sizes = pictures.iter().flat_map(|picture| picture.size.map(|side| side as f32));
        let soft = pictures.iter().map(|picture| f32::from(u8::from(picture.soft)));
        let x = (rect.left() + divider.at * rect.width()) * pixels_per_point;
        let line = divider.color.to_normalized_gamma_f32();
        let words = line.into_iter().chain(sizes).chain(soft).chain([x, divider.width * pixels_per_point]).collect();
        let numbers = pictures.map(|picture| picture.numbers.clone()).into();
        Painting::new(&THING, rect, pixels_per_point, words, numbers)
    }
}
