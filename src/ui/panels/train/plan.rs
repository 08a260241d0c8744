//! The form: concept, method, preset, every field, and what it will take.

use egui::{ComboBox, RichText, ScrollArea, Ui};

use crate::engine::adapter::{self, METHODS};
use crate::engine::project::TrainingForm;
use crate::engine::session::Preflight as Fit;
use crate::engine::train::config;
use crate::engine::train::presets::{self, Preset};
use crate::engine::words;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::panels::train::together;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::focus;
use crate::ui::widgets::form::{forget_unknown, form};

/// Height in points from which the form and the buttons below it both fit.
const ROOMY: f32 = 240.0;

#[derive(Default)]
pub struct Plan {
    search: String,
    shows_all: bool,
}

impl Plan {
    pub fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        let mut asked = studio.project.training.clone();
        // What starts the training stays in sight, whatever the length of the form, where there is room for both.
        let is_roomy = ui.available_height() > ROOMY;
        if is_roomy {
            egui::Panel::bottom("start")
                .frame(egui::Frame::new().inner_margin(4))
                .show(ui, |ui| start(ui, studio, out));
        }
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            if !is_roomy {
                start(ui, studio, out);
            }
            concept(ui, studio, &mut asked);
            together::show(ui, studio, &mut asked);
            method(ui, &mut asked);
            presets(ui, studio, &mut asked);
            files(ui, studio, out);
            ui.add_space(4.0);
            ui.horizontal(|ui| {
                let label = ui.label("Search");
                ui.add(egui::TextEdit::singleline(&mut self.search).hint_text("settings").desired_width(120.0))
                    .labelled_by(label.id);
                ui.checkbox(&mut self.shows_all, "All settings").on_hover_text("Every field of training");
            });
            self.fields(ui, &mut asked);
            focus::follow(ui);
        });
        if asked != studio.project.training {
            out.push(Command::SetTraining(asked));
        }
    }

    fn fields(&self, ui: &mut Ui, asked: &mut TrainingForm) {
        if let Ok(row) = adapter::method(&asked.method)
            && !row.fields.is_empty()
        {
            ui.strong(row.title);
            form(ui, row.fields, &mut asked.changes, &self.search);
        }
        ui.strong("Training");
        let shown = match self.shows_all || !self.search.is_empty() {
            true => config::FIELDS.to_vec(),
            // The rest is for those who look for it.
            false => config::FIELDS
                .iter()
                .filter(|field| {
                    ["steps", "batch", "lr", "prior"].contains(&field.name) || asked.changes.contains_key(field.name)
                })
                .copied()
                .collect(),
        };
        form(ui, &shown, &mut asked.changes, &self.search);
        ui.horizontal(|ui| {
            let label =
                ui.label("Seed").on_hover_text("Everything random in the training: the same seed, the same file");
            ui.add(egui::DragValue::new(&mut asked.seed)).labelled_by(label.id);
        });
    }
}

fn concept(ui: &mut Ui, studio: &Studio, asked: &mut TrainingForm) {
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("Concept");
        let chosen = studio.concept(&asked.concept).map_or("Choose one", |card| card.entry.name.as_str());
        let combo = ComboBox::from_id_salt("concept").selected_text(chosen).truncate().width(180.0);
        let combo = combo.show_ui(ui, |ui| {
            for card in &studio.concepts {
                ui.selectable_value(&mut asked.concept, card.entry.folder.clone(), &card.entry.name);
            }
        });
        combo.response.labelled_by(label.id);
        if let Some(card) = studio.concept(&asked.concept) {
            ui.weak(format!("called up by {} {}", card.entry.token, card.entry.class));
        }
    });
}

fn method(ui: &mut Ui, asked: &mut TrainingForm) {
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("Method");
        let row = adapter::method(&asked.method).ok();
        let combo = ComboBox::from_id_salt("method")
            .selected_text(row.map_or("Choose one", |row| row.title))
            .truncate()
            .width(180.0);
        let before = asked.method.clone();
        let combo = combo.show_ui(ui, |ui| {
            for row in METHODS {
                ui.selectable_value(&mut asked.method, row.name.into(), row.title).on_hover_text(row.help);
            }
        });
        combo.response.labelled_by(label.id);
        if asked.method != before {
            let fields = adapter::method(&asked.method).map_or(&[][..], |row| row.fields);
            forget_unknown(&mut asked.changes, &[fields, config::FIELDS]);
        }
        if let Some(row) = row {
            ui.weak(format!("leaves {}", row.file.words())).on_hover_text(row.paper);
        }
    });
    if let Ok(row) = adapter::method(&asked.method) {
        ui.weak(row.help);
    }
}

