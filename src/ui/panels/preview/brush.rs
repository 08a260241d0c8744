//! A mask, painted over the picture that the preview starts from: with the pointer, or with arrow keys and Space.

use egui::{
    Color32, ColorImage, EventFilter, Key, Pos2, Rect, Sense, Stroke, TextureHandle, TextureOptions, Ui, pos2, vec2,
};

use crate::engine::preview::Mask;
use crate::ui::theme;
use crate::ui::work::painter::Picture;

/// The longer side of a mask in its own pixels: eight to a latent pixel of the starter, four of a model of 512 pixels.
const GRAIN: u32 = 128;
/// Height of the picture in points at most.
const HIGHEST: f32 = 260.0;
/// How opaque the paint is on the picture.
const VEIL: f32 = 0.55;

pub struct Brush {
    /// In pixels of the mask.
    radius: f32,
    erases: bool,
    /// While the pointer is down: the mask as it will be, and where the pointer was last.
    stroke: Option<(Mask, [f32; 2])>,
    /// Where the keys have moved the brush to, in pixels of the mask.
    place: [f32; 2],
    /// The mask in view.
    shown: Option<(Mask, TextureHandle)>,
}

impl Default for Brush {
    fn default() -> Self {
        Self { radius: 8.0, erases: false, stroke: None, place: [0.0; 2], shown: None }
    }
}

impl Brush {
    /// `mask` is changed when a stroke is done.
    pub fn ui(&mut self, ui: &mut Ui, picture: &Picture, mask: &mut Option<Mask>) {
        ui.weak("Paint over what is to change; without paint, all of it may");
        self.tools(ui, picture, mask);
        let sides = picture.texture.size_vec2();
        let scale = (ui.available_width() / sides.x).min(HIGHEST / sides.y);
        let (rect, response) = ui.allocate_exact_size(sides * scale, Sense::click_and_drag());
        response.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::Image, true, "Mask over the picture"));
        let response = response.on_hover_text("Drag to paint; or the arrow keys move the brush, and Space paints");
        let size = mask.as_ref().map_or_else(|| grain(picture), Mask::size);
        let per_point = size[0] as f32 / rect.width();
        let place = |at: Pos2| [(at.x - rect.left()) * per_point, (at.y - rect.top()) * per_point];
        if let Some(at) = response.interact_pointer_pos() {
            response.request_focus();
            self.place = place(at);
            let begun = self.stroke.take().unwrap_or_else(|| (painted(mask.as_ref(), size), self.place));
            self.stroke = Some(self.dab(begun));
        } else if let Some((stroke, _)) = self.stroke.take() {
            *mask = some(stroke);
        }
        if response.has_focus() {
            self.keys(ui, &response, size, mask);
        }
        let now = self.stroke.as_ref().map(|(stroke, _)| stroke).or(mask.as_ref()).cloned();
        self.draw(ui, rect, picture, now);
        if response.has_focus() || response.hovered() {
            let at = response.hover_pos().unwrap_or(rect.min + vec2(self.place[0], self.place[1]) / per_point);
            let radius = self.radius / per_point;
            ui.painter().with_clip_rect(rect).circle_stroke(at, radius, Stroke::new(1.5, theme::palette(ui).accent));
        }
    }

    fn tools(&mut self, ui: &mut Ui, picture: &Picture, mask: &mut Option<Mask>) {
        ui.horizontal_wrapped(|ui| {
            ui.selectable_value(&mut self.erases, false, "Paint").on_hover_text("What is painted is made anew");
            ui.selectable_value(&mut self.erases, true, "Erase").on_hover_text("What is erased stays as it is");
            let label = ui.label("Brush size");
            ui.add(egui::DragValue::new(&mut self.radius).range(1.0..=GRAIN as f32 / 2.0).speed(0.2).max_decimals(0))
                .labelled_by(label.id);
            if ui.add_enabled(mask.is_some(), egui::Button::new("Clear mask")).clicked() {
                *mask = None;
            }
            if ui.button("Invert mask").on_hover_text("What was to change stays, and the rest changes").clicked() {
                let mut inverted = painted(mask.as_ref(), grain(picture));
                inverted.invert();
                *mask = some(inverted);
            }
        });
    }

    /// Paints from where the brush was to where it is.
    fn dab(&self, (mut mask, from): (Mask, [f32; 2])) -> (Mask, [f32; 2]) {
        mask.stroke([from, self.place], self.radius, !self.erases);
        (mask, self.place)
    }

    fn keys(&mut self, ui: &Ui, response: &egui::Response, size: [u32; 2], mask: &mut Option<Mask>) {
        let arrows = EventFilter { horizontal_arrows: true, vertical_arrows: true, ..EventFilter::default() };
        ui.memory_mut(|memory| memory.set_focus_lock_filter(response.id, arrows));
        let pressed = |key| ui.input(|input| f32::from(u8::from(input.key_pressed(key))));
        let by = [pressed(Key::ArrowRight) - pressed(Key::ArrowLeft), pressed(Key::ArrowDown) - pressed(Key::ArrowUp)];
        for ((place, by), side) in self.place.iter_mut().zip(by).zip(size) {
            *place = (*place + by * self.radius).clamp(0.0, side as f32);
        }
        if pressed(Key::Space) > 0.0 {
            *mask = some(self.dab((painted(mask.as_ref(), size), self.place)).0);
        }
    }

    fn draw(&mut self, ui: &Ui, rect: Rect, picture: &Picture, mask: Option<Mask>) {
        let whole = Rect::from_min_max(Pos2::ZERO, pos2(1.0, 1.0));
        ui.painter().image(picture.texture.id(), rect, whole, Color32::WHITE);
        let Some(mask) = mask else { return };
        if self.shown.as_ref().is_none_or(|(shown, _)| *shown != mask) {
            let paint = theme::palette(ui).accent.gamma_multiply(VEIL);
            let grey = mask.picture();
            let pixels = grey.pixels().map(|pixel| if pixel.0[0] > 0 { paint } else { Color32::TRANSPARENT });
            let image = ColorImage::new([grey.width() as usize, grey.height() as usize], pixels.collect());
            let texture = ui.ctx().load_texture("mask", image, TextureOptions::NEAREST);
            self.shown = Some((mask, texture));
        }
        if let Some((_, texture)) = &self.shown {
            ui.painter().image(texture.id(), rect, whole, Color32::WHITE);
        }
    }
}

