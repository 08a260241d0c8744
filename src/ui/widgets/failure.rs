//! An error beside its cause.

use egui::{Label, RichText, Ui};

use crate::engine::Error;
use crate::ui::theme::palette;

/// The sentences, and where.
pub fn failure(ui: &mut Ui, error: &Error) {
    let text = match error.advice.as_str() {
        "" => error.what.clone(),
        advice => format!("{}. {advice}", error.what.trim_end_matches('.')),
    };
    ui.colored_label(palette(ui).error, text);
    if let Some(path) = &error.path {
        let path = path.to_string_lossy();
        ui.add(Label::new(RichText::new(&*path).small().weak()).truncate()).on_hover_text(&*path);
    }
}
