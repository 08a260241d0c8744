//! Train: what is taught and how, then how it goes.

mod live;
mod plan;
mod queue;
mod together;

use egui::{RichText, ScrollArea, Ui};

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;
use crate::ui::widgets::focus;

pub const ROW: Row = Row {
    name: "train",
    title: "Train",
    hint: "Choose a concept and press Train: it becomes one small file, kept apart from all others by a slot of its own",
    build: || Box::<Train>::default(),
};

#[derive(Default)]
struct Train {
    view: View,
    plan: plan::Plan,
    live: live::Live,
    /// Of the run that the view was turned to.
    followed: Option<std::time::Instant>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum View {
    #[default]
    Plan,
    Live,
    Queue,
}

impl Panel for Train {
    fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        let started = studio.run.as_ref().map(|run| run.started);
        if started.is_some() && started != self.followed {
            self.view = View::Live;
        }
        self.followed = started;
        ui.horizontal_wrapped(|ui| {
            ui.selectable_value(&mut self.view, View::Plan, "Plan").on_hover_text("What is taught, and how");
            ui.add_enabled_ui(studio.run.is_some(), |ui| {
                let text = if studio.is_training() { RichText::new("Training").strong() } else { "Training".into() };
                ui.selectable_value(&mut self.view, View::Live, text)
                    .on_hover_text("How it goes")
                    .on_disabled_hover_text("Nothing has been taught yet");
            });
            let waiting = studio.queue.entries.len();
            let before = self.view;
            ui.selectable_value(&mut self.view, View::Queue, format!("Queue ({waiting})"))
                .on_hover_text("Trainings that wait for their turn");
            if self.view == View::Queue && before != View::Queue {
                out.push(Command::ListQueue);
            }
        });
        ui.separator();
        match self.view {
            View::Plan => self.plan.ui(ui, studio, out),
            View::Live => {
                if let Some(run) = &studio.run {
                    ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
                        self.live.ui(ui, run, out);
                        focus::follow(ui);
                    });
                }
            }
            View::Queue => {
                ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
                    queue::ui(ui, studio, out);
                    focus::follow(ui);
                });
            }
        }
    }
}
