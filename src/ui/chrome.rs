//! What surrounds the panels: the bar above, the log below, hints, questions, figures, closing.

mod closing;
pub mod keys;
mod log_strip;
mod menus;
mod path_field;

use std::time::Duration;

use egui::{Align, Layout, RichText};

use crate::ui::command::Command;
use crate::ui::panel::Row;
use crate::ui::preparing::Preparing;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::called::called;

#[derive(Default)]
pub struct Chrome {
    shows_figures: bool,
    path: path_field::PathField,
    pub log: log_strip::LogStrip,
    pub closing: closing::Closing,
}

/// A panel's hint, until it is dismissed; while a training runs there are better things to look at.
pub fn hint(ui: &mut egui::Ui, row: &Row, studio: &Studio, out: &mut Vec<Command>) {
    if studio.is_training() || studio.preferences.hints_read.contains(row.name) {
        return;
    }
    theme::card(ui).show(ui, |ui| {
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new(row.hint).color(theme::palette(ui).accent));
            if ui.small_button("Got it").on_hover_text("Do not show this hint again").clicked() {
                out.push(Command::DismissHint(row.name));
            }
        });
    });
    ui.add_space(4.0);
}

impl Chrome {
    pub fn top(&mut self, ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
        egui::Panel::top("top").show(ui, |ui| {
            ui.horizontal(|ui| {
                ui.heading("Triptych");
                menus::menu(ui, "Project", |ui| menus::project(ui, studio, out));
                let name = studio.path.parent().and_then(|folder| folder.file_name()).unwrap_or_default();
                ui.weak(format!("{} · {}", name.to_string_lossy(), saved(studio)))
                    .on_hover_text(studio.path.to_string_lossy());
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    let figures = ui.selectable_label(self.shows_figures, "⏱").on_hover_text("Frame times (F12)");
                    if called(figures, "Frame times").clicked() {
                        self.shows_figures ^= true;
                    }
                    menus::menu(ui, "View", |ui| menus::view(ui, studio, out));
                    menus::device(ui, studio, out);
                    preparing(ui, studio);
                });
            });
        });
        if ui.input(|input| input.key_pressed(keys::FIGURES)) {
            self.shows_figures ^= true;
        }
        if let Some(question) = studio.asking {
            self.path.show(ui, question, out);
        }
        self.closing.show(ui, out);
    }

    /// Frame times over the panels.
    pub fn over(&self, ui: &egui::Ui, studio: &Studio) {
        if !self.shows_figures {
            return;
        }
        egui::Window::new("Frame times").default_pos([16.0, 64.0]).resizable(false).show(ui.ctx(), |ui| {
            let figures = studio.pace.figures();
            let line = |name: &str, [p50, p99]: [f32; 2]| {
                format!("{name}: {:.1} ms median, {:.1} ms 99th percentile", 1e3 * p50, 1e3 * p99)
            };
            ui.label(line("UI thread", figures.work));
            ui.label(line("Frame to frame", figures.frame));
            ui.weak(format!("over {} frames", figures.frames));
        });
    }
}

/// Beside the device whose kernels they are.
fn preparing(ui: &mut egui::Ui, studio: &Studio) {
    let Some(Preparing { title, done, total }) = studio.preparing else { return };
    ui.weak(format!("{title}: {done} of {total}")).on_hover_text(
        "A GPU's programs are tested once for each driver, and made for each size when a first picture needs them. \
         Everything else can be used meanwhile, and what is asked for meanwhile goes on from here",
    );
}

fn saved(studio: &Studio) -> String {
    if studio.save_failed {
        return "not saved: the log says why".into();
    }
    match (studio.changed, studio.saved) {
        (Some(_), _) => "saving…".into(),
        (None, Some(at)) if at.elapsed() < Duration::from_mins(1) => "saved just now".into(),
        (None, Some(at)) => format!("saved {} min ago", at.elapsed().as_secs() / 60),
        (None, None) => "saved".into(),
    }
}

#[cfg(test)]
mod tests {
    use egui_kittest::kittest::Queryable as _;

    use super::*;
    use crate::engine::device::Choice;
    use crate::engine::project::Project;
    use crate::ui::preferences::Preferences;

    #[test]
    fn kernels_are_counted_while_they_are_made() {
        let mut studio = Studio::new(Project::new(8), "triptych.toml".into(), Choice::Cpu, Preferences::default());
        let made = Preparing { title: "Preparing kernels", done: 12, total: 58 };
        for (preparing, expected) in [(None, 0), (Some(made), 1)] {
            studio.preparing = preparing;
            let harness = egui_kittest::Harness::new_ui(|ui| super::preparing(ui, &studio));
            assert_eq!(harness.query_all_by_label("Preparing kernels: 12 of 58").count(), expected);
        }
    }
}
