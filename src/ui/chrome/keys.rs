//! Keys that work in the whole window.

use egui::{Key, KeyboardShortcut, Modifiers};

use crate::ui::command::Command;

const UNDO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Z);
const REDO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::Z);
const REDO_TOO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Y);
const TRAIN: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Enter);
pub const SAVE: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::S);
pub const QUIT: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Q);
pub const FIGURES: Key = Key::F12;

/// Keys that work everywhere; undo and redo only where no text field has its own.
pub fn shortcuts(ctx: &egui::Context) -> Vec<Command> {
    let in_text = ctx.text_edit_focused();
    let pressed = |shortcut| ctx.input_mut(|input| input.consume_shortcut(shortcut));
    let mut commands = Vec::new();
    // Redo first: undo's keys are part of its own.
    if !in_text && (pressed(&REDO) || pressed(&REDO_TOO)) {
        commands.push(Command::Redo);
    }
    if !in_text && pressed(&UNDO) {
        commands.push(Command::Undo);
    }
    if pressed(&TRAIN) {
        commands.push(Command::Train);
    }
    if pressed(&SAVE) {
        commands.push(Command::Save);
    }
    commands
}
