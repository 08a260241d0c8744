//! What of a picture counts: a mask beside it, or its own transparency.

use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{GrayImage, Rgb, RgbImage};

use super::picture::decode;
use super::{Picture, View};
use crate::engine::Result;
use crate::engine::words::stem;

/// Where masks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Everything counts.
    None,
    /// `<stem>-masklabel.png` (`OneTrainer`) or `<stem>.mask.png`: white counts, black does not.
    File,
    /// What is opaque counts.
    Alpha,
}

const LABEL: &str = "-masklabel";
const ENDING: &str = ".mask";

/// The masks a picture could have; the first that is there counts.
pub(super) fn beside(picture: &Path) -> [PathBuf; 2] {
    let stem = stem(picture);
    [LABEL, ENDING].map(|ending| picture.with_file_name(format!("{stem}{ending}.png")))
}

/// Whether a file is a mask by its name, whatever lies beside it.
pub(super) fn is_label(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with(LABEL))
}

impl Mask {
    /// How much each latent pixel of a view counts, 0…1 row by row, `factor` pixels to a side; none where the picture has
    /// no mask, so that all of it counts. It is framed, turned and cut exactly like the picture.
    pub fn of(self, picture: &Picture, view: &View, factor: usize) -> Result<Option<Vec<f32>>> {
        let shown = match self {
            Self::None => return Ok(None),
            Self::File => match &picture.mask {
                Some(path) => {
                    let mask = decode(path)?.into_luma8();
                    let [width, height] = picture.size.map(|side| side as u32);
                    match mask.dimensions() == (width, height) {
                        true => mask,
                        false => imageops::resize(&mask, width, height, FilterType::Triangle),
                    }
                }
                None => return Ok(None),
            },
            Self::Alpha => {
                let decoded = decode(&picture.path)?;
                if !decoded.color().has_alpha() {
                    return Ok(None);
                }
                let rgba = decoded.into_rgba8();
                GrayImage::from_fn(rgba.width(), rgba.height(), |x, y| image::Luma([rgba.get_pixel(x, y).0[3]]))
            }
        };
        let grey = RgbImage::from_fn(shown.width(), shown.height(), |x, y| Rgb([shown.get_pixel(x, y).0[0]; 3]));
        // Beside the picture there is nothing that could count.
        let framed = View { background: [0; 3], ..*view }.frame(&grey, view.variation(&picture.path)?.as_ref());
        let [width, height] = view.size.map(|side| side / factor);
        let mean = |x: usize, y: usize| {
            let block = (0..factor * factor).map(|i| (x * factor + i % factor, y * factor + i / factor));
            block.map(|(x, y)| f32::from(framed.get_pixel(x as u32, y as u32).0[0])).sum::<f32>()
                / (255 * factor * factor) as f32
        };
        let column = |x: usize| if view.mirror { width - 1 - x } else { x };
        Ok(Some((0..width * height).map(|i| mean(column(i % width), i / width)).collect()))
    }
}

/// A mask as weights of the loss: at least `floor` everywhere, and of mean 1 if `even`, so that a small subject pulls as
/// hard as a large one. An empty mask stays empty.
pub fn weights(mask: &[f32], floor: f32, even: bool) -> Vec<f32> {
    let raised: Vec<f32> = mask.iter().map(|m| m.clamp(floor, 1.0)).collect();
    let mean = raised.iter().sum::<f32>() / raised.len() as f32;
    match even && mean > 0.0 {
        true => raised.into_iter().map(|m| m / mean).collect(),
        false => raised,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::concept::augment::Changes;
    use crate::engine::concept::{self, Fit};
    use image::{Luma, Rgba, RgbaImage};

    /// A picture of 64×32 whose left third is opaque red, with a mask file of half its size that says the same.
    fn picture(folder: &Path) -> Picture {
        let left = |x: u32, width: u32| x < width / 4;
        RgbaImage::from_fn(64, 32, |x, _| Rgba(if left(x, 64) { [255, 0, 0, 255] } else { [0, 0, 255, 0] }))
            .save(folder.join("a.png"))
            .unwrap();
        GrayImage::from_fn(32, 16, |x, _| Luma([if left(x, 32) { 255 } else { 0 }]))
            .save(folder.join("a.mask.png"))
            .unwrap();
        concept::open(folder).unwrap().images.remove(0)
    }

    fn view(size: [usize; 2], fit: Fit) -> View {
        View { size, fit, ..View::whole(size) }
    }

    #[test]
    fn masks_are_framed_like_their_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let picture = picture(folder.path());
        assert_eq!(picture.mask, Some(folder.path().join("a.mask.png")));
        let rows = |mask: Mask, view: View| -> Vec<Vec<f32>> {
            let width = view.size[0] / 8;
            let mask = mask.of(&picture, &view, 8).unwrap().unwrap();
            mask.chunks(width).map(|row| row.iter().map(|m| (m * 4.0).round() / 4.0).collect()).collect()
        };
        // The same from the alpha channel, whose edge is not blurred by another size.
        for mask in [Mask::File, Mask::Alpha] {
            assert_eq!(rows(mask, view([64, 32], Fit::Crop)), vec![[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]; 4]);
            let padded = rows(mask, view([32, 32], Fit::Pad));
            let [nothing, left] = [[0.0; 4], [1.0, 0.0, 0.0, 0.0]];
            assert_eq!(padded, [nothing, left, left, nothing], "{mask:?}: beside the picture nothing counts");
            let mirrored = View { mirror: true, ..view([64, 32], Fit::Crop) };
            assert_eq!(rows(mask, mirrored), vec![[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]; 4], "{mask:?}");
        }
        assert!(rows(Mask::Alpha, view([32, 32], Fit::Crop)).iter().flatten().all(|m| *m == 0.0), "the middle");
        assert_eq!(Mask::None.of(&picture, &view([64, 32], Fit::Crop), 8).unwrap(), None);
        let bare = Picture { mask: None, ..picture.clone() };
        assert_eq!(Mask::File.of(&bare, &view([64, 32], Fit::Crop), 8).unwrap(), None);
    }

    /// Over a background of another colour, the mask is where the picture is red, in every version.
    #[test]
    fn masks_follow_every_change() {
        let folder = tempfile::tempdir().unwrap();
        let picture = picture(folder.path());
        let changes = Changes { jitter: 0.4, rotate: 90.0, ..Changes::default() };
        for number in 1..8 {
            for mirror in [false, true] {
                let view = View { mirror, number, changes, ..view([64, 64], Fit::Pad) };
                let shown = view.load(&picture.path).unwrap();
                let mask = Mask::Alpha.of(&picture, &view, 1).unwrap().unwrap();
                let plane = 64 * 64;
                // White is 1 in all planes; red is −1 in green.
                let far = (0..plane).map(|i| (mask[i] - (1.0 - shown.data[plane + i]) / 2.0).abs()).fold(0.0, f32::max);
                assert!(far < 0.02, "{number}: {far}");
                assert!(mask.iter().any(|m| *m > 0.5));
            }
        }
    }

    #[test]
    fn weights_have_a_floor_and_a_mean() {
        let mask = [0.0, 0.0, 0.5, 1.0];
        assert_eq!(weights(&mask, 0.0, false), mask);
        assert_eq!(weights(&mask, 0.25, false), [0.25, 0.25, 0.5, 1.0]);
        assert_eq!(weights(&mask, 0.25, true), [0.5, 0.5, 1.0, 2.0]);
        assert_eq!(weights(&[1.0; 3], 0.1, true), [1.0; 3]);
        assert_eq!(weights(&[0.0; 3], 0.0, true), [0.0; 3]);
    }
}
