//! The picture, and what it is held against on either side of a divider.

use egui::{ComboBox, Key, Pos2, Rect, Sense, Ui, vec2};

use super::pair::Pair;
use crate::ui::command::Command;
use crate::ui::gpu_paint::Divider;
use crate::ui::studio::{Against, Studio};
use crate::ui::theme;

/// Share of the picture that a press of an arrow key moves the divider by.
const NUDGE: f32 = 0.05;
/// Least room for the picture in points.
const LEAST: f32 = 120.0;

pub struct Canvas {
    /// Where the divider is: 0 the left edge, 1 the right one.
    divider: f32,
}

impl Default for Canvas {
    fn default() -> Self {
        Self { divider: 0.5 }
    }
}

impl Canvas {
    pub fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        against(ui, studio, out);
        let Some(pair) = Pair::of(ui, &studio.preview) else {
            let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), LEAST), Sense::hover());
            ui.painter().rect_filled(rect, 4.0, theme::palette(ui).card);
            return;
        };
        let room = vec2(ui.available_width(), (ui.clip_rect().height() * 0.42).max(LEAST));
        let size = fitted(pair.size(), room);
        let (whole, _) = ui.allocate_exact_size(vec2(room.x, size.y), Sense::hover());
        let rect = Rect::from_center_size(whole.center(), size);
        let focused = pair.is_compared() && self.drag(ui, rect);
        let width = if focused { 3.0 } else { 1.5 };
        pair.paint(ui, rect, Divider { at: self.divider, width, color: theme::palette(ui).accent });
        if let (Some(against), true) = (&studio.preview.against, pair.is_compared()) {
            names(ui, studio, rect, against);
        }
    }

    /// Moves the divider, and answers whether the keyboard is on it.
    fn drag(&mut self, ui: &Ui, rect: Rect) -> bool {
        let response = ui.interact(rect, ui.id().with("divider"), Sense::click_and_drag());
        response.widget_info(|| {
            egui::WidgetInfo::slider(true, f64::from(self.divider), "Divider between the two pictures")
        });
        if let Some(pointer) = response.interact_pointer_pos() {
            response.request_focus();
            self.divider = (pointer.x - rect.left()) / rect.width();
        }
        if response.has_focus() {
            ui.memory_mut(|memory| {
                memory.set_focus_lock_filter(
                    response.id,
                    egui::EventFilter { horizontal_arrows: true, ..egui::EventFilter::default() },
                );
            });
            let by = ui.input(|input| {
                f32::from(u8::from(input.key_pressed(Key::ArrowRight)))
                    - f32::from(u8::from(input.key_pressed(Key::ArrowLeft)))
            });
            self.divider += by * NUDGE;
        }
        self.divider = self.divider.clamp(0.0, 1.0);
        response.has_focus()
    }
}

/// Says what is on which side.
fn names(ui: &Ui, studio: &Studio, rect: Rect, against: &Against) {
    let name = match against {
        Against::Untouched => "untouched".into(),
        Against::Alone(file) => {
            format!("{} alone", studio.adapter(file).map_or("adapter", |card| card.entry.name.as_str()))
        }
    };
    label(ui, rect.left_bottom() + vec2(6.0, -6.0), egui::Align2::LEFT_BOTTOM, &name);
    label(ui, rect.right_bottom() + vec2(-6.0, -6.0), egui::Align2::RIGHT_BOTTOM, "mix");
}

/// What the picture is held against.
fn against(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("Compare with");
        let now = &studio.preview.against;
        let mut chosen = now.clone();
        let text = match now {
            None => "nothing".to_owned(),
            Some(Against::Untouched) => "the untouched model".into(),
            Some(Against::Alone(file)) => {
                studio.adapter(file).map_or_else(String::new, |card| format!("{} alone", card.entry.name))
            }
        };
        let combo = ComboBox::from_id_salt("against")
            .selected_text(text)
            .truncate()
            .width((ui.available_size_before_wrap().x - 8.0).clamp(60.0, 160.0))
            .show_ui(ui, |ui| {
                ui.selectable_value(&mut chosen, None, "nothing");
                ui.selectable_value(&mut chosen, Some(Against::Untouched), "the untouched model");
                for fader in &studio.project.desk.faders {
                    if let Some(card) = studio.adapter(&fader.file) {
                        let alone = Some(Against::Alone(fader.file.clone()));
                        ui.selectable_value(&mut chosen, alone, format!("{} alone", card.entry.name));
                    }
                }
            });
        combo.response.labelled_by(label.id);
        if chosen != *now {
            out.push(Command::Compare(chosen));
        }
    });
}

/// As large as fits; small pictures in whole multiples, so that every pixel stays a square.
fn fitted(size: egui::Vec2, room: egui::Vec2) -> egui::Vec2 {
    let scale = (room.x / size.x).min(room.y / size.y);
    size * if scale > 1.0 && scale < 12.0 { scale.floor() } else { scale }
}

fn label(ui: &Ui, at: Pos2, align: egui::Align2, text: &str) {
    let font = egui::TextStyle::Small.resolve(ui.style());
    let galley = ui.painter().layout_no_wrap(text.to_owned(), font, ui.visuals().text_color());
    let rect = align.anchor_size(at, galley.size());
    ui.painter().rect_filled(rect.expand(3.0), 3.0, ui.visuals().panel_fill.gamma_multiply(0.85));
    ui.painter().galley(rect.min, galley, ui.visuals().text_color());
}
