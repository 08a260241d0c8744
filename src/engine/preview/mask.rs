//! A mask: which pixels of a picture are repainted. Drawn with a brush, kept as text, read from a picture.

use std::path::Path;
use std::sync::Arc;

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde::{Deserialize, Serialize};

use crate::engine::concept::picture;
use crate::engine::{Error, Result};

/// Pixels of a mask at most: those of the largest picture that can be made.
const MOST_PIXELS: u64 = 1 << 24;
/// From this grey on, a pixel of a file counts as white, as in diffusers.
const WHITE: u8 = 128;

/// As text its size and the lengths of its runs row by row, black first: `4x2 3 2 3`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mask {
    size: [u32; 2],
    /// Row by row. Shared, because forms are copied each frame.
    painted: Arc<Vec<bool>>,
}

impl Mask {
    /// Nothing is repainted.
    pub fn new(size: [u32; 2]) -> Self {
        Self { size, painted: Arc::new(vec![false; size[0] as usize * size[1] as usize]) }
    }

    /// White is repainted.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::of(&picture::open_grey(path)?))
    }

    fn of(grey: &GrayImage) -> Self {
        let painted = grey.pixels().map(|pixel| pixel.0[0] >= WHITE).collect();
        Self { size: [grey.width(), grey.height()], painted: Arc::new(painted) }
    }

    pub fn size(&self) -> [u32; 2] {
        self.size
    }

    pub fn is_empty(&self) -> bool {
        !self.painted.contains(&true)
    }

    pub fn invert(&mut self) {
        for painted in Arc::make_mut(&mut self.painted) {
            *painted = !*painted;
        }
    }

    /// Paints, or unpaints, what lies within `radius` of the line between two places, in pixels.
    pub fn stroke(&mut self, [from, to]: [[f32; 2]; 2], radius: f32, paints: bool) {
        let [width, height] = self.size;
        let reach = |axis: usize, most: u32| {
            let (low, high) = (from[axis].min(to[axis]) - radius, from[axis].max(to[axis]) + radius);
            // A cast of a float saturates, and NaN becomes 0.
            (low.floor() as u32, (high.ceil() as u32).min(most))
        };
        let along = [to[0] - from[0], to[1] - from[1]];
        let length_squared = along[0] * along[0] + along[1] * along[1];
        let painted = Arc::make_mut(&mut self.painted);
        let ((left, right), (top, bottom)) = (reach(0, width), reach(1, height));
        for y in top..bottom {
            for x in left..right {
                let off = [x as f32 + 0.5 - from[0], y as f32 + 0.5 - from[1]];
                let t =
                    ((off[0] * along[0] + off[1] * along[1]) / length_squared.max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
                let away = [off[0] - t * along[0], off[1] - t * along[1]];
                if away[0] * away[0] + away[1] * away[1] <= radius * radius {
                    painted[y as usize * width as usize + x as usize] = paints;
                }
            }
        }
    }

    /// White where it is painted.
    pub fn picture(&self) -> GrayImage {
        let [width, height] = self.size;
        GrayImage::from_fn(width, height, |x, y| Luma([if self.at(x, y) { 255 } else { 0 }]))
    }

    fn at(&self, x: u32, y: u32) -> bool {
        self.painted.get(y as usize * self.size[0] as usize + x as usize).copied().unwrap_or(false)
    }

    /// On a picture of this size, cut and resized as the picture is for an output of `size`.
    pub(super) fn fitted(&self, picture: [u32; 2], size: [usize; 2]) -> Result<Self> {
        let [width, height] = self.size.map(u64::from);
        let [own_width, own_height] = picture.map(u64::from);
        // Sides were rounded to whole pixels.
        if (width * own_height).abs_diff(height * own_width) > own_width.max(own_height).max(width.max(height)) {
            let sizes = format!("{width}×{height}, and the picture {own_width}×{own_height}");
            return Err(Error::usage(
                format!("The mask has another shape than the picture: it is {sizes}"),
                "Make a mask of the picture's own width and height",
            ));
        }
        let rgb = RgbImage::from_fn(self.size[0], self.size[1], |x, y| Rgb([if self.at(x, y) { 255 } else { 0 }; 3]));
        Ok(Self::of(&image::imageops::grayscale(&picture::cropped(&rgb, size))))
    }

    /// Which blocks of `factor`×`factor` pixels hold a painted one, row by row: 1 or 0.
    pub(super) fn blocks(&self, factor: usize) -> Vec<f32> {
        let [width, height] = self.size.map(|side| side as usize / factor);
        let holds = |i: usize| {
            let (x, y) = (i % width * factor, i / width * factor);
            (0..factor * factor).any(|at| self.at((x + at % factor) as u32, (y + at / factor) as u32))
        };
        (0..width * height).map(|i| f32::from(u8::from(holds(i)))).collect()
    }

    /// How much of each pixel is new, row by row: 0 outside, and rising to 1 at `soft` pixels from the edge inwards.
    pub(super) fn soft(&self, soft: u32) -> Vec<f32> {
        let [width, height] = self.size;
        let reach = i64::from(soft);
        let new = |x: u32, y: u32| {
            let outside = |dx: i64, dy: i64| {
                let at = [i64::from(x) + dx, i64::from(y) + dy].map(u32::try_from);
                matches!(at, [Ok(x), Ok(y)] if x < width && y < height && !self.at(x, y))
            };
            let offsets = (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dx, dy)));
            let near = offsets.filter(|&(dx, dy)| outside(dx, dy)).map(|(dx, dy)| ((dx * dx + dy * dy) as f32).sqrt());
            near.map(|distance| distance / (soft + 1) as f32).fold(1.0, f32::min)
        };
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| new(x, y)).collect()
    }
}

