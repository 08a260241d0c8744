//! The keyboard's focus: scrolled into sight, and seen wherever it is.

use egui::{Memory, Stroke, StrokeKind, Ui};

use crate::ui::theme;

/// At the end of what scrolls: a control in it that a key has just given the focus is brought into sight.
pub fn follow(ui: &Ui) {
    let gained = ui.memory(|memory| memory.focused().filter(|&id| !memory.had_focus_last_frame(id)));
    let Some(control) = gained.and_then(|id| ui.ctx().read_response(id)) else { return };
    if control.layer_id == ui.layer_id() && ui.min_rect().contains(control.rect.center()) {
        ui.scroll_to_rect(control.rect, None);
    }
}

/// A frame around whatever has the focus, over all panels: some controls are drawn by libraries that show none.
pub fn ring(ui: &Ui) {
    let focused = ui.memory(Memory::focused).and_then(|id| ui.ctx().read_response(id));
    let Some(control) = focused.filter(|control| control.interact_rect.is_positive()) else { return };
    let stroke = Stroke::new(2.0, theme::palette(ui).accent);
    let painter = ui.ctx().layer_painter(control.layer_id);
    painter.rect_stroke(control.interact_rect.expand(1.0), 4, stroke, StrokeKind::Outside);
}

#[cfg(test)]
mod tests {
    use egui::{Key, ScrollArea};
    use egui_kittest::Harness;
    use egui_kittest::kittest::Queryable as _;

    use super::*;

    #[test]
    fn tab_scrolls_to_where_it_goes() {
        let mut window = Harness::builder().with_size([200.0, 120.0]).build_ui(|ui| {
            ScrollArea::vertical().show(ui, |ui| {
                for i in 0..40 {
                    ui.button(format!("Button {i}.")).on_hover_text("h");
                }
                follow(ui);
            });
        });
        for _ in 0..31 {
            window.key_press(Key::Tab);
            window.run();
        }
        let last = window.get_by_label("Button 30.");
        assert!(last.is_focused());
        assert!((0.0..=120.0).contains(&last.rect().bottom()), "{:?}", last.rect());
    }
}
