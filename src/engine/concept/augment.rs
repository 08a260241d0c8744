//! Changed versions of a picture: a function of its content, the version's number and the bounds, so that latents of
//! them can be kept like any others.

use image::RgbaImage;

use crate::engine::random::Philox;

/// How far a version may be from the picture; all 0 changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Changes {
    /// Share of the frame that may be cut away, at sides drawn for each version.
    pub jitter: f64,
    /// Degrees, to both sides.
    pub rotate: f64,
    /// Shares of 1, to both sides.
    pub brightness: f64,
    pub contrast: f64,
    pub saturation: f64,
    /// Degrees on the colour circle, to both sides.
    pub hue: f64,
}

/// What was drawn for one version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variation {
    /// Sides of the cut as a share of the frame's.
    pub zoom: f64,
    /// Where the cut lies in the room it has, −1…1 to the right and down.
    pub shift: [f64; 2],
    /// Radians, clockwise.
    pub angle: f64,
    /// Factors.
    pub brightness: f64,
    pub contrast: f64,
    pub saturation: f64,
    /// Radians.
    pub hue: f64,
}

impl Changes {
    /// Version `number` of the picture with this content (`content_hash`).
    pub fn draw(&self, hash: &str, number: usize) -> Variation {
        let seed = hash.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
        let u = Philox::new(seed).uniform(u32::try_from(number).unwrap_or(u32::MAX), 8);
        let both = |i: usize| 2.0 * f64::from(u[i]) - 1.0;
        Variation {
            zoom: 1.0 - self.jitter * f64::from(u[0]),
            shift: [both(1), both(2)],
            angle: (self.rotate * both(3)).to_radians(),
            brightness: 1.0 + self.brightness * both(4),
            contrast: 1.0 + self.contrast * both(5),
            saturation: 1.0 + self.saturation * both(6),
            hue: (self.hue * both(7)).to_radians(),
        }
    }
}

impl Variation {
    /// Brightness, contrast and saturation as torchvision has them (`adjust_brightness`…), hue as SVG's `hueRotate`,
    /// which keeps the luminance. Transparency stays, and what is hidden does not count.
    pub fn tint(&self, picture: &mut RgbaImage) {
        let bright = |v: u8| (f64::from(v) / 255.0 * self.brightness).clamp(0.0, 1.0);
        let (mut sum, mut weight) = (0.0, 0.0);
        for pixel in picture.pixels() {
            let [rgb @ .., alpha] = pixel.0;
            sum += luminance(rgb.map(bright)) * f64::from(alpha);
            weight += f64::from(alpha);
        }
        let mean = if weight > 0.0 { sum / weight } else { 0.0 };
        let turn = hue_rotation(self.hue);
        for pixel in picture.pixels_mut() {
            let [rgb @ .., alpha] = pixel.0;
            let rgb = rgb.map(bright).map(|v| (mean + self.contrast * (v - mean)).clamp(0.0, 1.0));
            let grey = luminance(rgb);
            let rgb = rgb.map(|v| (grey + self.saturation * (v - grey)).clamp(0.0, 1.0));
            let [r, g, b] = turn.map(|row| row.iter().zip(rgb).map(|(m, v)| m * v).sum::<f64>());
            let byte = |v: f64| (v.clamp(0.0, 1.0) * 255.0).round() as u8;
            pixel.0 = [byte(r), byte(g), byte(b), alpha];
        }
    }
}

/// ITU-R BT.601.
fn luminance([r, g, b]: [f64; 3]) -> f64 {
    0.299 * r + 0.587 * g + 0.114 * b
}

/// The matrix of Filter Effects §9.6 (`feColorMatrix type="hueRotate"`).
fn hue_rotation(angle: f64) -> [[f64; 3]; 3] {
    let (sin, cos) = angle.sin_cos();
    [
        [0.213 + cos * 0.787 - sin * 0.213, 0.715 - cos * 0.715 - sin * 0.715, 0.072 - cos * 0.072 + sin * 0.928],
        [0.213 - cos * 0.213 + sin * 0.143, 0.715 + cos * 0.285 + sin * 0.140, 0.072 - cos * 0.072 - sin * 0.283],
        [0.213 - cos * 0.213 - sin * 0.787, 0.715 - cos * 0.715 + sin * 0.715, 0.072 + cos * 0.928 + sin * 0.072],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgba;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const STILL: Variation =
        Variation { zoom: 1.0, shift: [0.0; 2], angle: 0.0, brightness: 1.0, contrast: 1.0, saturation: 1.0, hue: 0.0 };

    fn tinted(variation: Variation, pixels: &[[u8; 4]]) -> Vec<[u8; 4]> {
        let mut picture = RgbaImage::from_fn(pixels.len() as u32, 1, |x, _| Rgba(pixels[x as usize]));
        variation.tint(&mut picture);
        picture.pixels().map(|pixel| pixel.0).collect()
    }

    #[test]
    fn versions_are_functions_of_content_number_and_bounds() {
        let all = Changes { jitter: 0.2, rotate: 10.0, brightness: 0.1, contrast: 0.2, saturation: 0.3, hue: 40.0 };
        assert_eq!(all.draw(HASH, 1), all.draw(HASH, 1));
        assert_ne!(all.draw(HASH, 1), all.draw(HASH, 2));
        assert_ne!(all.draw(HASH, 1), all.draw(&HASH.replace('b', "c"), 1));
        for number in 0..200 {
            let v = all.draw(HASH, number);
            assert!((0.8..=1.0).contains(&v.zoom) && v.shift.iter().all(|s| s.abs() <= 1.0), "{v:?}");
            assert!(v.angle.abs() <= 10_f64.to_radians() && v.hue.abs() <= 40_f64.to_radians(), "{v:?}");
            assert!((v.brightness - 1.0).abs() <= 0.1 && (v.saturation - 1.0).abs() <= 0.3, "{v:?}");
        }
        let nothing = Changes::default().draw(HASH, 3);
        assert_eq!(Variation { shift: [0.0; 2], ..nothing }, STILL);
    }

    #[test]
    fn colours_move_as_torchvision_moves_them() {
        let pixels = [[200, 100, 50, 255], [10, 20, 30, 255], [255, 255, 255, 0]];
        assert_eq!(tinted(STILL, &pixels), pixels);
        let bright = tinted(Variation { brightness: 1.5, ..STILL }, &pixels);
        assert_eq!(bright[..2], [[255, 150, 75, 255], [15, 30, 45, 255]]);
        // Mean luminance of what shows: (124.2 + 18.15) / 2 = 71.175.
        let flat = tinted(Variation { contrast: 0.5, ..STILL }, &pixels);
        assert_eq!(flat[..2], [[136, 86, 61, 255], [41, 46, 51, 255]]);
        let grey = tinted(Variation { saturation: 0.0, ..STILL }, &pixels);
        assert_eq!(grey[..2], [[124, 124, 124, 255], [18, 18, 18, 255]]);
        let turned =
            tinted(Variation { hue: 120_f64.to_radians(), ..STILL }, &[[128, 128, 128, 9], [200, 100, 100, 255]]);
        assert_eq!(turned[0], [128, 128, 128, 9], "grey has no hue");
        assert!(turned[1][1] > turned[1][0] && turned[1][1] > turned[1][2], "red has become green: {turned:?}");
    }
}
