//! Closing a window whose training runs.

use egui::ViewportCommand;

use super::keys::QUIT;
use crate::ui::command::Command;
use crate::ui::studio::Studio;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Closing {
    #[default]
    No,
    /// It was asked for, and the question is put.
    Asked,
    /// As soon as the training has saved what it learnt.
    AfterTraining,
}

impl Closing {
    /// A window that is closed while a training runs asks once.
    pub fn hold(&mut self, ctx: &egui::Context, studio: &Studio) {
        if ctx.input_mut(|input| input.consume_shortcut(&QUIT)) {
            ctx.send_viewport_cmd(ViewportCommand::Close);
        }
        if ctx.input(|input| input.viewport().close_requested()) && studio.is_training() {
            ctx.send_viewport_cmd(ViewportCommand::CancelClose);
            if *self == Self::No {
                *self = Self::Asked;
            }
        } else if *self == Self::Asked && !studio.is_training() {
            *self = Self::No;
        }
        if *self == Self::AfterTraining && !studio.is_training() {
            ctx.send_viewport_cmd(ViewportCommand::Close);
        }
    }

    /// The question, while it is put.
    pub fn show(&mut self, ui: &mut egui::Ui, out: &mut Vec<Command>) {
        if *self == Self::No {
            return;
        }
        egui::Panel::top("closing").show(ui, |ui| {
            ui.horizontal_wrapped(|ui| {
                ui.label(match self {
                    Self::AfterTraining => "Saving what the training has learnt…",
                    _ => "A training is running: what it has learnt is saved, and it can go on next time",
                });
                let button = ui.button("Save and close");
                if *self == Self::Asked && ui.memory(|memory| memory.focused().is_none()) {
                    button.request_focus();
                }
                if button.clicked() {
                    *self = Self::AfterTraining;
                    out.push(Command::Stop);
                }
                if ui.button("Stay").clicked() {
                    *self = Self::No;
                }
            });
        });
    }
}
