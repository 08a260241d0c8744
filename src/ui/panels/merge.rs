//! Merge.

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;

pub const ROW: Row = Row { name: "merge", title: "Merge", hint: "", build: || Box::<Merge>::default() };

#[derive(Default)]
struct Merge;

impl Panel for Merge {
    fn ui(&mut self, ui: &mut egui::Ui, studio: &Studio, _out: &mut Vec<Command>) {
        ui.label(&studio.project.model);
    }
}
