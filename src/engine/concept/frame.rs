//! A rectangle on a picture, turned about its middle, and the pixels it shows.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::Fit;
use super::augment::Variation;

/// Pixels of the picture; the picture's corner is `[0, 0]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    centre: [f64; 2],
    extent: [f64; 2],
    /// Radians, clockwise.
    angle: f64,
}

impl Frame {
    /// The frame of a version: of the shape of `size`, around the whole picture (pad) or as large as fits into it at
    /// its angle (crop), then cut as the version says.
    pub fn of(picture: [u32; 2], size: [u32; 2], fit: Fit, variation: &Variation) -> Self {
        let ([width, height], [w, h]) = (picture.map(f64::from), size.map(f64::from));
        let (sin, cos) = variation.angle.sin_cos();
        let k = match fit {
            Fit::Pad => (width / w).max(height / h),
            Fit::Crop => {
                let across = w * cos.abs() + h * sin.abs();
                let down = w * sin.abs() + h * cos.abs();
                (width / across).min(height / down)
            }
        };
        let room = [w, h].map(|side| k * side * (1.0 - variation.zoom) / 2.0);
        let [x, y] = [room[0] * variation.shift[0], room[1] * variation.shift[1]];
        Self {
            centre: [width / 2.0 + cos * x - sin * y, height / 2.0 + sin * x + cos * y],
            extent: [w, h].map(|side| k * side * variation.zoom),
            angle: variation.angle,
        }
    }

    /// Where a place of the frame, 0…1 from left and top, lies on the picture.
    fn place(&self, at: [f64; 2]) -> [f64; 2] {
        let (sin, cos) = self.angle.sin_cos();
        let [x, y] = [0, 1].map(|i| (at[i] - 0.5) * self.extent[i]);
        [self.centre[0] + cos * x - sin * y, self.centre[1] + sin * x + cos * y]
    }

    /// What the frame shows, at `size` pixels; `outside` lies beyond the picture, whose edge goes on where it is none.
    pub fn show(&self, picture: &RgbImage, size: [u32; 2], outside: Option<Rgb<u8>>) -> RgbImage {
        let sides = [picture.width(), picture.height()];
        let scale = self.extent[0] / f64::from(size[0]);
        // Only what the frame covers is resized, with two pixels around it for the kernel: a strip of 1×10 000 would
        // otherwise grow to gigabytes.
        let corners = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]].map(|at| self.place(at));
        let reach = |i: usize| {
            let (least, most) = corners
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), at| (least.min(at[i]), most.max(at[i])));
            let first = (least - 2.0 * scale).floor().clamp(0.0, f64::from(sides[i] - 1)) as u32;
            let last = (most + 2.0 * scale).ceil().clamp(f64::from(first + 1), f64::from(sides[i])) as u32;
            (first, last - first)
        };
        let ((left, width), (top, height)) = (reach(0), reach(1));
        let covered = imageops::crop_imm(picture, left, top, width, height).to_image();
        let fine = [width, height].map(|side| ((f64::from(side) / scale).round() as u32).max(1));
        let covered = imageops::resize(&covered, fine[0], fine[1], FilterType::Lanczos3);
        let dense = [f64::from(fine[0]) / f64::from(width), f64::from(fine[1]) / f64::from(height)];
        RgbImage::from_fn(size[0], size[1], |x, y| {
            let [x, y] =
                self.place([(f64::from(x) + 0.5) / f64::from(size[0]), (f64::from(y) + 0.5) / f64::from(size[1])]);
            let at = [(x - f64::from(left)) * dense[0] - 0.5, (y - f64::from(top)) * dense[1] - 0.5];
            cubic(&covered, at, outside)
        })
    }
}

/// The picture between its pixels (Catmull–Rom, 4×4).
fn cubic(picture: &RgbImage, at: [f64; 2], outside: Option<Rgb<u8>>) -> Rgb<u8> {
    let [sx, sy] = [picture.width(), picture.height()].map(i64::from);
    let pixel = |x: i64, y: i64| match outside {
        Some(color) if !(0..sx).contains(&x) || !(0..sy).contains(&y) => color,
        _ => *picture.get_pixel(x.clamp(0, sx - 1) as u32, y.clamp(0, sy - 1) as u32),
    };
    let [x, y] = at.map(|at| at.floor() as i64);
    let [across, down] = at.map(|at| weights(at - at.floor()));
    let mut sum = [0.0; 3];
    for (j, down) in down.iter().enumerate() {
        for (i, across) in across.iter().enumerate() {
            let Rgb(color) = pixel(x + i as i64 - 1, y + j as i64 - 1);
            for c in 0..3 {
                sum[c] += down * across * f64::from(color[c]);
            }
        }
    }
    Rgb(sum.map(|v| v.round().clamp(0.0, 255.0) as u8))
}

