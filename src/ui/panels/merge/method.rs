//! How the adapters are merged into one file.

use egui::{ComboBox, Ui};

use crate::engine::merge::{self, METHODS, Needs};
use crate::ui::command::Command;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::form::{forget_unknown, form};

pub fn ui(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    let mut desk = studio.project.desk.clone();
    theme::card(ui).show(ui, |ui| {
        ui.set_width(ui.available_width());
        let row = merge::method(&desk.method).ok();
        ui.horizontal_wrapped(|ui| {
            let label = ui.label("Merge method").on_hover_text("How the saved file is made; Preview always adds");
            let combo =
                ComboBox::from_id_salt("method").selected_text(row.map_or("Choose one", |row| row.title)).truncate();
            let combo = combo.width(ui.available_width().clamp(60.0, 170.0)).show_ui(ui, |ui| {
                for row in METHODS {
                    let choice = ui.selectable_value(&mut desk.method, row.name.into(), row.title);
                    choice.on_hover_text(row.help);
                }
            });
            combo.response.labelled_by(label.id);
        });
        if let Some(row) = row {
            ui.weak(row.help).on_hover_text(row.paper);
            if row.needs == Needs::ModelAndPictures {
                ui.weak("It looks at the pictures that each adapter was taught with");
            }
            if desk.method == row.name {
                form(ui, row.fields, &mut desk.changes, "");
            }
        }
    });
    if desk.method != studio.project.desk.method {
        let fields = merge::method(&desk.method).map_or(&[][..], |row| row.fields);
        forget_unknown(&mut desk.changes, &[fields]);
    }
    if desk != studio.project.desk {
        out.push(Command::SetDesk { desk, what: "method" });
    }
}
