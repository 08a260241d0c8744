//! The picture and what it is held against, as this window paints them: by a shader from the numbers themselves, from the
//! engine's own memory where that is on the same GPU, else by egui from textures.

use egui::emath::GuiRounding as _;
use egui::{Color32, Rect, Shape, Stroke, TextureHandle, Ui, Vec2, pos2};

use crate::ui::gpu_paint::{self, Divider, Planes, Split};
use crate::ui::studio::View;

pub enum Pair<'a> {
    Planes(&'a Planes, Option<&'a Planes>),
    Textures(&'a TextureHandle, Option<&'a TextureHandle>),
}

impl<'a> Pair<'a> {
    /// `None` before the first picture.
    pub fn of(ui: &Ui, view: &'a View) -> Option<Self> {
        let is_compared = view.against.is_some();
        if let (Some(picture), true) = (&view.seen.picture, gpu_paint::can_paint(ui.ctx())) {
            return Some(Self::Planes(picture, view.seen.other.as_ref().filter(|_| is_compared)));
        }
        let other = view.other.as_ref().filter(|_| is_compared);
        Some(Self::Textures(&view.picture.as_ref()?.texture, other.map(|other| &other.texture)))
    }

    /// Of the picture, in its own pixels.
    pub fn size(&self) -> Vec2 {
        match self {
            Self::Planes(picture, _) => picture.size.map(|side| side as f32).into(),
            Self::Textures(picture, _) => picture.size_vec2(),
        }
    }

    pub fn is_compared(&self) -> bool {
        matches!(self, Self::Planes(_, Some(_)) | Self::Textures(_, Some(_)))
    }

    /// Paints the picture over `rect`, and the other one over its part left of the divider.
    pub fn paint(&self, ui: &Ui, rect: Rect, divider: Divider) {
        match *self {
            Self::Planes(picture, other) => {
                let scale = ui.pixels_per_point();
                let split = Split { picture, before: other.map(|other| (other, divider)) };
                ui.painter().add(split.shape(rect.round_to_pixels(scale), scale));
            }
            Self::Textures(picture, other) => {
                texture(ui, rect, 1.0, picture);
                if let Some(other) = other {
                    texture(ui, rect, divider.at, other);
                    let x = rect.left() + divider.at * rect.width();
                    ui.painter().vline(x, rect.y_range(), Stroke::new(divider.width, divider.color));
                }
            }
        }
    }
}

/// The left `share` of a picture over `rect`.
fn texture(ui: &Ui, rect: Rect, share: f32, picture: &TextureHandle) {
    let part = |whole: Rect| Rect::from_min_max(whole.min, pos2(whole.left() + share * whole.width(), whole.bottom()));
    let uv = part(Rect::from_min_max(pos2(0.0, 0.0), pos2(1.0, 1.0)));
    ui.painter().add(Shape::image(picture.id(), part(rect), uv, Color32::WHITE));
}
