//! One layer: its singular values as bars, and what they say.

use egui::{Color32, CornerRadius, Rect, RichText, Sense, Ui, WidgetInfo, WidgetType, pos2, vec2};

use super::shown::{Column, number};
use crate::engine::spectrum::{effective_rank, normalised_entropy, participation_ratio, rank_for_energy, stable_rank};
use crate::ui::theme;

/// Width of the numbers beside the bars.
const NUMBERS: f32 = 168.0;
const LOWEST_BARS: f32 = 60.0;

pub fn show(ui: &mut Ui, column: &Column, height: f32) {
    ui.add(egui::Label::new(RichText::new(&column.layer.words).strong()).truncate())
        .on_hover_text(&column.layer.module);
    let below = (height - ui.text_style_height(&egui::TextStyle::Body) - 2.0 * theme::GAP).max(LOWEST_BARS);
    ui.horizontal_top(|ui| {
        let width = (ui.available_width() - NUMBERS - theme::GAP).max(80.0);
        bars(ui, column, vec2(width, below));
        ui.vertical(|ui| numbers(ui, &column.values));
    });
}

/// Full where they hold 90 % of the energy, weaker up to 99 %, faint after that.
fn bars(ui: &mut Ui, column: &Column, size: egui::Vec2) {
    let values = &column.values;
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    let count = values.len();
    let [most, nearly_all] = [0.9, 0.99].map(|share| rank_for_energy(values, share));
    let palette = theme::palette(ui);
    let color = |i: usize| -> Color32 {
        if i < most {
            palette.accent
        } else if i < nearly_all {
            palette.accent.gamma_multiply(0.55)
        } else {
            palette.faint
        }
    };
    let strongest = values.first().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let step = rect.width() / count.max(1) as f32;
    let gap = if step > 4.0 { 2.0 } else { 0.0 };
    for (i, &value) in values.iter().enumerate() {
        // A point at least, so that a vanished value is still seen to be there.
        let tall = ((value / strongest) as f32 * rect.height()).max(1.0);
        let left = rect.left() + i as f32 * step;
        let bar = Rect::from_min_max(pos2(left, rect.bottom() - tall), pos2(left + step - gap, rect.bottom()));
        ui.painter().rect_filled(bar, CornerRadius { nw: 1, ne: 1, sw: 0, se: 0 }, color(i));
    }
    let text = format!("Singular values of {}: {}", column.layer.words, listed(values));
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Other, true, &text));
    let hovered = response.hover_pos().map(|at| ((at.x - rect.left()) / step) as usize).filter(|&i| i < count);
    let energy: f64 = values.iter().map(|x| x * x).sum();
    response.on_hover_ui_at_pointer(|ui| {
        if let Some(i) = hovered {
            let share = if energy > 0.0 { 100.0 * values[i].powi(2) / energy } else { 0.0 };
            ui.label(format!("Direction {}: {}, {share:.1} % of the energy", i + 1, number(values[i])));
        }
        ui.weak("Full: 90 % of the energy. Weaker: up to 99 %. Grey: the rest");
    });
}

fn numbers(ui: &mut Ui, values: &[f64]) {
    ui.spacing_mut().item_spacing.y = 1.0;
    let count = values.len();
    let [most, nearly_all] = [0.9, 0.99].map(|share| rank_for_energy(values, share));
    let lines = [
        (
            format!("effective rank {:.1} of {count}", effective_rank(values)),
            "How many directions the layer really uses: exp of the entropy of its singular values",
        ),
        (
            format!("90 % of energy in {most}, 99 % in {nearly_all}"),
            "The fewest directions that hold this much of the layer's change. Far below its rank, a smaller rank would do",
        ),
        (format!("stable rank {:.1}", stable_rank(values)), "The whole energy over that of the strongest direction"),
        (
            format!("participation {:.1}", participation_ratio(values)),
            "How many directions share the energy, were they equally strong",
        ),
        (
            format!("evenness {:.0} %", 100.0 * normalised_entropy(values)),
            "100 %: all directions are equally strong. 0 %: one does everything",
        ),
    ];
    for (text, tip) in lines {
        ui.add(egui::Label::new(RichText::new(text).small()).truncate()).on_hover_text(tip);
    }
}

fn listed(values: &[f64]) -> String {
    values.iter().map(|&x| number(x)).collect::<Vec<_>>().join(", ")
}
