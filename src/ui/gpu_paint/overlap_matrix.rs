//! Who gets in whose way: signed cosines as a square of cells.

use egui::{Color32, Rect, Shape, Vec2};

use super::{Numbers, Painting, Thing};

pub(super) const THING: Thing =
    Thing { name: "overlap_matrix", shader: include_str!("../../../shaders/paint/overlap_matrix.wgsl"), lists: 1 };

#[derive(Clone)]
pub struct OverlapMatrix {
    /// Row by row; 0 where there is nothing to say.
    pub cosines: Numbers,
    pub count: usize,
    /// The cosine of the full colour.
    pub full: f32,
    /// Of −`full`, 0 and `full`.
    pub colors: [Color32; 3],
    /// Of a cell, and from one to the next, in points.
    pub cell: Vec2,
    pub step: Vec2,
    pub radius: f32,
}

impl OverlapMatrix {
    pub fn shape(self, rect: Rect, pixels_per_point: f32) -> Shape {
        self.painting(rect, pixels_per_point).shape(rect)
    }

    pub(super) fn painting(self, rect: Rect, pixels_per_point: f32) -> Painting {
        let colors = self.colors.iter().flat_map(|color| color.to_normalized_gamma_f32());
        let Vec2 { x, y } = self.cell * pixels_per_point;
        let step = self.step * pixels_per_point;
        let rest = [x, y, step.x, step.y, self.count as f32, self.full, self.radius * pixels_per_point];
        let words = colors.chain(rest).collect();
        Painting::new(&THING, rect, pixels_per_point, words, vec![self.cosines])
    }
}