/// The mask to paint on.
fn painted(mask: Option<&Mask>, size: [u32; 2]) -> Mask {
    mask.cloned().unwrap_or_else(|| Mask::new(size))
}

/// One without any paint is none.
fn some(mask: Mask) -> Option<Mask> {
    Some(mask).filter(|mask| !mask.is_empty())
}

/// Size of a new mask for a picture: of its shape.
fn grain(picture: &Picture) -> [u32; 2] {
    let (width, height) = picture.image.dimensions();
    let longer = f64::from(width.max(height));
    [width, height].map(|side| ((f64::from(side) * f64::from(GRAIN) / longer).round() as u32).max(1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use egui_kittest::Harness;
    use egui_kittest::kittest::Queryable as _;

    use super::*;
    use crate::ui::work::painter::texture;

    struct Desk {
        brush: Brush,
        mask: Option<Mask>,
        picture: Option<Picture>,
    }

    fn desk<'a>() -> Harness<'a, Desk> {
        let show = |ui: &mut Ui, desk: &mut Desk| {
            let picture = desk.picture.get_or_insert_with(|| {
                let image = image::RgbImage::new(64, 32);
                let texture = texture(&image, ui.ctx());
                Picture { image: Arc::new(image), texture, coarse: false, seconds: 0.0, heard: Arc::from([]) }
            });
            desk.brush.ui(ui, picture, &mut desk.mask);
        };
        let mut desk = Harness::builder()
            .with_size([226.0, 400.0])
            .build_ui_state(show, Desk { brush: Brush::default(), mask: None, picture: None });
        desk.run_steps(2);
        desk
    }

    /// Painted pixels left, in the middle, and right, and how many there are.
    fn found(desk: &Harness<'_, Desk>) -> ([bool; 3], usize) {
        let grey = desk.state().mask.as_ref().map(Mask::picture);
        let at = |x: u32| grey.as_ref().is_some_and(|grey| grey.get_pixel(x, 32).0[0] > 0);
        ([8, 64, 120].map(at), grey.iter().flat_map(|grey| grey.pixels()).filter(|pixel| pixel.0[0] > 0).count())
    }

    fn drag(desk: &mut Harness<'_, Desk>, from: f32, to: f32) {
        let rect = desk.get_by_label("Mask over the picture").rect();
        let at = |x: f32| pos2(rect.left() + x * rect.width(), rect.center().y);
        desk.hover_at(at(from));
        desk.run_steps(2);
        desk.drag_at(at(from));
        desk.run_steps(2);
        desk.hover_at(at(to));
        desk.run_steps(2);
        desk.drop_at(at(to));
        desk.run_steps(3);
    }

    #[test]
    fn the_pointer_paints_and_erases() {
        let mut desk = desk();
        drag(&mut desk, 0.06, 0.5);
        let (places, count) = found(&desk);
        assert_eq!((places, desk.state().mask.as_ref().map(Mask::size)), ([true, true, false], Some([128, 64])));
        assert!(count > 800, "{count}");
        desk.get_by_label("Erase").click();
        desk.run_steps(2);
        drag(&mut desk, 0.5, 0.5);
        assert_eq!(found(&desk).0, [true, false, false]);
        desk.get_by_label("Invert mask").click();
        desk.run_steps(2);
        assert_eq!(found(&desk).0, [false, true, true]);
        desk.get_by_label("Clear mask").click();
        desk.run_steps(2);
        assert!(desk.state().mask.is_none());
    }

    #[test]
    fn keys_paint_too() {
        let mut desk = desk();
        desk.get_by_label("Mask over the picture").focus();
        desk.run_steps(2);
        for key in [Key::ArrowRight, Key::ArrowDown, Key::ArrowDown, Key::ArrowDown, Key::ArrowDown, Key::Space] {
            desk.key_press(key);
            desk.run_steps(2);
        }
        let (places, count) = found(&desk);
        assert_eq!(places, [true, false, false]);
        assert!((150..260).contains(&count), "one dab of radius 8: {count}");
    }
}
