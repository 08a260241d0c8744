//! The menus of the bar above.

use egui::ViewportCommand;

use super::keys::{QUIT, SAVE};
use crate::engine::device::Choice;
use crate::engine::model::Precision;
use crate::ui::cards::Loading;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::studio::Studio;
use crate::ui::widgets::called::called;

const PROJECT_FILE: &str = "toml";
/// Everything is computed in f32, whatever weights are held as.
const PRECISIONS: [(Precision, &str, &str); 3] = [
    (
        Precision::Auto,
        "Automatic",
        "f16 where the file has f16 and the model is large, otherwise f32: nothing is rounded",
    ),
    (Precision::F32, "f32", "Four bytes for each weight"),
    (Precision::F16, "f16", "Two bytes for each weight, rounded where the file has more"),
];

/// A button with a sign that it opens a menu; its name is without.
pub fn menu(ui: &mut egui::Ui, name: &str, show: impl FnOnce(&mut egui::Ui)) -> egui::Response {
    called(ui.menu_button(format!("{name} ⏷"), show).response, name)
}

pub fn project(ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
    let ask = |title, kind, then| {
        Command::Ask(Question { title, kind, ending: PROJECT_FILE, offered: "triptych.toml", then })
    };
    if ui.button("New…").clicked() {
        out.push(ask("New project", Answer::NewFile, Command::NewProject));
    }
    if ui.button("Open…").clicked() {
        out.push(ask("Open project", Answer::File, Command::OpenProject));
    }
    if ui.add(egui::Button::new("Save").shortcut_text(ui.ctx().format_shortcut(&SAVE))).clicked() {
        out.push(Command::Save);
    }
    if ui.button("Save as…").clicked() {
        out.push(ask("Save project as", Answer::NewFile, Command::SaveProjectAs));
    }
    if ui.add(egui::Button::new("Quit").shortcut_text(ui.ctx().format_shortcut(&QUIT))).clicked() {
        ui.ctx().send_viewport_cmd(ViewportCommand::Close);
    }
    ui.separator();
    ui.weak("Recent");
    for path in &studio.preferences.recent {
        if ui.button(path.to_string_lossy()).clicked() {
            out.push(Command::OpenProject(path.clone()));
        }
    }
}

pub fn view(ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
    for (name, title) in [("dark", "Dark"), ("light", "Light"), ("system", "As the system")] {
        if ui.radio(studio.preferences.theme == name, title).clicked() {
            out.push(Command::SetTheme(name));
        }
    }
    ui.separator();
    ui.weak("Text size");
    for percent in [80, 100, 125, 150, 200] {
        let zoom = percent as f32 / 100.0;
        if ui.radio((studio.preferences.zoom - zoom).abs() < 0.01, format!("{percent} %")).clicked() {
            out.push(Command::SetZoom(zoom));
        }
    }
}

pub fn device(ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
    let (name, reason) = match &studio.opened {
        Loading::Waiting => ("Opening…".to_owned(), String::new()),
        Loading::Ready(opened) => (opened.session.device.name.clone(), opened.session.device.reason.clone()),
        Loading::Failed(error) => ("No model".to_owned(), error.to_string()),
    };
    let text = |choice| match choice {
        Choice::Auto => "Automatic: a GPU where there is one".to_owned(),
        Choice::Cpu => "CPU".to_owned(),
        Choice::Gpu(number) => format!("GPU {number}"),
    };
    let response = menu(ui, &format!("Computes on: {name}"), |ui| {
        for choice in [Choice::Auto, Choice::Cpu, Choice::Gpu(0)] {
            let button = egui::RadioButton::new(studio.device == choice, text(choice));
            if ui.add_enabled(!studio.is_training(), button).clicked() {
                out.push(Command::SetDevice(choice));
            }
        }
        ui.separator();
        ui.weak("Weights are held as");
        for (precision, title, help) in PRECISIONS {
            let button = egui::RadioButton::new(studio.precision == precision, title);
            if ui.add_enabled(!studio.is_training(), button).on_hover_text(help).clicked() {
                out.push(Command::SetPrecision(precision));
            }
        }
    });
    response.on_hover_text(reason);
}
