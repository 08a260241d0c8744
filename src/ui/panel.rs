//! What a panel is, and the list of all.

use crate::ui::command::Command;
use crate::ui::panels::{library, merge, preview, spectrum, train};
use crate::ui::studio::Studio;

/// A room of the window. It reads the studio and asks for changes; it holds only what concerns its own looks.
pub trait Panel {
    fn ui(&mut self, ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>);
}

/// A panel's row.
pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    /// Shown once, until it is dismissed.
    pub hint: &'static str,
    pub build: fn() -> Box<dyn Panel>,
}

pub const PANELS: &[Row] = &[library::ROW, train::ROW, merge::ROW, preview::ROW, spectrum::ROW];
