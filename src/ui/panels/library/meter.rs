//! How many slots of the shared basis are taken.

use std::collections::BTreeMap;

use egui::{Sense, Ui, WidgetInfo, WidgetType, pos2, vec2};

use crate::ui::studio::Studio;
use crate::ui::theme;

const HEIGHT: f32 = 8.0;
const GAP: f32 = 2.0;

/// The number of each taken slot with what has it: from the project, and from adapters that came from elsewhere.
pub fn taken(studio: &Studio) -> BTreeMap<usize, String> {
    let from_cards = studio
        .adapters
        .iter()
        .filter_map(|card| Some((card.content.ready()?.slot()?.parse().ok()?, card.entry.name.clone())));
    let claimed = studio.project.slots.iter().map(|slot| (slot.number, slot.token.clone()));
    claimed.chain(from_cards).collect()
}

pub fn show(ui: &mut Ui, taken: &BTreeMap<usize, String>, capacity: usize) {
    let used = taken.len();
    let text = format!("{used} of {capacity} slots used");
    let width = ui.available_width();
    let (rect, response) = ui.allocate_exact_size(vec2(width, HEIGHT), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(WidgetType::ProgressIndicator, true, &text));
    let palette = theme::palette(ui);
    // Cells that could not be told apart become one bar.
    let step = width / capacity.max(1) as f32;
    if step < 2.0 * GAP {
        ui.painter().rect_filled(rect, 2, palette.faint.gamma_multiply(0.4));
        let mut bar = rect;
        bar.set_width(rect.width() * (used as f32 / capacity.max(1) as f32).min(1.0));
        ui.painter().rect_filled(bar, 2, palette.accent);
    } else {
        for slot in 0..capacity {
            let left = pos2(rect.left() + slot as f32 * step, rect.top());
            let cell = egui::Rect::from_min_size(left, vec2(step - GAP, HEIGHT));
            let color = if taken.contains_key(&slot) { palette.accent } else { palette.faint.gamma_multiply(0.4) };
            ui.painter().rect_filled(cell, 2, color);
        }
    }
    response.on_hover_ui(|ui| {
        ui.label("Each concept owns a slot of the shared basis, so that concepts with different slots do not meet");
        for (slot, name) in taken {
            ui.label(format!("Slot {slot}: {name}"));
        }
    });
}
