//! The question for a path, in the window where no dialog can open.

use egui::Key;

use crate::ui::command::{Answer, Command, Question};
use crate::ui::work::dialog::with_ending;

#[derive(Default)]
pub struct PathField {
    typed: String,
}

impl PathField {
    pub fn show(&mut self, ui: &mut egui::Ui, question: Question, out: &mut Vec<Command>) {
        egui::Panel::top("question").show(ui, |ui| {
            ui.horizontal(|ui| {
                let label = ui.label(question.title);
                let width = (ui.available_width() - 160.0).max(120.0);
                let hint = if question.kind == Answer::Folder { "/path/to/folder" } else { "/path/to/file" };
                let field = egui::TextEdit::singleline(&mut self.typed).hint_text(hint).desired_width(width);
                let field = ui.add(field).labelled_by(label.id);
                let entered = field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
                if (ui.button("OK").clicked() || entered) && !self.typed.trim().is_empty() {
                    let path = with_ending(self.typed.trim().into(), question.kind, question.ending);
                    out.push((question.then)(path));
                    out.push(Command::DismissNotice);
                    self.typed.clear();
                }
                if ui.button("Cancel").clicked() {
                    out.push(Command::DismissNotice);
                    self.typed.clear();
                }
            });
        });
    }
}
