//! Who gets in whose way: a table of overlaps, and a sentence for each pair.

use egui::{Color32, RichText, Sense, Ui, vec2};

use crate::engine::merge::meeting::{Meeting, Pair};
use crate::ui::studio::Studio;
use crate::ui::theme;

const CELL: f32 = 52.0;
/// Cosine at which a cell has its full colour.
const FULL: f64 = 0.4;
/// What rounding leaves of two adapters that do not meet.
const NOTHING: f64 = 1e-4;

pub fn ui(ui: &mut Ui, studio: &Studio) {
    if studio.project.desk.faders.len() < 2 {
        ui.weak("With a second adapter on the desk, a table here says how far the two get in each other's way");
        return;
    }
    ui.strong("Overlap");
    match &studio.meeting {
        None => drop(ui.weak("measuring…")),
        Some((_, Err(error))) => drop(ui.colored_label(theme::palette(ui).error, error.to_string())),
        Some((files, Ok(meeting))) => {
            let names: Vec<String> = files
                .iter()
                .map(|file| studio.adapter(file).map_or_else(String::new, |card| card.entry.name.clone()))
                .collect();
            table(ui, &names, meeting);
            ui.scope(|ui| sentences(ui, &names, meeting));
        }
    }
}

fn table(ui: &mut Ui, names: &[String], meeting: &Meeting) {
    let pair = |i: usize, j: usize| meeting.pairs.iter().find(|pair| (pair.first, pair.second) == (i.min(j), i.max(j)));
    egui::ScrollArea::horizontal().id_salt("overlap").show(ui, |ui| {
        egui::Grid::new("overlap").spacing(vec2(3.0, 3.0)).show(ui, |ui| {
            for (i, name) in names.iter().enumerate() {
                ui.allocate_ui(vec2(92.0, 20.0), |ui| ui.add(egui::Label::new(name).truncate()));
                for (j, other) in names.iter().enumerate() {
                    cell(ui, (i != j).then(|| pair(i, j)).flatten(), &format!("{name} and {other}"));
                }
                ui.end_row();
            }
        });
    });
}

fn cell(ui: &mut Ui, pair: Option<&Pair>, who: &str) {
    let (rect, response) = ui.allocate_exact_size(vec2(CELL, 24.0), Sense::hover());
    let Some(Pair { overlap, .. }) = pair else {
        ui.painter().rect_filled(rect, 3.0, theme::palette(ui).card);
        return;
    };
    let none = overlap.product_max < NOTHING;
    let text = if none { "0".to_owned() } else { format!("{:+.2}", overlap.cosine) };
    let share = if none { 0.0 } else { (overlap.cosine / FULL).clamp(-1.0, 1.0) };
    let fill = diverging(ui, share);
    ui.painter().rect_filled(rect, 3.0, fill);
    let ink = if luminance(fill) > 0.45 { Color32::BLACK } else { Color32::WHITE };
    let font = egui::TextStyle::Small.resolve(ui.style());
    ui.painter().text(rect.center(), egui::Align2::CENTER_CENTER, &text, font, ink);
    let about = format!(
        "{who}: cosine {:+.3}, largest product {:.1e}\n{}",
        overlap.cosine, overlap.product_max, overlap.sentence
    );
    response.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::Label, true, format!("{who}: {text}")));
    response.on_hover_text(about);
}

/// From blue (against each other) over the card's colour to orange (the same way): told apart by every eye.
fn diverging(ui: &Ui, share: f64) -> Color32 {
    let to = if share < 0.0 { Color32::from_rgb(0x2c, 0x6f, 0xbb) } else { Color32::from_rgb(0xe0, 0x82, 0x14) };
    theme::palette(ui).card.lerp_to_gamma(to, share.abs() as f32)
}

fn luminance(color: Color32) -> f32 {
    let [r, g, b, _] = color.to_array().map(|x| f32::from(x) / 255.0);
    0.299 * r + 0.587 * g + 0.114 * b
}

fn sentences(ui: &mut Ui, names: &[String], meeting: &Meeting) {
    // The strips above may be wider than what is seen of the panel.
    let seen = ui.clip_rect().right() - ui.cursor().left() - ui.spacing().item_spacing.x;
    ui.set_max_width(ui.available_width().min(seen));
    let palette = theme::palette(ui);
    if let Some(certificate) = &meeting.certificate {
        let (sign, color) = if certificate.disjoint { ("✔ ", palette.good) } else { ("⚠ ", palette.warning) };
        ui.label(RichText::new(format!("{sign}{}", certificate.sentence)).color(color));
    }
    for Pair { first, second, overlap } in &meeting.pairs {
        ui.label(format!("{} and {}: {}", names[*first], names[*second], overlap.sentence));
    }
}
