//! How many pictures of a concept fall into each size of frame.

use egui::{Label, RichText, Sense, Ui, WidgetInfo, WidgetType, vec2};

use crate::engine::words::counted;
use crate::ui::panels::library::preparation::Sizes;
use crate::ui::theme::palette;

/// Points; the longest bar has this width where there is room.
const BAR: f32 = 90.0;
const HEIGHT: f32 = 8.0;

/// Nothing where all pictures have one size.
pub fn show(ui: &mut Ui, sizes: &Sizes) {
    let most = sizes.values().copied().max().unwrap_or(0);
    if sizes.len() < 2 {
        return;
    }
    ui.label(RichText::new("Sizes in training").small().weak())
        .on_hover_text("A batch holds pictures of one size; where there are fewer than a batch, they repeat in it");
    for ([width, height], &n) in sizes {
        ui.horizontal(|ui| {
            let size = format!("{width} × {height}");
            ui.add_sized([66.0, 12.0], Label::new(RichText::new(&size).small()));
            let length = BAR.min(ui.available_width() - 30.0).max(0.0) * n as f32 / most as f32;
            let (rect, response) = ui.allocate_exact_size(vec2(length.max(1.0), HEIGHT), Sense::hover());
            ui.painter().rect_filled(rect, 2, palette(ui).accent);
            let says = format!("{} of {size} pixels", counted(n, "picture"));
            response.widget_info(|| WidgetInfo::labeled(WidgetType::Image, true, &says));
            response.on_hover_text(says);
            ui.label(RichText::new(n.to_string()).small().weak());
        });
    }
}
