//! Who gets in whose way: a table of overlaps, and a sentence for each pair.

use egui::emath::GuiRounding as _;
use egui::{Color32, Rect, RichText, Sense, Shape, Ui, Vec2, vec2};

use crate::engine::merge::meeting::{Meeting, Pair};
use crate::ui::gpu_paint::{self, Numbers, OverlapMatrix};
use crate::ui::studio::Studio;
use crate::ui::theme;

const CELL: Vec2 = vec2(52.0, 24.0);
const RADIUS: f32 = 3.0;
/// Between two cells.
const APART: f32 = 3.0;
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
    let others = |i: usize, j: usize| (i != j).then(|| pair(i, j)).flatten();
    egui::ScrollArea::horizontal().id_salt("overlap").show(ui, |ui| {
        // The colours lie under the words, and where they are is known when the words are laid out.
        let under = ui.painter().add(Shape::Noop);
        let mut cells = Vec::new();
        egui::Grid::new("overlap").spacing(Vec2::splat(APART)).show(ui, |ui| {
            for (i, name) in names.iter().enumerate() {
                ui.allocate_ui(vec2(92.0, 20.0), |ui| ui.add(egui::Label::new(name).truncate()));
                for (j, other) in names.iter().enumerate() {
                    let pair = others(i, j);
                    cells.push((cell(ui, pair, &format!("{name} and {other}")), pair.map_or(0.0, cosine)));
                }
                ui.end_row();
            }
        });
        ui.painter().set(under, colors(ui, names.len(), &cells));
    });
}

/// The colours of all cells, `count` in a row: in one pass where shaders run.
fn colors(ui: &Ui, count: usize, cells: &[(Rect, f64)]) -> Shape {
    if !gpu_paint::can_paint(ui.ctx()) {
        let cell = |&(rect, cosine): &(Rect, f64)| Shape::rect_filled(rect, RADIUS, diverging(ui, cosine));
        return Shape::Vec(cells.iter().map(cell).collect());
    }
    let (Some((first, _)), Some((last, _))) = (cells.first(), cells.last()) else { return Shape::Noop };
    let matrix = OverlapMatrix {
        cosines: Numbers::Host(cells.iter().map(|&(_, cosine)| cosine as f32).collect()),
        count,
        full: FULL as f32,
        colors: ends(ui),
        cell: CELL,
        step: (last.min - first.min) / count.saturating_sub(1).max(1) as f32,
        radius: RADIUS,
    };
    let scale = ui.pixels_per_point();
    matrix.shape(first.union(*last).round_to_pixels(scale), scale)
}

/// Room for a cell, with its number and what it says; its colour is painted with all others'.
fn cell(ui: &mut Ui, pair: Option<&Pair>, who: &str) -> Rect {
    let (rect, response) = ui.allocate_exact_size(CELL, Sense::hover());
    let Some(pair) = pair else { return rect };
    let (Pair { overlap, .. }, cosine) = (pair, cosine(pair));
    let text = if cosine == 0.0 { "0".to_owned() } else { format!("{cosine:+.2}") };
    let ink = if luminance(diverging(ui, cosine)) > 0.45 { Color32::BLACK } else { Color32::WHITE };
    let font = egui::TextStyle::Small.resolve(ui.style());
    ui.painter().text(rect.center(), egui::Align2::CENTER_CENTER, &text, font, ink);
    let about = format!(
        "{who}: cosine {:+.3}, largest product {:.1e}\n{}",
        overlap.cosine, overlap.product_max, overlap.sentence
    );
    response.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::Label, true, format!("{who}: {text}")));
    response.on_hover_text(about);
    rect
}

/// 0 for two that do not meet.
fn cosine(Pair { overlap, .. }: &Pair) -> f64 {
    if overlap.product_max < NOTHING { 0.0 } else { overlap.cosine }
}

/// From blue (against each other) over the card's colour to orange (the same way): told apart by every eye.
fn ends(ui: &Ui) -> [Color32; 3] {
    [Color32::from_rgb(0x2c, 0x6f, 0xbb), theme::palette(ui).card, Color32::from_rgb(0xe0, 0x82, 0x14)]
}

/// As the shader colours a cosine.
fn diverging(ui: &Ui, cosine: f64) -> Color32 {
    let [negative, zero, positive] = ends(ui);
    let share = (cosine.abs() / FULL).min(1.0);
    zero.lerp_to_gamma(if cosine < 0.0 { negative } else { positive }, share as f32)
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