/// Of the pixels at −1, 0, 1, 2 for a place at `t` in 0…1.
fn weights(t: f64) -> [f64; 4] {
    let (t2, t3) = (t * t, t * t * t);
    [-t + 2.0 * t2 - t3, 2.0 - 5.0 * t2 + 3.0 * t3, t + 4.0 * t2 - 3.0 * t3, t3 - t2].map(|w| w / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::concept::augment::Changes;

    const WHITE: Rgb<u8> = Rgb([255; 3]);

    fn still() -> Variation {
        Variation { shift: [0.0; 2], ..Changes::default().draw("", 0) }
    }

    /// Red grows to the right, green downwards.
    fn slopes(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 0]))
    }

    #[test]
    fn an_unchanged_version_shows_what_the_picture_shows() {
        let picture = slopes(40, 40);
        for fit in [Fit::Pad, Fit::Crop] {
            let frame = Frame::of([40, 40], [40, 40], fit, &still());
            assert_eq!(frame.show(&picture, [40, 40], Some(WHITE)), picture, "{fit:?}");
        }
        let wide = Frame::of([80, 40], [40, 40], Fit::Crop, &still());
        assert_eq!(wide, Frame { centre: [40.0, 20.0], extent: [40.0, 40.0], angle: 0.0 });
        let padded = Frame::of([80, 40], [40, 40], Fit::Pad, &still()).show(&slopes(80, 40), [40, 40], Some(WHITE));
        assert_eq!([padded.get_pixel(20, 5), padded.get_pixel(20, 35)], [&WHITE; 2]);
        assert_ne!(padded.get_pixel(20, 20), &WHITE);
    }

    #[test]
    fn a_cut_lies_where_its_shift_says() {
        let cut = Variation { zoom: 0.5, shift: [1.0, -1.0], ..still() };
        let frame = Frame::of([80, 80], [40, 40], Fit::Crop, &cut);
        assert_eq!(frame, Frame { centre: [60.0, 20.0], extent: [40.0, 40.0], angle: 0.0 });
        let shown = frame.show(&slopes(80, 80), [40, 40], None);
        let Rgb([red, green, _]) = *shown.get_pixel(0, 0);
        assert!(red.abs_diff(127) <= 3 && green <= 3, "{red} {green}");
    }

    #[test]
    fn a_turned_crop_stays_inside_and_a_quarter_turn_turns() {
        for degrees in [-80.0_f64, -13.0, 0.0, 7.0, 45.0, 90.0] {
            for size in [[40, 40], [64, 32], [32, 96]] {
                let turned = Variation { angle: degrees.to_radians(), zoom: 0.8, shift: [1.0, 1.0], ..still() };
                let frame = Frame::of([100, 60], size, Fit::Crop, &turned);
                for at in [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] {
                    let [x, y] = frame.place(at);
                    assert!(
                        (-1e-9..=100.0 + 1e-9).contains(&x) && (-1e-9..=60.0 + 1e-9).contains(&y),
                        "{degrees} {size:?}"
                    );
                }
            }
        }
        let quarter = Variation { angle: std::f64::consts::FRAC_PI_2, ..still() };
        let picture = slopes(40, 40);
        let shown = Frame::of([40, 40], [40, 40], Fit::Crop, &quarter).show(&picture, [40, 40], None);
        // The frame is turned clockwise, so its top edge shows the picture's right one.
        let (found, expected) = (shown.get_pixel(30, 5).0, picture.get_pixel(34, 30).0);
        assert!(found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1), "{found:?} {expected:?}");
    }

    #[test]
    fn strips_and_single_pixels_are_shown() {
        let changes = Changes { jitter: 0.5, rotate: 180.0, ..Changes::default() };
        for (width, height) in [(1, 1), (1, 10_000), (10_000, 1), (3, 700)] {
            let picture = RgbImage::from_pixel(width, height, Rgb([9, 9, 9]));
            for number in 1..6 {
                let variation = changes.draw("0123456789abcdef", number);
                let frame = Frame::of([width, height], [64, 48], Fit::Crop, &variation);
                let shown = frame.show(&picture, [64, 48], None);
                assert!(shown.pixels().all(|pixel| pixel.0 == [9; 3]), "{width}×{height}");
            }
        }
    }
}
