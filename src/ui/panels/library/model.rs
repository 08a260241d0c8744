//! The model's card.

use std::path::PathBuf;

use egui::{RichText, Ui};

use crate::ui::cards::Loading;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::facts::Facts;
use crate::ui::panels::library::heading;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::failure::failure;

const STARTER: &str = "starter";
/// No dialog can offer files and folders at once. Button, help, title of the dialog, what is asked for, ending.
const OPEN: [(&str, &str, &str, Answer, &str); 2] = [
    (
        "Open model file…",
        "One file with everything in it (.safetensors), e.g. Stable Diffusion 1.5 as ComfyUI and A1111 keep it",
        "Open a model file",
        Answer::File,
        "safetensors",
    ),
    (
        "Open model folder…",
        "A folder in diffusers layout, e.g. Stable Diffusion 1.5",
        "Open a model folder",
        Answer::Folder,
        "",
    ),
];

pub fn show(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    heading(ui, "Model", |_| {});
    theme::card(ui).show(ui, |ui| {
        ui.set_width(ui.available_width());
        match (&studio.opened, &studio.facts) {
            (Loading::Failed(error), _) => {
                ui.label(&studio.project.model);
                failure(ui, error);
                if ui.button("Open the model again").on_hover_text("After you have mended what is wrong").clicked() {
                    out.push(Command::OpenModel(studio.project.model.clone()));
                }
            }
            (Loading::Ready(_), Some(facts)) => told(ui, facts),
            _ => {
                ui.horizontal_wrapped(|ui| {
                    ui.spinner();
                    ui.label(format!("Opening {}…", short(&studio.project.model)));
                });
            }
        }
        ui.horizontal_wrapped(|ui| choose(ui, studio, out));
    });
}

fn told(ui: &mut Ui, facts: &Facts) {
    let name = if facts.name == STARTER { "Starter (emoji)" } else { &facts.name };
    ui.label(name).on_hover_text(format!("Captions read: {}", facts.template));
    let [width, height] = facts.size;
    let text = format!("Stable Diffusion · {width} × {height} pixels · {} · {}", millions(facts.weights), facts.dtype);
    ui.label(RichText::new(text).small().weak()).on_hover_text(format!(
        "{} weights in {} layers that an adapter can change, kept as {}",
        facts.weights, facts.layers, facts.dtype
    ));
}

fn choose(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    let busy = "A training is running: stop it before another model is opened";
    ui.add_enabled_ui(!studio.is_training(), |ui| {
        for (name, help, title, kind, ending) in OPEN {
            if ui.button(name).on_hover_text(help).on_disabled_hover_text(busy).clicked() {
                let then = |path: PathBuf| Command::OpenModel(path.to_string_lossy().into_owned());
                out.push(Command::Ask(Question { title, kind, ending, offered: "", then }));
            }
        }
        if studio.project.model != STARTER {
            let starter = ui.button("Use the starter model").on_hover_text("The small model that comes with Triptych");
            if starter.on_disabled_hover_text(busy).clicked() {
                out.push(Command::OpenModel(STARTER.into()));
            }
        }
    });
}

fn short(model: &str) -> String {
    std::path::Path::new(model).file_name().map_or_else(|| model.into(), |name| name.to_string_lossy().into_owned())
}

fn millions(numbers: usize) -> String {
    match numbers as f64 / 1e6 {
        millions if millions < 1.0 => format!("{numbers} weights"),
        millions if millions < 100.0 => format!("{millions:.1} M weights"),
        millions => format!("{millions:.0} M weights"),
    }
}
