//! The heat strip: a column for each layer, a row for each index, with its axis and the scale of its colours.

use egui::emath::GuiRounding as _;
use egui::{
    Align2, Color32, EventFilter, FontId, Key, Mesh, Painter, Pos2, Rect, Response, Sense, Shape, Stroke, StrokeKind,
    TextStyle, Ui, Vec2, WidgetInfo, pos2, vec2,
};

use super::shown::{Shown, number};
use crate::ui::gpu_paint::{self, HeatStrip};
use crate::ui::{color_map, theme};

/// Room left of the strip for the numbers of its rows.
const ROWS: f32 = 24.0;
/// Room below for the groups.
const GROUPS: f32 = 18.0;
/// Room right of it for the scale.
const SCALE: f32 = 62.0;
const BAR: f32 = 10.0;
const MARGIN: f32 = 6.0;
/// Pixels a cell needs to stand apart from its neighbours.
const APART: f32 = 5.0;

/// Shows the strip and answers with the layer under the pointer. Arrow keys and clicks move `selected`.
pub fn show(ui: &mut Ui, shown: &Shown, selected: &mut usize, height: f32) -> Option<usize> {
    let count = shown.columns.len();
    *selected = (*selected).min(count.saturating_sub(1));
    let (whole, _) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
    let min = whole.min + vec2(ROWS, MARGIN);
    let rect = Rect::from_min_max(min, whole.max - vec2(SCALE, GROUPS)).round_to_pixels(ui.pixels_per_point());
    let response = ui.interact(rect, ui.id().with("heat strip"), Sense::click());
    keys(ui, &response, selected, count);
    let column_at = |at: Pos2| (((at.x - rect.left()) / rect.width() * count as f32) as usize).min(count - 1);
    let hovered = response.hover_pos().map(column_at);
    if let (true, Some(column)) = (response.clicked(), response.interact_pointer_pos().map(column_at)) {
        *selected = column;
        response.request_focus();
    }
    let words = &shown.columns[*selected].layer.words;
    response.widget_info(|| WidgetInfo {
        current_text_value: Some(words.clone()),
        ..WidgetInfo::slider(true, *selected as f64, "Heat strip of the layers")
    });

    paint(ui, shown, rect);
    let painter = ui.painter();
    marks(ui, shown, rect, hovered.into_iter().chain([*selected]), response.has_focus());
    let font = TextStyle::Small.resolve(ui.style());
    let weak = ui.visuals().weak_text_color();
    axis(painter, shown, rect, &font, weak);
    scale(painter, shown, rect, &font, weak);
    response.on_hover_ui_at_pointer(|ui| {
        ui.label(&shown.columns[hovered.unwrap_or(*selected)].layer.words);
        ui.weak("Click keeps this layer, ← and → go on from it");
    });
    hovered
}

fn keys(ui: &Ui, response: &Response, selected: &mut usize, count: usize) {
    if !response.has_focus() {
        return;
    }
    let filter = EventFilter { horizontal_arrows: true, ..EventFilter::default() };
    ui.memory_mut(|memory| memory.set_focus_lock_filter(response.id, filter));
    let pressed = |key| ui.input(|input| input.key_pressed(key));
    if pressed(Key::ArrowLeft) {
        *selected = selected.saturating_sub(1);
    }
    if pressed(Key::ArrowRight) {
        *selected = (*selected + 1).min(count - 1);
    }
    if pressed(Key::Home) {
        *selected = 0;
    }
    if pressed(Key::End) {
        *selected = count - 1;
    }
}

fn paint(ui: &Ui, shown: &Shown, rect: Rect) {
    let scale = ui.pixels_per_point();
    let (columns, rows) = (shown.columns.len(), shown.rows);
    let cell = rect.size() / vec2(columns as f32, rows as f32);
    let gap = if (cell * scale).min_elem() >= APART { 1.0 } else { 0.0 };
    if gpu_paint::can_paint(ui.ctx()) {
        let (values, low, high) = (shown.values.clone(), shown.low, shown.high);
        ui.painter().add(HeatStrip { values, columns, rows, low, high, gap }.shape(rect, scale));
        return;
    }
    let mut mesh = Mesh::default();
    for (x, column) in shown.columns.iter().enumerate() {
        for (y, &value) in column.values.iter().take(rows).enumerate() {
            let min = rect.min + cell * vec2(x as f32, y as f32);
            mesh.add_colored_rect(Rect::from_min_size(min, cell - Vec2::splat(gap / scale)), shown.color(value));
        }
    }
    ui.painter().add(Shape::mesh(mesh));
}

