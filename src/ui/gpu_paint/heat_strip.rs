//! A grid of magnitudes: a column for each layer, a row for each index.

use egui::{Rect, Shape};

use super::{Numbers, Painting, Thing};

pub(super) const THING: Thing =
    Thing { name: "heat_strip", shader: include_str!("../../../shaders/paint/heat_strip.wgsl"), lists: 1 };

#[derive(Clone)]
pub struct HeatStrip {
    /// Column by column; less than 0 where there is nothing to paint.
    pub values: Numbers,
    pub columns: usize,
    pub rows: usize,
    /// The values of the darkest and the brightest colour, both above 0.
    pub low: f32,
    pub high: f32,
    /// Pixels between two cells.
    pub gap: f32,
}

impl HeatStrip {
    pub fn shape(self, rect: Rect, pixels_per_point: f32) -> Shape {
        self.painting(rect, pixels_per_point).shape(rect)
    }

    pub(super) fn painting(self, rect: Rect, pixels_per_point: f32) -> Painting {
        let (low, high) = (self.low.log2(), self.high.log2());
        // Equal ends would divide by nothing.
        let high = if high > low { high } else { low + 1.0 };
        let words = vec![self.columns as f32, self.rows as f32, low, high, self.gap];
        Painting::new(&THING, rect, pixels_per_point, words, vec![self.values])
    }
}