impl From<Mask> for String {
    fn from(mask: Mask) -> Self {
        let mut text = format!("{}x{}", mask.size[0], mask.size[1]);
        let mut is_painted = false;
        let mut rest = mask.painted.as_slice();
        while !rest.is_empty() {
            let run = rest.iter().position(|&painted| painted != is_painted).unwrap_or(rest.len());
            text.push_str(&format!(" {run}"));
            rest = &rest[run..];
            is_painted = !is_painted;
        }
        text
    }
}

impl TryFrom<String> for Mask {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || "a mask is written as its size and the lengths of its runs, such as 4x2 3 2 3".to_owned();
        let mut parts = text.split_ascii_whitespace();
        let size = |text: &str| {
            let (width, height) = text.split_once('x')?;
            Some([width.parse::<u32>().ok()?, height.parse::<u32>().ok()?])
        };
        let size = parts.next().and_then(size).ok_or_else(wrong)?;
        let pixels = u64::from(size[0]) * u64::from(size[1]);
        if !(1..=MOST_PIXELS).contains(&pixels) {
            return Err(format!("a mask has 1 to {MOST_PIXELS} pixels"));
        }
        let mut painted = Vec::new();
        for (i, run) in parts.enumerate() {
            let fits = |run: &u64| *run <= pixels - painted.len() as u64;
            let run = run.parse::<u64>().ok().filter(fits).ok_or_else(wrong)?;
            painted.resize(painted.len() + run as usize, i % 2 == 1);
        }
        if painted.len() as u64 != pixels {
            return Err(wrong());
        }
        Ok(Self { size, painted: Arc::new(painted) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Mask, String> {
        Mask::try_from(text.to_owned())
    }

    #[test]
    fn a_mask_is_its_text() {
        for text in ["4x2 3 2 3", "4x2 8", "4x2 0 8", "1x1 0 1"] {
            assert_eq!(String::from(read(text).unwrap()), text);
        }
        for text in [
            "",
            "0x0",
            "4x2",
            "4x2 9",
            "4x2 3 2",
            "4 2",
            "axb 1",
            "4x2 -1 9",
            "99999x99999 1",
            "4x2 18446744073709551615",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn strokes_paint_and_unpaint_within_the_picture() {
        let mut mask = Mask::new([8, 4]);
        mask.stroke([[1.0, 2.0], [7.0, 2.0]], 1.0, true);
        assert!([(1, 1), (4, 1), (4, 2), (6, 2)].iter().all(|&(x, y)| mask.at(x, y)));
        assert!(!mask.at(4, 0) && !mask.at(4, 3));
        mask.stroke([[4.0, 2.0], [4.0, 2.0]], 1.5, false);
        assert!(!mask.at(4, 2) && mask.at(7, 2));
        let before = mask.clone();
        mask.stroke([[-50.0, -3.0], [-9.0, f32::NAN]], 2.0, true);
        mask.stroke([[50.0, 3.0], [1e30, 1e30]], 2.0, true);
        assert_eq!(mask, before);
        mask.invert();
        assert!(mask.at(4, 0) && !mask.at(7, 2) && !mask.is_empty());
        mask.stroke([[0.0, 0.0], [8.0, 4.0]], 99.0, false);
        assert!(mask.is_empty());
    }

    #[test]
    fn outside_nothing_is_new_and_far_inside_everything() {
        let mut mask = Mask::new([16, 16]);
        mask.stroke([[8.0, 8.0], [8.0, 8.0]], 6.0, true);
        let soft = mask.soft(2);
        for (i, &new) in soft.iter().enumerate() {
            let painted = mask.at(i as u32 % 16, i as u32 / 16);
            assert_eq!(new > 0.0, painted, "{i}");
        }
        assert!((soft[8 * 16 + 8] - 1.0).abs() < 1e-6);
        assert!(soft[8 * 16 + 2] < 0.5, "the edge is soft: {}", soft[8 * 16 + 2]);
        let mut all = Mask::new([16, 16]);
        all.invert();
        assert!(all.soft(2).iter().all(|&new| (new - 1.0).abs() < 1e-6), "the picture's own edge is none");
    }

    #[test]
    fn a_block_with_a_painted_pixel_is_repainted() {
        let mut mask = Mask::new([8, 4]);
        mask.stroke([[5.5, 0.5], [5.5, 0.5]], 0.1, true);
        assert_eq!(mask.blocks(4), [0.0, 1.0]);
        assert_eq!(mask.blocks(2), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_mask_is_cut_as_its_picture_and_has_its_shape() {
        let mut mask = Mask::new([16, 8]);
        mask.stroke([[8.0, 0.0], [8.0, 8.0]], 2.0, true);
        let fitted = mask.fitted([160, 80], [8, 8]).unwrap();
        assert!(fitted.size() == [8, 8] && fitted.at(4, 4) && !fitted.at(0, 4) && !fitted.at(7, 4));
        assert!(mask.fitted([159, 80], [8, 8]).is_ok());
        assert!(mask.fitted([80, 80], [8, 8]).unwrap_err().what.contains("16×8, and the picture 80×80"));
    }
}
