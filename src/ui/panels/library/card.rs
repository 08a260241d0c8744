//! A card that opens when it is clicked, or with Enter or Space when it has the focus.

use egui::{Id, Response, Sense, StrokeKind, Ui, WidgetInfo, WidgetType};

use crate::ui::theme;

/// What a card shows when it is closed, and whether it is open.
pub struct Card<'a> {
    pub id: Id,
    /// For screen readers and tests.
    pub name: &'a str,
    pub help: &'a str,
    pub open: bool,
}

impl Card<'_> {
    /// Draws `head`, and `body` beneath it while the card is open. Tells whether the head was clicked.
    pub fn show(self, ui: &mut Ui, head: impl FnOnce(&mut Ui), body: impl FnOnce(&mut Ui)) -> bool {
        let Self { id, name, help, open } = self;
        let response = theme::card(ui)
            .show(ui, |ui| {
                ui.set_width(ui.available_width());
                let head = ui.scope(|ui| {
                    // The head is one control: its words are not there to be marked.
                    ui.style_mut().interaction.selectable_labels = false;
                    ui.set_width(ui.available_width());
                    head(ui);
                });
                let response = ui.interact(head.response.rect.expand(theme::CARD - 1.0), id, Sense::click());
                response.widget_info(|| WidgetInfo::selected(WidgetType::CollapsingHeader, true, open, name));
                if open {
                    ui.separator();
                    body(ui);
                }
                response
            })
            .inner;
        outline(ui, &response, open);
        response.on_hover_text(help).clicked()
    }
}

fn outline(ui: &Ui, response: &Response, open: bool) {
    let accent = theme::palette(ui).accent;
    let width = match (response.has_focus(), response.hovered(), open) {
        (true, ..) => 2.0,
        (_, true, _) => 1.5,
        (.., true) => 1.0,
        _ => return,
    };
    ui.painter().rect_stroke(response.rect, theme::CARD, (width, accent), StrokeKind::Inside);
}