/// Lines between the groups, and frames around the layers that are looked at.
fn marks(ui: &Ui, shown: &Shown, rect: Rect, columns: impl Iterator<Item = usize>, focused: bool) {
    let painter = ui.painter();
    for group in &shown.groups[1..] {
        let line = Stroke::new(2.0, ui.visuals().panel_fill);
        painter.vline(left(shown, rect, group.start), rect.y_range(), line);
    }
    let palette = theme::palette(ui);
    for column in columns {
        let across = left(shown, rect, column)..=left(shown, rect, column + 1);
        let frame = Rect::from_x_y_ranges(across, rect.y_range()).expand(1.0);
        painter.rect_stroke(frame, 1, Stroke::new(1.5, palette.accent), StrokeKind::Outside);
    }
    if focused {
        painter.rect_stroke(rect.expand(3.0), 2, Stroke::new(1.5, palette.accent), StrokeKind::Outside);
    }
}

fn left(shown: &Shown, rect: Rect, column: usize) -> f32 {
    rect.left() + rect.width() * column as f32 / shown.columns.len() as f32
}

fn axis(painter: &Painter, shown: &Shown, rect: Rect, font: &FontId, color: Color32) {
    for group in &shown.groups {
        let (start, end) = (left(shown, rect, group.start), left(shown, rect, group.end));
        let laid = [&group.name, &group.short].into_iter().find_map(|text| {
            let laid = painter.layout_no_wrap(text.clone(), font.clone(), color);
            (laid.size().x + 4.0 <= end - start).then_some(laid)
        });
        let y = rect.bottom() + 3.0;
        painter.hline(start + 1.0..=end - 1.0, y, Stroke::new(1.0, color));
        if let Some(laid) = laid {
            painter.galley(pos2((start + end - laid.size().x) / 2.0, y + 1.0), laid, color);
        }
    }
    let rows = shown.rows;
    let middle = rect.height() / rows as f32 / 2.0;
    let row = |y: f32, text: String| {
        painter.text(pos2(rect.left() - 5.0, y), Align2::RIGHT_CENTER, text, font.clone(), color);
    };
    // In a low strip the text of the first row would leave it.
    let middle = middle.max(font.size / 2.0);
    row(rect.top() + middle, "1".into());
    if rows > 1 && rect.height() > 2.5 * font.size {
        row(rect.bottom() - middle, rows.to_string());
    }
}

fn scale(painter: &Painter, shown: &Shown, rect: Rect, font: &FontId, color: Color32) {
    const PIECES: u32 = 24;
    let bar = Rect::from_min_size(pos2(rect.right() + 10.0, rect.top()), vec2(BAR, rect.height()));
    let mut mesh = Mesh::default();
    for i in 0..=PIECES {
        let t = i as f32 / PIECES as f32;
        let y = bar.bottom() - t * bar.height();
        mesh.colored_vertex(pos2(bar.left(), y), color_map::inferno(t));
        mesh.colored_vertex(pos2(bar.right(), y), color_map::inferno(t));
        if i > 0 {
            mesh.add_triangle(2 * i - 2, 2 * i - 1, 2 * i);
            mesh.add_triangle(2 * i - 1, 2 * i, 2 * i + 1);
        }
    }
    painter.add(Shape::mesh(mesh));
    painter.rect_stroke(bar, 0, Stroke::new(1.0, color), StrokeKind::Outside);
    let half = font.size / 2.0;
    let middle = (bar.height() > 4.0 * font.size).then_some(0.5);
    for t in [0.0, 1.0].into_iter().chain(middle) {
        let value = shown.low * (shown.high / shown.low).powf(t);
        let y = (bar.bottom() - t * bar.height()).clamp(bar.top() + half, bar.bottom() - half);
        let at = pos2(bar.right() + 4.0, y);
        painter.text(at, Align2::LEFT_CENTER, number(f64::from(value)), font.clone(), color);
    }
}
