//! One picture file → what a classifier was trained on, by transformers' `preprocessor_config.json` or torchvision's
//! `ImageClassification`.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use image::imageops;
use rayon::prelude::*;
use serde::Deserialize;

use crate::engine::concept::picture;
use crate::engine::io::Folder;
use crate::engine::model::mobilenet;
use crate::engine::vision::resample::{Filter, resize};
use crate::engine::{Error, Result};

const FILE: &str = "preprocessor_config.json";

/// Longest side in shorter ones: of a longer strip the ends would be cut away anyway, after gigabytes of resizing.
const LONGEST: u32 = 16;

/// Sides up to which `ConvNextImageProcessor`, which ResNets use, cuts out the middle (`crop_pct`).
const CROPPED_BELOW: usize = 384;

/// Sides beyond this are a mistake.
const MOST: usize = 4096;

#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    pub resize: Resize,
    pub filter: Filter,
    /// Of pixels in 0…1.
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// To this height and width, whatever the picture's shape.
    Exact([usize; 2]),
    /// The shorter side to `edge`, then the middle, `crop × crop`.
    Shorter { edge: usize, crop: usize },
}

#[derive(Deserialize)]
struct Stored {
    size: Option<Size>,
    crop_size: Option<Size>,
    #[serde(default)]
    do_center_crop: bool,
    crop_pct: Option<f64>,
    resample: Option<u8>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Both { height: usize, width: usize },
    Shorter { shortest_edge: usize },
}

impl Preparation {
    /// torchvision's for ImageNet.
    pub fn torchvision() -> Self {
        Self {
            resize: Resize::Shorter { edge: 256, crop: 224 },
            filter: Filter::Bilinear,
            mean: mobilenet::MEAN,
            deviation: mobilenet::DEVIATION,
        }
    }

    /// transformers' for ResNets.
    pub fn resnet() -> Self {
        Self { filter: Filter::Bicubic, ..Self::torchvision() }
    }

    /// transformers' for vision transformers.
    pub fn vit(side: usize) -> Self {
        Self { resize: Resize::Exact([side; 2]), filter: Filter::Bilinear, mean: [0.5; 3], deviation: [0.5; 3] }
    }

    /// What the model's folder says, over what is `usual`.
    pub fn read(folder: &Folder, usual: Self) -> Result<Self> {
        if !folder.has(FILE) {
            return Ok(usual);
        }
        let stored: Stored = folder.json(FILE)?;
        let wrong = |what: &str| Error::new(what, "Fetch the model again, or another one").at(folder.path().join(FILE));
        let unknown = || wrong("The model prepares its pictures in a way that is not known here");
        let filter = match stored.resample {
            None => usual.filter,
            Some(1) => Filter::Lanczos,
            Some(2) => Filter::Bilinear,
            Some(3) => Filter::Bicubic,
            Some(_) => return Err(unknown()),
        };
        let resize = match (stored.size, stored.crop_pct) {
            (None, _) => usual.resize,
            (Some(Size::Side(n) | Size::Shorter { shortest_edge: n }), Some(share)) => match n < CROPPED_BELOW {
                true => Resize::Shorter { edge: (n as f64 / share) as usize, crop: n },
                false => Resize::Exact([n; 2]),
            },
            (Some(Size::Shorter { shortest_edge: edge }), None) => {
                match stored.crop_size.filter(|_| stored.do_center_crop) {
                    Some(Size::Side(crop)) => Resize::Shorter { edge, crop },
                    Some(Size::Both { height, width }) if height == width => Resize::Shorter { edge, crop: height },
                    _ => return Err(unknown()),
                }
            }
            (Some(_), _) if stored.do_center_crop => return Err(unknown()),
            (Some(Size::Side(n)), None) => Resize::Exact([n; 2]),
            (Some(Size::Both { height, width }), _) => Resize::Exact([height, width]),
        };
        let fits = |n: usize| (1..=MOST).contains(&n);
        let sound = match resize {
            Resize::Exact(sides) => sides.into_iter().all(fits),
            Resize::Shorter { edge, crop } => fits(edge) && fits(crop) && crop <= edge,
        };
        let deviation = stored.image_std.unwrap_or(usual.deviation);
        if !sound || deviation.contains(&0.0) {
            return Err(wrong("The model prepares its pictures in a way that is not possible"));
        }
        Ok(Self { resize, filter, mean: stored.image_mean.unwrap_or(usual.mean), deviation })
    }

    /// Height and width of what the network sees.
    pub fn size(&self) -> [usize; 2] {
        match self.resize {
            Resize::Exact(size) => size,
            Resize::Shorter { crop, .. } => [crop; 2],
        }
    }

    /// Reads pictures, each mirrored or not: RGB `[n, 3, h, w]`, normalised.
    pub fn batch<P: AsRef<Path> + Sync>(&self, pictures: &[(P, bool)], device: &Device) -> Result<Tensor<4>> {
        let one = |(path, mirrored): &(P, bool)| {
            let picture = self.resized(&picture::open(path.as_ref())?);
            Ok(self.normalised(&if *mirrored { imageops::flip_horizontal(&picture) } else { picture }))
        };
        let values = pictures.par_iter().map(one).collect::<Result<Vec<_>>>()?.concat();
        let [height, width] = self.size();
        Ok(Tensor::from_data(TensorData::new(values, [pictures.len(), 3, height, width]), device))
    }

