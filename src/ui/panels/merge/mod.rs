//! Merge: the mixing desk.

mod matrix;
mod method;
mod strip;

use egui::{ProgressBar, ScrollArea, Ui};

use crate::ui::command::{Answer, Command, Question};
use crate::ui::mixdown::Mixing;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::focus;

pub const ROW: Row = Row {
    name: "merge",
    title: "Merge",
    hint: "Every fader is one concept: move it and Preview follows. The table says who gets in whose way; what you hear can be saved as one file",
    build: || Box::<Merge>::default(),
};

#[derive(Default)]
struct Merge {
    strips: strip::Strips,
}

impl Panel for Merge {
    fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        ui.horizontal_wrapped(|ui| {
            let undo = ui.add_enabled(studio.undo.can_go_back(), egui::Button::new("Undo"));
            if undo.on_hover_text("Ctrl+Z").clicked() {
                out.push(Command::Undo);
            }
            let redo = ui.add_enabled(studio.undo.can_go_forth(), egui::Button::new("Redo"));
            if redo.on_hover_text("Ctrl+Shift+Z").clicked() {
                out.push(Command::Redo);
            }
            ui.separator();
            files(ui, studio, out);
        });
        if let Some(mixing) = &studio.mixing {
            progress(ui, mixing, out);
        }
        ui.separator();
        if studio.project.desk.faders.is_empty() {
            ui.label("The desk is empty");
            ui.weak("Teach a concept under Train, or drop an adapter file (.safetensors) onto the window");
            return;
        }
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            self.strips.ui(ui, studio, out);
            ui.add_space(theme::GAP);
            method::ui(ui, studio, out);
            ui.add_space(theme::GAP);
            matrix::ui(ui, studio);
            focus::follow(ui);
        });
    }
}

/// Of the merge under way.
fn progress(ui: &mut Ui, mixing: &Mixing, out: &mut Vec<Command>) {
    ui.horizontal_wrapped(|ui| {
        let bar = ui.add(ProgressBar::new(mixing.share()).desired_width(120.0).desired_height(6.0));
        bar.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::ProgressIndicator, true, "Merge"));
        ui.weak(match (mixing.is_stopping(), mixing.stage.as_str()) {
            (true, _) => "stopping…".into(),
            (false, "") => "merging…".into(),
            (false, stage) => format!("{stage}: {} of {}", mixing.done, mixing.total),
        });
        let cancel = ui.add_enabled(!mixing.is_stopping(), egui::Button::new("Cancel the merge"));
        if cancel.on_hover_text("Nothing is written").clicked() {
            out.push(Command::StopMerge);
        }
    });
}

fn files(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    let any = !studio.project.desk.faders.is_empty();
    let ask = |title, kind, ending, offered, then| Command::Ask(Question { title, kind, ending, offered, then });
    let button = |ui: &mut Ui, name: &str, help: &str| ui.add_enabled(any, egui::Button::new(name)).on_hover_text(help);
    let merge = |ui: &mut Ui, name: &str, help: &str| {
        ui.add_enabled(any && studio.mixing.is_none(), egui::Button::new(name)).on_hover_text(help)
    };
    if merge(ui, "Save as adapter…", "One file with everything that is heard").clicked() {
        out.push(ask("Save the mix as", Answer::NewFile, "safetensors", "mix.safetensors", Command::SaveMerged));
    }
    let whole = "A whole model with the mix in its weights: a folder in diffusers layout, or one file where its name ends in \
                 .safetensors";
    if merge(ui, "Into a model…", whole).clicked() {
        // What was opened as one file becomes one.
        let of_file = studio.project.model.ends_with(".safetensors");
        out.push(match of_file {
            true => {
                ask("New file for the model", Answer::NewFile, "safetensors", "model.safetensors", Command::BakeMerged)
            }
            false => ask("New folder for the model", Answer::NewFile, "", "model", Command::BakeMerged),
        });
    }
    if button(ui, "Save recipe…", "Faders and method as a small file that can be opened again").clicked() {
        out.push(ask("Save the recipe as", Answer::NewFile, "toml", "recipe.toml", Command::SaveRecipe));
    }
    if ui.button("Open recipe…").clicked() {
        out.push(ask("Recipe to open", Answer::File, "toml", "", Command::OpenRecipe));
    }
}
