//! Library.

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;

pub const ROW: Row = Row { name: "library", title: "Library", hint: "", build: || Box::<Library>::default() };

#[derive(Default)]
struct Library;

impl Panel for Library {
    fn ui(&mut self, ui: &mut egui::Ui, studio: &Studio, _out: &mut Vec<Command>) {
        ui.label(&studio.project.model);
    }
}
