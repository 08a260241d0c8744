//! Train.

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;

pub const ROW: Row = Row { name: "train", title: "Train", hint: "", build: || Box::<Train>::default() };

#[derive(Default)]
struct Train;

impl Panel for Train {
    fn ui(&mut self, ui: &mut egui::Ui, studio: &Studio, _out: &mut Vec<Command>) {
        ui.label(&studio.project.model);
    }
}
