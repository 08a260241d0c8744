//! What SDXL's denoiser reads beside the text: a prompt summed up in one vector, and sizes in pixels (Podell et al. 2023,
//! arXiv 2307.01952, section 2.2).

use burn::tensor::{Device, Int, Tensor, TensorData};

/// A picture's size before it was made ready, what was cut away of it, and its size as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// `[height, width]`, as all sizes here.
    pub original: [usize; 2],
    /// `[top, left]` of the cut, in pixels of the scaled picture.
    pub crop: [usize; 2],
    pub target: [usize; 2],
}

impl Framing {
    /// Of a picture of which nothing is missing.
    pub fn whole(size: [usize; 2]) -> Self {
        Self { original: size, crop: [0; 2], target: size }
    }

    /// Of a picture that fills a frame by its middle: kohya's rule (`library/train_util.py`, `get_crop_ltrb`).
    pub fn filling(original: [usize; 2], target: [usize; 2]) -> Self {
        let scale = (0..2).map(|axis| target[axis] as f64 / original[axis].max(1) as f64).fold(0.0, f64::max);
        let crop = [0, 1].map(|axis| {
            let scaled = (original[axis] as f64 * scale + 0.5) as usize;
            scaled.saturating_sub(target[axis]) / 2
        });
        Self { original, crop, target }
    }

    /// In the order in which the model reads them (`StableDiffusionXLPipeline._get_add_time_ids`).
    pub fn numbers(&self) -> [f32; 6] {
        let [[h, w], [top, left], [height, width]] = [self.original, self.crop, self.target];
        [h, w, top, left, height, width].map(|n| n as f32)
    }
}

/// For each picture.
#[derive(Clone, Debug)]
pub struct Pooled {
    /// `[b, width]`.
    pub text: Tensor<2>,
    /// As many.
    pub framings: Vec<Framing>,
}

impl Pooled {
    /// Of the pictures of these numbers, in their order.
    #[must_use]
    pub fn rows(&self, rows: &[usize]) -> Self {
        let text = self.text.clone().select(0, index(rows, &self.text.device()));
        Self { text, framings: rows.iter().map(|&row| self.framings[row]).collect() }
    }

    /// Of the pictures of each of `parts` in turn; `None` where there are none.
    pub fn cat(parts: &[&Self]) -> Option<Self> {
        let text = || Tensor::cat(parts.iter().map(|pooled| pooled.text.clone()).collect(), 0);
        let framings = || parts.iter().flat_map(|pooled| pooled.framings.clone()).collect();
        (!parts.is_empty()).then(|| Self { text: text(), framings: framings() })
    }
}

/// Numbers of rows as a tensor.
pub fn index(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let numbers: Vec<i32> = rows.iter().map(|&row| i32::try_from(row).unwrap_or(0)).collect();
    Tensor::from_data(TensorData::new(numbers, [rows.len()]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_frame_cuts_away_is_told_in_pixels_of_the_scaled_picture() {
        // 1920×1080 in the bucket 1344×768 is scaled to 1365×768.
        let wide = Framing::filling([1080, 1920], [768, 1344]);
        assert_eq!(wide, Framing { original: [1080, 1920], crop: [0, 10], target: [768, 1344] });
        assert_eq!(wide.numbers().map(|x| x as usize), [1080, 1920, 0, 10, 768, 1344]);
        assert_eq!(Framing::filling([1500, 1000], [1024, 1024]).crop, [256, 0]);
        assert_eq!(Framing::filling([64, 64], [64, 64]), Framing::whole([64, 64]));
    }
}
