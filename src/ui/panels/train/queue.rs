//! Trainings that wait for their turn.

use egui::{RichText, Ui};

use crate::engine::queue::{Entry, State};
use crate::ui::command::Command;
use crate::ui::studio::Studio;
use crate::ui::theme;

pub fn ui(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    ui.horizontal_wrapped(|ui| {
        let can = !studio.is_training() && !studio.queue.entries.is_empty() && studio.opened.ready().is_some();
        let button = ui.add_enabled(can, egui::Button::new("Run the queue"));
        if button.on_hover_text("One after the other; one that fails does not stop the rest").clicked() {
            out.push(Command::RunQueue);
        }
        if ui.button("Refresh").on_hover_text("`triptych queue` may have changed it").clicked() {
            out.push(Command::ListQueue);
        }
    });
    if studio.queue.entries.is_empty() {
        ui.weak("Nothing waits: “Add to queue” in Plan puts a training here. It survives a restart");
    }
    for (place, entry) in studio.queue.entries.iter().enumerate() {
        ui.push_id(&entry.id, |ui| line(ui, studio, place, entry, out));
    }
}

fn line(ui: &mut Ui, studio: &Studio, place: usize, entry: &Entry, out: &mut Vec<Command>) {
    let palette = theme::palette(ui);
    let id = &entry.id;
    theme::card(ui).show(ui, |ui| {
        ui.set_width(ui.available_width());
        ui.horizontal_wrapped(|ui| {
            ui.strong(id);
            match &entry.order {
                Ok(order) => {
                    ui.weak(format!("{} · {}", order.token, order.method));
                    match order.state {
                        State::Waiting => ui.label("waits"),
                        State::Running => ui.colored_label(palette.accent, "runs"),
                        State::Done => ui.colored_label(palette.good, "done"),
                        State::Failed => ui.colored_label(palette.error, "failed"),
                    };
                    if order.state == State::Failed && ui.small_button(format!("Try {id} again")).clicked() {
                        out.push(Command::RetryQueued(id.clone()));
                    }
                }
                Err(error) => {
                    ui.colored_label(palette.error, error.to_string());
                }
            }
            let last = studio.queue.entries.len() - 1;
            if ui.add_enabled(place > 0, small(format!("Move {id} up"))).clicked() {
                out.push(Command::MoveQueued(id.clone(), place - 1));
            }
            if ui.add_enabled(place < last, small(format!("Move {id} down"))).clicked() {
                out.push(Command::MoveQueued(id.clone(), place + 1));
            }
            if ui.add(small(format!("Remove {id}"))).on_hover_text("From the queue; its files stay").clicked() {
                out.push(Command::RemoveQueued(id.clone()));
            }
        });
        if let Ok(order) = &entry.order
            && let Some(error) = &order.error
        {
            ui.label(RichText::new(error).color(palette.error).small());
        }
    });
}

fn small(text: String) -> egui::Button<'static> {
    egui::Button::new(RichText::new(text).small()).small()
}
