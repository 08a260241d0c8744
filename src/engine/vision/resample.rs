//! Pillow's resizing, bit for bit (`src/libImaging/Resample.c`, 8 bits a channel): classifiers were trained on what it
//! makes, and near ties between classes turn on its roundings.

use image::RgbImage;

/// Bits behind the point of a weight.
const BITS: u32 = 32 - 8 - 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    /// With a = −½.
    Bicubic,
    /// Of three lobes.
    Lanczos,
}

/// What a pixel of the result is made of: so many pixels from `first` on, each times its weight.
struct Mix {
    first: usize,
    weights: Vec<i32>,
}

impl Filter {
    /// Half of its width.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { libm::sin(x) / x }
        };
        match self {
            _ if x >= self.support() => 0.0,
            Self::Bilinear => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }

    /// How a line of `before` pixels becomes one of `behind`.
    fn mixes(self, before: usize, behind: usize) -> Vec<Mix> {
        let scale = before as f64 / behind as f64;
        let wide = scale.max(1.0);
        let support = self.support() * wide;
        (0..behind)
            .map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize;
                let last = ((centre + support + 0.5) as usize).min(before);
                let weights = (first..last).map(|x| self.at((x as f64 - centre + 0.5) / wide));
                let weights: Vec<f64> = weights.collect();
                let sum: f64 = weights.iter().sum();
                let fixed = |w: &f64| (w / sum * f64::from(1 << BITS)).round() as i32;
                Mix { first, weights: weights.iter().map(fixed).collect() }
            })
            .collect()
    }
}

/// A picture at another size, along its rows first.
pub fn resize(picture: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (w, h) = picture.dimensions();
    let along = if w == width {
        picture.clone()
    } else {
        let mixes = filter.mixes(w as usize, width as usize);
        RgbImage::from_fn(width, h, |x, y| mixed(&mixes[x as usize], |at| picture.get_pixel(at as u32, y).0))
    };
    if h == height {
        return along;
    }
    let mixes = filter.mixes(h as usize, height as usize);
    RgbImage::from_fn(width, height, |x, y| mixed(&mixes[y as usize], |at| along.get_pixel(x, at as u32).0))
}

fn mixed(mix: &Mix, pixel: impl Fn(usize) -> [u8; 3]) -> image::Rgb<u8> {
    let mut sums = [1_i32 << (BITS - 1); 3];
    for (i, &weight) in mix.weights.iter().enumerate() {
        let of = pixel(mix.first + i);
        sums.iter_mut().zip(of).for_each(|(sum, v)| *sum += i32::from(v) * weight);
    }
    image::Rgb(sums.map(|sum| (sum >> BITS).clamp(0, 255) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// `Image.frombytes("RGB", (7, 5), …).resize(size, filter)` in Pillow 13.0: sums of each channel and a few pixels.
    #[test]
    fn pixels_are_pillows() {
        let picture = RgbImage::from_fn(7, 5, |x, y| {
            Rgb([(x * 37 + y * 91) as u8, (x * x * 5 + y * 13) as u8, (255 - x * y * 11 % 256) as u8])
        });
        for (filter, size, sums, pixels) in PILLOW {
            let found = resize(&picture, size[0], size[1], filter);
            let sum = |c: usize| found.pixels().map(|pixel| u32::from(pixel.0[c])).sum::<u32>();
            assert_eq!([0, 1, 2].map(sum), sums, "{filter:?} {size:?}");
            for ([x, y], expected) in
                [[0, 0], [size[0] / 2, size[1] / 2], [size[0] - 1, size[1] - 1]].into_iter().zip(pixels)
            {
                assert_eq!(found.get_pixel(x, y).0, expected, "{filter:?} {size:?} at {x}, {y}");
            }
        }
    }

    type Case = (Filter, [u32; 2], [u32; 3], [[u8; 3]; 3]);
    const PILLOW: [Case; 6] = [
        (Filter::Bilinear, [3, 4], [1412, 1076, 2338], [[55, 9, 253], [96, 84, 170], [83, 184, 111]]),
        (Filter::Bilinear, [16, 11], [20652, 16016, 34519], [[0, 0, 255], [45, 79, 184], [74, 232, 247]]),
        (Filter::Bicubic, [3, 4], [1413, 1072, 2337], [[42, 5, 254], [85, 81, 168], [76, 190, 110]]),
        (Filter::Bicubic, [16, 11], [20726, 16040, 34469], [[0, 0, 255], [45, 78, 184], [63, 238, 255]]),
        (Filter::Lanczos, [3, 4], [1415, 1072, 2335], [[34, 4, 254], [74, 79, 169], [74, 193, 108]]),
        (Filter::Lanczos, [16, 11], [20798, 16007, 34426], [[0, 0, 255], [52, 77, 185], [51, 239, 255]]),
    ];
}
