//! Views of a concept's pictures that can share a batch: those of one size.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};

use crate::engine::Result;
use crate::engine::concept::latents::latents;
use crate::engine::concept::mask::{self, Mask};
use crate::engine::concept::{Picture, View, Views};
use crate::engine::model::{Framing, StableDiffusion};

pub struct Group {
    /// `[n, 4, h, w]`, one row for each view.
    pub latents: Tensor<4>,
    /// Weight of each latent pixel's error, `[n, 1, h, w]`, where masks are used.
    pub masks: Option<Tensor<4>>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Index of the picture in its concept.
    pub picture: usize,
    /// Whether it is the picture as it is filed: neither mirrored nor changed.
    pub plain: bool,
    /// What SDXL is told of the view's sizes.
    pub framing: Framing,
}

impl Group {
    /// All views of the pictures, by size; `tell` hears of each that is ready.
    pub fn all(
        model: &StableDiffusion,
        pictures: &[Picture],
        views: &Views,
        cache: Option<&Path>,
        tell: &mut impl FnMut() -> Result<()>,
    ) -> Result<Vec<Self>> {
        let mut sizes: BTreeMap<[usize; 2], Vec<(usize, View)>> = BTreeMap::new();
        let of_picture: Vec<Vec<View>> = pictures.iter().map(|picture| views.of(picture.size)).collect();
        // View by view rather than picture by picture: the pictures as they are come first.
        for nth in 0..of_picture.first().map_or(0, Vec::len) {
            for (picture, of_picture) in of_picture.iter().enumerate() {
                sizes.entry(of_picture[nth].size).or_default().push((picture, of_picture[nth]));
            }
        }
        let group = |members: Vec<(usize, View)>| {
            let paths: Vec<_> = members.iter().map(|&(at, view)| (&*pictures[at].path, view)).collect();
            let latents = latents(model, &paths, cache, tell)?;
            let masks = (views.mask != Mask::None).then(|| masks(model, pictures, &members, views)).transpose()?;
            let row = |(picture, view): (usize, View)| {
                let framing = view.framing(pictures[picture].size);
                Row { picture, plain: !view.mirror && view.number == 0, framing }
            };
            Ok(Self { latents, masks, rows: members.into_iter().map(row).collect() })
        };
        sizes.into_values().map(group).collect()
    }
}

fn masks(model: &StableDiffusion, pictures: &[Picture], members: &[(usize, View)], views: &Views) -> Result<Tensor<4>> {
    let factor = model.vae.factor();
    let [width, height] = members.first().map_or([0; 2], |(_, view)| view.size.map(|side| side / factor));
    let mut weights: Vec<f32> = Vec::new();
    for (at, view) in members {
        match views.mask.of(&pictures[*at], view, factor)? {
            Some(mask) => weights.extend(mask::weights(&mask, views.unmasked_weight, views.mask_normalise)),
            None => weights.extend(std::iter::repeat_n(1.0, width * height)),
        }
    }
    Ok(Tensor::from_data(TensorData::new(weights, [members.len(), 1, height, width]), &model.device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::concept::augment::Changes;
    use crate::engine::concept::{self, Fit, Shape};
    use crate::engine::device;

    #[test]
    fn views_lie_in_groups_of_one_size_with_their_masks() {
        let folder = tempfile::tempdir().unwrap();
        for (name, width, height) in [("a", 64, 64), ("b", 80, 48), ("c", 64, 64)] {
            image::RgbImage::new(width, height).save(folder.path().join(format!("{name}.png"))).unwrap();
        }
        image::GrayImage::new(64, 64).save(folder.path().join("c.mask.png")).unwrap();
        let pictures = concept::open(folder.path()).unwrap().images;
        let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
        let views = Views {
            resolutions: vec![64],
            step: 16,
            shape: Shape::Bucket { upscale: true },
            background: [255; 3],
            flip: true,
            variations: 2,
            changes: Changes { brightness: 0.1, ..Changes::default() },
            mask: Mask::File,
            unmasked_weight: 0.25,
            mask_normalise: false,
        };
        let mut told = 0;
        let mut tell = || {
            told += 1;
            Ok(())
        };
        let groups = Group::all(&model, &pictures, &views, None, &mut tell).unwrap();
        let factor = model.vae.factor();
        let shapes: Vec<_> = groups.iter().map(|group| group.latents.dims()).collect();
        assert_eq!(shapes, [[8, 4, 64 / factor, 64 / factor], [4, 4, 48 / factor, 80 / factor]]);
        let rows: Vec<_> = groups[0].rows.iter().map(|row| (row.picture, row.plain)).collect();
        assert_eq!(rows[..4], [(0, true), (2, true), (0, false), (2, false)]);
        assert_eq!(groups[1].rows.len(), 4);
        let means = |group: &Group| -> Vec<f32> {
            let mask = group.masks.clone().unwrap().mean_dims(&[1, 2, 3]);
            mask.into_data().try_to_vec::<f32>().unwrap()
        };
        assert_eq!(means(&groups[0])[..2], [1.0, 0.25], "no mask counts whole, a black one as its floor");
        assert_eq!(means(&groups[1]), [1.0; 4]);
        assert_eq!(told, 12);
        let square = Views { shape: Shape::Square(Fit::Pad), variations: 1, mask: Mask::None, ..views };
        let one = Group::all(&model, &pictures, &square, None, &mut || Ok(())).unwrap();
        assert!(one.len() == 1 && one[0].masks.is_none() && one[0].rows.len() == 6);
    }
}
