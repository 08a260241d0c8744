//! What training sees of a picture: one view, and all the views it is shown in.

use std::collections::BTreeMap;
use std::path::Path;

use image::{Rgb, RgbImage};

use super::augment::{Changes, Variation};
use super::buckets::Buckets;
use super::frame::Frame;
use super::mask::Mask;
use super::{Fit, Image, Picture, picture};
use crate::engine::Result;
use crate::engine::model::Framing;

/// One picture in one frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// `[width, height]` in pixels.
    pub size: [usize; 2],
    /// What shows through transparency and beside padded pictures.
    pub background: [u8; 3],
    pub fit: Fit,
    /// Left and right exchanged.
    pub mirror: bool,
    /// 0 is the picture as it is, the others are versions of it.
    pub number: usize,
    /// How far those may be from it; nothing for number 0.
    pub changes: Changes,
}

/// How training shows the pictures of a concept.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    /// Sides in pixels of the squares that the frames have the area of; each picture is shown in all.
    pub resolutions: Vec<usize>,
    /// Sides of buckets are multiples of it.
    pub step: usize,
    pub shape: Shape,
    pub background: [u8; 3],
    /// Adds each view's mirror image.
    pub flip: bool,
    /// Versions of each picture, itself among them.
    pub variations: usize,
    pub changes: Changes,
    pub mask: Mask,
    /// How much of the loss counts where the mask is black.
    pub unmasked_weight: f32,
    /// Whether every mask weighs the same, however little it shows.
    pub mask_normalise: bool,
}

/// The frames of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A square for all.
    Square(Fit),
    /// One of about the picture's own shape, filled by its middle.
    Bucket { upscale: bool },
}

impl View {
    /// The whole picture on white.
    pub fn whole(size: [usize; 2]) -> Self {
        Self { size, background: [255; 3], fit: Fit::Pad, mirror: false, number: 0, changes: Changes::default() }
    }

    /// Sizes and cut of a picture of `[width, height]` in this view; what a version of it turns and shifts is not told.
    pub fn framing(&self, [width, height]: [usize; 2]) -> Framing {
        let (picture, [w, h]) = ([height, width], self.size);
        match self.fit {
            Fit::Crop => Framing::filling(picture, [h, w]),
            Fit::Pad => Framing { original: picture, ..Framing::whole([h, w]) },
        }
    }

    /// What was drawn for this version of the picture in a file.
    pub(super) fn variation(&self, path: &Path) -> Result<Option<Variation>> {
        match self.number {
            0 => Ok(None),
            number => Ok(Some(self.changes.draw(&picture::content_hash(path)?, number))),
        }
    }

    /// The framed pixels of an upright picture, not mirrored.
    pub(super) fn frame(&self, picture: &RgbImage, variation: Option<&Variation>) -> RgbImage {
        let Some(variation) = variation else {
            return picture::fitted(picture, self.size, self.background, self.fit);
        };
        let size = self.size.map(|side| side as u32);
        // A crop never leaves its picture: only rounding asks for pixels beyond.
        let outside = (self.fit == Fit::Pad).then_some(Rgb(self.background));
        Frame::of([picture.width(), picture.height()], size, self.fit, variation).show(picture, size, outside)
    }

    /// The very pixels that training gets.
    pub fn load(&self, path: &Path) -> Result<Image> {
        picture::check_size(self.size)?;
        let image = match self.variation(path)? {
            None => picture::load(path, self.size, self.background, self.fit)?,
            Some(variation) => {
                let mut colours = picture::decode(path)?.into_rgba8();
                variation.tint(&mut colours);
                picture::planar(&self.frame(&picture::flat(colours.into(), self.background), Some(&variation)))
            }
        };
        Ok(if self.mirror { image.flipped() } else { image })
    }
}

impl Views {
    /// `[width, height]` of the largest frames.
    pub fn largest(&self) -> [usize; 2] {
        [self.resolutions.iter().copied().max().unwrap_or(0); 2]
    }