    fn resized(&self, picture: &RgbImage) -> RgbImage {
        match self.resize {
            Resize::Exact([height, width]) => resize(picture, width as u32, height as u32, self.filter),
            Resize::Shorter { edge, crop } => {
                let picture = middle(picture);
                let (w, h) = picture.dimensions();
                let (edge, crop) = (edge as u32, crop as u32);
                let [width, height] = if w <= h { [edge, edge * h / w] } else { [edge * w / h, edge] };
                let picture = resize(&picture, width, height, self.filter);
                // Python's rounding, which torchvision's `center_crop` uses.
                let start = |side: u32| (f64::from(side - crop) / 2.0).round_ties_even() as u32;
                imageops::crop_imm(&picture, start(width), start(height), crop, crop).to_image()
            }
        }
    }

    /// Planar, `[3, h, w]`.
    fn normalised(&self, picture: &RgbImage) -> Vec<f32> {
        let channel = |c: usize| {
            let pixels = picture.as_raw().iter().skip(c).step_by(3);
            pixels.map(move |&v| (f32::from(v) / 255.0 - self.mean[c]) / self.deviation[c])
        };
        (0..3).flat_map(channel).collect()
    }
}

/// The picture without the ends of a long strip.
fn middle(picture: &RgbImage) -> RgbImage {
    let (w, h) = picture.dimensions();
    let [width, height] = [w.min(h.saturating_mul(LONGEST)), h.min(w.saturating_mul(LONGEST))];
    imageops::crop_imm(picture, (w - width) / 2, (h - height) / 2, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn a_models_own_preparation_is_read() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::Disk(scratch.path().into());
        let read = |text: &str| {
            std::fs::write(scratch.path().join(FILE), text).unwrap();
            Preparation::read(&folder, Preparation::torchvision())
        };
        assert_eq!(Preparation::read(&folder, Preparation::vit(48)).unwrap(), Preparation::vit(48), "none is there");
        let cases = [
            ("{}", Resize::Shorter { edge: 256, crop: 224 }),
            (r#"{"size": 224}"#, Resize::Exact([224; 2])),
            (r#"{"size": {"height": 30, "width": 40}}"#, Resize::Exact([30, 40])),
            (r#"{"size": {"shortest_edge": 224}, "crop_pct": 0.875}"#, Resize::Shorter { edge: 256, crop: 224 }),
            (r#"{"size": {"shortest_edge": 384}, "crop_pct": 0.875}"#, Resize::Exact([384; 2])),
            (
                r#"{"size": {"shortest_edge": 40}, "do_center_crop": true, "crop_size": {"height": 32, "width": 32}}"#,
                Resize::Shorter { edge: 40, crop: 32 },
            ),
        ];
        for (text, resize) in cases {
            assert_eq!(read(text).unwrap().resize, resize, "{text}");
        }
        let more = read(r#"{"resample": 3, "image_mean": [0.5, 0.5, 0.25], "image_std": [1.0, 0.5, 2.0]}"#).unwrap();
        assert_eq!((more.filter, more.mean, more.deviation), (Filter::Bicubic, [0.5, 0.5, 0.25], [1.0, 0.5, 2.0]));
        for wrong in [
            r#"{"size": 0}"#,
            r#"{"size": 99999}"#,
            r#"{"image_std": [1.0, 0.0, 1.0]}"#,
            r#"{"resample": 9}"#,
            r#"{"size": {"shortest_edge": 32}, "do_center_crop": true, "crop_size": 40}"#,
            r#"{"size": {"height": 30, "width": 40}, "do_center_crop": true}"#,
            r#"{"size": "large"}"#,
        ] {
            assert!(!read(wrong).unwrap_err().advice.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn the_middle_of_any_shape_is_seen() {
        let prepare = Preparation { resize: Resize::Shorter { edge: 10, crop: 8 }, ..Preparation::torchvision() };
        // Black with a white middle third, of either direction.
        for (width, height) in [(30, 12), (12, 30), (3, 3), (1, 5000), (5000, 1)] {
            let along = |x: u32, y: u32| if width > height { (x, width) } else { (y, height) };
            let picture = RgbImage::from_fn(width, height, |x, y| {
                let (at, side) = along(x, y);
                Rgb([if (side / 3..side - side / 3).contains(&at) { 255 } else { 0 }; 3])
            });
            let seen = prepare.resized(&picture);
            assert_eq!(seen.dimensions(), (8, 8), "{width}×{height}");
            assert!(seen.get_pixel(4, 4).0[0] > 200, "{width}×{height}");
        }
        let black = prepare.normalised(&RgbImage::new(8, 8));
        assert_eq!((black.len(), black[0], black[191]), (192, -0.485 / 0.229, -0.406 / 0.225));
    }
}
