//! Frames of many shapes and one area, so that pictures of any shape are trained with little cut away.
//!
//! kohya's rule (`BucketManager` and `make_bucket_resolutions` of sd-scripts), with its bounds of 256 and 1024 at 512
//! read as half and twice the resolution.

use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Side in pixels of the square whose area no bucket exceeds.
    pub resolution: usize,
    /// Every side is a multiple of it: 64 for Stable Diffusion.
    pub step: usize,
    /// Whether pictures smaller than their bucket are enlarged. If not, each gets a bucket no larger than itself.
    pub upscale: bool,
}

impl Buckets {
    /// Every `[width, height]` that enlarged pictures can fall into.
    pub fn sizes(&self) -> BTreeSet<[usize; 2]> {
        let Self { resolution, step, .. } = *self;
        let floor = |side: usize| side / step * step;
        let (least, most) = (floor(resolution / 2).max(step), floor(2 * resolution));
        let mut sizes = BTreeSet::from([[floor(resolution); 2]]);
        for width in (least..=most).step_by(step) {
            let height = floor(resolution.pow(2) / width).min(most);
            if height >= least {
                sizes.extend([[width, height], [height, width]]);
            }
        }
        sizes
    }

    /// The `[width, height]` in which a picture of so many pixels is trained.
    pub fn of(&self, picture: [usize; 2]) -> [usize; 2] {
        if !self.upscale {
            return self.within(picture);
        }
        let sizes = self.sizes();
        if sizes.contains(&picture) {
            return picture;
        }
        // The plain difference and the first of equals, as kohya has it.
        let error = |&size: &[usize; 2]| (ratio(size) - ratio(picture)).abs();
        sizes.into_iter().min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or([self.resolution; 2])
    }

    /// The picture shrunk to the area of the resolution if it is larger, then cut to whole steps. Of the two ways to
    /// round, by width and by height, the one that keeps the shape better counts.
    fn within(&self, picture: [usize; 2]) -> [usize; 2] {
        let Self { resolution, step, .. } = *self;
        let a = ratio(picture);
        let area = resolution.pow(2) as f64;
        let round = |side: f64| (side + 0.5) as usize;
        let rounded = |side: f64| (round(side) / step * step) as f64;
        let shrunk = if picture[0] as f64 * picture[1] as f64 > area {
            let width = (area * a).sqrt();
            let [by_width, by_height] = [rounded(width), rounded(area / width)];
            let error = |w: f64, h: f64| (w / h - a).abs();
            match error(by_width, rounded(by_width / a)) < error(rounded(by_height * a), by_height) {
                true => [round(by_width), round(by_width / a)],
                false => [round(by_height * a), round(by_height)],
            }
        } else {
            picture
        };
        // Beyond these bounds, which kohya does not have here, a strip would get a bucket of many times the area.
        shrunk.map(|side| (side / step * step).clamp(step, 2 * resolution / step * step))
    }
}

fn ratio([width, height]: [usize; 2]) -> f64 {
    width as f64 / height as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SD: Buckets = Buckets { resolution: 512, step: 64, upscale: true };
    const SDXL: Buckets = Buckets { resolution: 1024, ..SD };

    /// What kohya's functions give, run in Python with these bounds.
    #[test]
    fn sizes_are_kohyas() {
        let wide = [[576, 448], [640, 384], [704, 320], [768, 320], [832, 256], [896, 256], [960, 256], [1024, 256]];
        let all = wide.iter().flat_map(|&[w, h]| [[w, h], [h, w]]).chain([[512, 512]]).collect();
        assert_eq!(SD.sizes(), all);
        assert_eq!(SDXL.sizes().len(), 33);
        for size in [[512, 2048], [704, 1408], [832, 1216], [1024, 1024], [1088, 960], [1984, 512]] {
            assert!(SDXL.sizes().contains(&size), "{size:?}");
        }
        let starter = Buckets { resolution: 64, step: 16, upscale: true };
        let wide = [[80, 48], [96, 32], [112, 32], [128, 32]];
        let all = wide.iter().flat_map(|&[w, h]| [[w, h], [h, w]]).chain([[64, 64]]).collect();
        assert_eq!(starter.sizes(), all);
    }

    /// The same, of the choice for one picture: at 512 and 1024, enlarged or not.
    #[test]
    fn pictures_fall_where_kohya_puts_them() {
        for (picture, [sd, sd_within, xl, xl_within]) in [
            ([512, 512], [[512, 512], [512, 512], [1024, 1024], [512, 512]]),
            ([640, 480], [[576, 448], [512, 384], [1152, 896], [640, 448]]),
            ([480, 640], [[448, 576], [384, 512], [896, 1152], [448, 640]]),
            ([1920, 1080], [[640, 384], [640, 384], [1344, 768], [1344, 768]]),
            ([3000, 1000], [[832, 256], [768, 256], [1728, 576], [1728, 576]]),
            ([1000, 3000], [[256, 832], [256, 768], [576, 1728], [576, 1728]]),
            ([600, 500], [[576, 448], [512, 448], [1088, 960], [576, 448]]),
            ([100, 80], [[576, 448], [64, 64], [1152, 896], [64, 64]]),
        ] {
            let of = |buckets: Buckets, upscale| Buckets { upscale, ..buckets }.of(picture);
            let found = [of(SD, true), of(SD, false), of(SDXL, true), of(SDXL, false)];
            assert_eq!(found, [sd, sd_within, xl, xl_within], "{picture:?}");
        }
    }

    #[test]
    fn no_picture_leaves_the_bounds() {
        for upscale in [true, false] {
            for picture in [[1, 1], [1, 10_000], [10_000, 1], [63, 64], [9000, 9000]] {
                let [w, h] = Buckets { upscale, ..SD }.of(picture);
                assert!([w, h].iter().all(|side| side % 64 == 0 && (64..=1024).contains(side)), "{picture:?}");
                assert!(w * h <= 512 * 512, "{picture:?}");
            }
        }
    }
}