    /// The frame of a picture of so many pixels, itself, unmirrored.
    fn plain(&self, resolution: usize, picture: [usize; 2]) -> View {
        let (size, fit) = match self.shape {
            Shape::Square(fit) => ([resolution; 2], fit),
            Shape::Bucket { upscale } => (Buckets { resolution, step: self.step, upscale }.of(picture), Fit::Crop),
        };
        View { background: self.background, fit, ..View::whole(size) }
    }

    /// Every view of a picture of so many pixels: for each resolution itself and its versions, then their mirror images.
    pub fn of(&self, picture: [usize; 2]) -> Vec<View> {
        let mirrors: &[bool] = if self.flip { &[false, true] } else { &[false] };
        let mut views = Vec::new();
        for &resolution in &self.resolutions {
            let plain = self.plain(resolution, picture);
            for &mirror in mirrors {
                views.push(View { mirror, ..plain });
                views.extend((1..self.variations).map(|number| View {
                    mirror,
                    number,
                    changes: self.changes,
                    ..plain
                }));
            }
        }
        views
    }

    /// How many of the pictures fall into each size of frame.
    pub fn sizes(&self, pictures: &[Picture]) -> BTreeMap<[usize; 2], usize> {
        let mut sizes = BTreeMap::new();
        for (picture, &resolution) in pictures.iter().flat_map(|p| self.resolutions.iter().map(move |r| (p, r))) {
            *sizes.entry(self.plain(resolution, picture.size).size).or_insert(0) += 1;
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn views() -> Views {
        Views {
            resolutions: vec![64],
            step: 16,
            shape: Shape::Square(Fit::Pad),
            background: [255; 3],
            flip: true,
            variations: 1,
            changes: Changes { jitter: 0.2, rotate: 5.0, brightness: 0.2, ..Changes::default() },
            mask: Mask::None,
            unmasked_weight: 0.1,
            mask_normalise: true,
        }
    }

    #[test]
    fn pictures_are_shown_in_every_way() {
        let usual = views().of([80, 40]);
        assert_eq!(usual, [View::whole([64; 2]), View { mirror: true, ..View::whole([64; 2]) }]);
        let bucket = Shape::Bucket { upscale: true };
        let all = Views { resolutions: vec![64, 96], shape: bucket, variations: 3, ..views() }.of([80, 40]);
        assert_eq!(all.len(), 2 * 2 * 3);
        let kinds: BTreeSet<_> = all.iter().map(|view| (view.size, view.mirror, view.number)).collect();
        assert_eq!(kinds.len(), all.len());
        assert!(kinds.contains(&([80, 48], true, 2)) && kinds.contains(&([128, 64], false, 0)), "{kinds:?}");
        assert!(
            all.iter().all(|view| view.fit == Fit::Crop && (view.number > 0 || view.changes == Changes::default()))
        );
    }

    #[test]
    fn a_version_is_the_same_each_time_and_unlike_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::from_fn(80, 40, |x, y| Rgb([(x * 3) as u8, (y * 6) as u8, 90])).save(&path).unwrap();
        let all = Views { variations: 3, shape: Shape::Square(Fit::Crop), ..views() }.of([80, 40]);
        let images: Vec<Image> = all.iter().map(|view| view.load(&path).unwrap()).collect();
        for (view, image) in all.iter().zip(&images) {
            assert!(*image == view.load(&path).unwrap(), "{view:?}");
            assert_eq!(images.iter().filter(|other| *other == image).count(), 1, "{view:?}");
        }
        assert!(images[0] == picture::load(&path, [64; 2], [255; 3], Fit::Crop).unwrap(), "number 0 is the picture");
        assert!(images[4].flipped() == images[1], "a version's mirror image is of the same version");
        assert!(View::whole([0, 8]).load(&path).unwrap_err().what.contains("not possible"));
    }
}