/// Settings that go together; those by memory only where the open model is large enough to need them.
fn presets(ui: &mut Ui, studio: &Studio, asked: &mut TrainingForm) {
    let is_small = studio.opened.ready().is_none_or(|with| config::is_small(&with.model));
    ui.horizontal_wrapped(|ui| {
        ui.label("Preset");
        for preset in presets::offered(is_small) {
            if ui.selectable_label(is_preset(asked, preset), preset.title).on_hover_text(preset.help).clicked() {
                let changes = preset.changes.iter().map(|&(name, value)| (name.into(), value.into()));
                match preset.saves_memory {
                    // What it does not speak of stays as it was chosen.
                    true => asked.changes.extend(changes),
                    false => asked.changes = changes.collect(),
                }
            }
        }
    });
}

fn is_preset(asked: &TrainingForm, preset: &Preset) -> bool {
    (preset.saves_memory || asked.changes.len() == preset.changes.len())
        && preset.changes.iter().all(|(name, value)| asked.changes.get(*name).is_some_and(|v| v == value))
}

/// The form as a file, and what the last one said that it cannot.
fn files(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    let ask = |title, kind, ending, offered, then| Command::Ask(Question { title, kind, ending, offered, then });
    ui.horizontal_wrapped(|ui| {
        let button = ui.button("Open settings…");
        let help = "A configuration of Triptych, sd-scripts (TOML), kohya_ss or OneTrainer (JSON)";
        if button.on_hover_text(help).clicked() {
            out.push(ask("Open settings of a training", Answer::File, "", "", Command::OpenSettings));
        }
        let button = ui.add_enabled(studio.asked().is_ok(), egui::Button::new("Save settings…"));
        if button.on_hover_text("Everything below as one file for triptych train --config").clicked() {
            out.push(ask("Save the settings as", Answer::NewFile, "toml", "training.toml", Command::SaveSettings));
        }
    });
    if !studio.left_out.is_empty() {
        let palette = theme::palette(ui);
        ui.horizontal_wrapped(|ui| {
            ui.colored_label(palette.warning, "Not taken over");
            if ui.small_button("Understood").clicked() {
                out.push(Command::DismissLeftOut);
            }
        });
        for sentence in &studio.left_out {
            ui.weak(sentence);
        }
    }
}

/// Memory, time, and the buttons.
fn start(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    let palette = theme::palette(ui);
    let refusal = studio.preflight.as_ref().and_then(crate::ui::preflight::Preflight::refusal);
    if let Some(preflight) = &studio.preflight {
        if let Ok(Fit { estimate, room, .. }) = &preflight.fit {
            let part = |(name, bytes): (&str, u64)| format!("{name}: {}", words::bytes(bytes));
            let free = |bytes: Option<u64>| bytes.map_or(String::new(), |b| format!(" of {} free", words::bytes(b)));
            let mut parts = estimate.parts().map(part).to_vec();
            parts.push(format!("on the disk, at most: {}{}", words::bytes(estimate.disk), free(room.disk)));
            let free = free(room.memory);
            let time = match preflight.step_seconds {
                Some(seconds) => format!("about {}", words::duration(seconds * preflight.steps as f64)),
                None => "the time is known after the first steps".into(),
            };
            ui.weak(format!("About {}{free}, {time}", words::bytes(estimate.total()))).on_hover_text(parts.join("\n"));
        }
    } else if let Some(error) = studio.opened.failed() {
        ui.colored_label(palette.error, error.to_string());
    } else {
        ui.weak("Opening the model…");
    }
    if let Some(error) = &refusal {
        ui.label(RichText::new(error.to_string()).color(palette.error));
        if ui.button("Look again").on_hover_text("After you have closed other programs or made room").clicked() {
            out.push(Command::LookAhead);
        }
    }
    ui.horizontal_wrapped(|ui| {
        let ready = studio.preflight.is_some() && refusal.is_none() && studio.asked().is_ok();
        let goes_on = studio.can_go_on();
        let name = RichText::new(if goes_on { "Go on" } else { "Train" }).strong().color(ui.visuals().extreme_bg_color);
        let button = egui::Button::new(name).min_size(egui::vec2(90.0, 28.0)).fill(palette.accent);
        let why = if studio.is_training() {
            "A training is running"
        } else {
            "A concept, a model and valid settings are needed"
        };
        if ui.add_enabled(ready && !studio.is_training(), button).on_disabled_hover_text(why).clicked() {
            out.push(Command::Train);
        }
        if goes_on && !studio.is_training() {
            let button = ui.button("Train anew");
            if button.on_hover_text("Forgets what the stopped training has learnt, and begins again").clicked() {
                out.push(Command::TrainAnew);
            }
        }
        let button = ui.add_enabled(ready, egui::Button::new("Add to queue"));
        if button.on_hover_text("Teach it after the others").clicked() {
            out.push(Command::Enqueue);
        }
    });
}
