//! The colours of magnitudes: matplotlib's inferno, whose lightness rises evenly for every kind of colour vision.
//!
//! The twin of `inferno` in `shaders/paint/heat_strip.wgsl`, for legends.

use egui::Color32;

/// Coefficients of t⁰ to t⁶, each red, green, blue (Matt Zucker's fit, CC0).
#[expect(clippy::excessive_precision, reason = "as published")]
const INFERNO: [[f32; 3]; 7] = [
    [0.000_218_94, 0.001_651_00, -0.019_480_90],
    [0.106_513_42, 0.563_956_44, 3.932_712_39],
    [11.602_493_08, -3.972_853_97, -15.942_394_11],
    [-41.703_996_13, 17.436_398_88, 44.354_145_20],
    [77.162_935_70, -33.402_358_94, -81.807_309_26],
    [-71.319_428_25, 32.626_064_26, 73.209_519_86],
    [25.131_126_22, -12.242_668_95, -23.070_325_00],
];

/// The colour of `t`, from 0, nearly black, to 1, a pale yellow.
pub fn inferno(t: f32) -> Color32 {
    let t = t.clamp(0.0, 1.0);
    let channel = |i: usize| INFERNO.iter().rev().fold(0.0, |sum, c| sum * t + c[i]).clamp(0.0, 1.0);
    let [r, g, b] = [0, 1, 2].map(|i| (channel(i) * 255.0).round() as u8);
    Color32::from_rgb(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CIE lightness.
    fn lightness(color: Color32) -> f32 {
        let linear = |c: u8| {
            let c = f32::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        let y = 0.2126 * linear(color.r()) + 0.7152 * linear(color.g()) + 0.0722 * linear(color.b());
        if y > 0.008_856 { 116.0 * y.cbrt() - 16.0 } else { 903.3 * y }
    }

    #[test]
    fn lightness_rises_evenly() {
        let steps: Vec<f32> = (0..=20).map(|i| lightness(inferno(i as f32 / 20.0))).collect();
        let rises: Vec<f32> = steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(rises.iter().all(|rise| (1.0..9.0).contains(rise)), "{rises:?}");
        assert!(steps[0] < 2.0 && steps[20] > 95.0, "{steps:?}");
    }
}
