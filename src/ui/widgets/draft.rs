//! A text field that hands its text over when it is left, not letter by letter. Escape leaves it as it was.

use egui::{Id, Key, Response, TextEdit, Ui};

use crate::ui::widgets::called::called;

/// A text to edit.
pub struct Draft<'a> {
    pub id: Id,
    /// For screen readers and tests.
    pub name: &'a str,
    /// As it is now.
    pub value: &'a str,
    pub hint: &'static str,
    pub rows: usize,
}

impl Draft<'_> {
    /// The field, and the new text once it is done.
    pub fn show(self, ui: &mut Ui) -> (Response, Option<String>) {
        let Self { id, name, value, hint, rows } = self;
        let typed = ui.data(|data| data.get_temp::<String>(id));
        let mut text = typed.unwrap_or_else(|| value.to_owned());
        let edit = if rows > 1 { TextEdit::multiline(&mut text) } else { TextEdit::singleline(&mut text) };
        let edit = edit.id(id).hint_text(hint).desired_rows(rows).desired_width(f32::INFINITY);
        let response = called(ui.add(edit), name);
        let done = response.lost_focus() && text != value && !ui.input(|input| input.key_pressed(Key::Escape));
        if response.has_focus() {
            ui.data_mut(|data| data.insert_temp(id, text));
            return (response, None);
        }
        ui.data_mut(|data| data.remove::<String>(id));
        (response, done.then_some(text))
    }
}
