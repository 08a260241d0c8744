//! Preview.

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;

pub const ROW: Row = Row { name: "preview", title: "Preview", hint: "", build: || Box::<Preview>::default() };

#[derive(Default)]
struct Preview;

impl Panel for Preview {
    fn ui(&mut self, ui: &mut egui::Ui, studio: &Studio, _out: &mut Vec<Command>) {
        ui.label(&studio.project.model);
    }
}
