//! Spectrum.

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;

pub const ROW: Row = Row { name: "spectrum", title: "Spectrum", hint: "", build: || Box::<Spectrum>::default() };

#[derive(Default)]
struct Spectrum;

impl Panel for Spectrum {
    fn ui(&mut self, ui: &mut egui::Ui, studio: &Studio, _out: &mut Vec<Command>) {
        ui.label(&studio.project.model);
    }
}
