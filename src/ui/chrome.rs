//! What surrounds the panels: the bar above, the log below, hints, questions, figures, closing.

use std::time::Duration;

use egui::{Align, Key, KeyboardShortcut, Layout, Modifiers, RichText, ViewportCommand};

use crate::engine::device::Choice;
use crate::ui::cards::Loading;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::log::{Line, Weight};
use crate::ui::panel::Row;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::work::dialog::with_ending;

const UNDO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Z);
const REDO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::Z);
const REDO_TOO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Y);
const TRAIN: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Enter);
const SAVE: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::S);
const QUIT: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Q);
const FIGURES: Key = Key::F12;

const PROJECT_FILE: &str = "toml";

#[derive(Default)]
pub struct Chrome {
    shows_log: bool,
    shows_figures: bool,
    /// The path field of a question that no dialog could put.
    typed: String,
    closing: Closing,
}

/// Of a window whose training runs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    No,
    /// It was asked for, and the question is put.
    Asked,
    /// As soon as the training has saved what it learnt.
    AfterTraining,
}

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

/// A window that is closed while a training runs asks once.
pub fn hold_closing(ctx: &egui::Context, chrome: &mut Chrome, studio: &Studio) {
    if ctx.input_mut(|input| input.consume_shortcut(&QUIT)) {
        ctx.send_viewport_cmd(ViewportCommand::Close);
    }
    if ctx.input(|input| input.viewport().close_requested()) && studio.is_training() {
        ctx.send_viewport_cmd(ViewportCommand::CancelClose);
        if chrome.closing == Closing::No {
            chrome.closing = Closing::Asked;
        }
    } else if chrome.closing == Closing::Asked && !studio.is_training() {
        chrome.closing = Closing::No;
    }
    if chrome.closing == Closing::AfterTraining && !studio.is_training() {
        ctx.send_viewport_cmd(ViewportCommand::Close);
    }
}

/// A panel's hint, until it is dismissed.
pub fn hint(ui: &mut egui::Ui, row: &Row, studio: &Studio, out: &mut Vec<Command>) {
    if row.hint.is_empty() || studio.preferences.hints_read.contains(row.name) {
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
                ui.menu_button("Project", |ui| project_menu(ui, studio, out));
                let name = studio.path.parent().and_then(|folder| folder.file_name()).unwrap_or_default();
                ui.weak(format!("{} · {}", name.to_string_lossy(), saved(studio)))
                    .on_hover_text(studio.path.to_string_lossy());
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    if ui.selectable_label(self.shows_figures, "⏱").on_hover_text("Frame times (F12)").clicked() {
                        self.shows_figures ^= true;
                    }
                    ui.menu_button("View", |ui| view_menu(ui, studio, out));
                    device_menu(ui, studio, out);
                });
            });
        });
        if ui.input(|input| input.key_pressed(FIGURES)) {
            self.shows_figures ^= true;
        }
        if let Some(question) = studio.asking {
            self.ask(ui, question, out);
        }
        if self.closing != Closing::No {
            self.closing(ui, out);
        }
    }

    /// The path field where no dialog can open.
    fn ask(&mut self, ui: &mut egui::Ui, question: Question, out: &mut Vec<Command>) {
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

    fn closing(&mut self, ui: &mut egui::Ui, out: &mut Vec<Command>) {
        egui::Panel::top("closing").show(ui, |ui| {
            ui.horizontal_wrapped(|ui| {
                ui.label(match self.closing {
                    Closing::AfterTraining => "Saving what the training has learnt…",
                    _ => "A training is running: what it has learnt is saved, and it can go on next time",
                });
                let button = ui.button("Save and close");
                if self.closing == Closing::Asked && ui.memory(|memory| memory.focused().is_none()) {
                    button.request_focus();
                }
                if button.clicked() {
                    self.closing = Closing::AfterTraining;
                    out.push(Command::Stop);
                }
                if ui.button("Stay").clicked() {
                    self.closing = Closing::No;
                }
            });
        });
    }

    pub fn log(&mut self, ui: &mut egui::Ui, studio: &Studio) {
        egui::Panel::bottom("log").show(ui, |ui| {
            ui.horizontal(|ui| {
                let sign = if self.shows_log { "⏷" } else { "⏵" };
                if ui.small_button(sign).on_hover_text("Everything that happened").clicked() {
                    self.shows_log ^= true;
                }
                match studio.log.last() {
                    Some(line) => ui.add(egui::Label::new(worded(ui, line)).truncate()),
                    None => ui.weak("Nothing has happened yet"),
                }
            });
            if self.shows_log {
                egui::ScrollArea::vertical().max_height(160.0).stick_to_bottom(true).auto_shrink([false, true]).show(
                    ui,
                    |ui| {
                        for line in &studio.log.lines {
                            ui.label(worded(ui, line));
                        }
                    },
                );
            }
        });
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

fn worded(ui: &egui::Ui, line: &Line) -> RichText {
    let palette = theme::palette(ui);
    let (sign, color) = match line.weight {
        Weight::Note => ("", ui.visuals().weak_text_color()),
        Weight::Warning => ("Warning: ", palette.warning),
        Weight::Error => ("Error: ", palette.error),
    };
    RichText::new(format!("{}  {sign}{}", clock(line.at), line.text)).color(color).small()
}

/// Hours, minutes and seconds of universal time.
fn clock(at: std::time::SystemTime) -> String {
    let seconds = at.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs()) % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn project_menu(ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
    let ask = |title, kind, then| {
        Command::Ask(Question { title, kind, ending: PROJECT_FILE, offered: "triptych.toml", then })
    };
    if ui.button("New…").clicked() {
        out.push(ask("New project", Answer::NewFile, Command::NewProject));
    }
    if ui.button("Open…").clicked() {
        out.push(ask("Open project", Answer::File, Command::OpenProject));
    }
    if ui.add(egui::Button::new("Save").shortcut_text(ui.ctx().format_shortcut(&SAVE))).clicked() {
        out.push(Command::Save);
    }
    if ui.button("Save as…").clicked() {
        out.push(ask("Save project as", Answer::NewFile, Command::SaveProjectAs));
    }
    if ui.add(egui::Button::new("Quit").shortcut_text(ui.ctx().format_shortcut(&QUIT))).clicked() {
        ui.ctx().send_viewport_cmd(ViewportCommand::Close);
    }
    ui.separator();
    ui.weak("Recent");
    for path in &studio.preferences.recent {
        if ui.button(path.to_string_lossy()).clicked() {
            out.push(Command::OpenProject(path.clone()));
        }
    }
}

fn view_menu(ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
    for (name, title) in [("dark", "Dark"), ("light", "Light"), ("system", "As the system")] {
        if ui.radio(studio.preferences.theme == name, title).clicked() {
            out.push(Command::SetTheme(name));
        }
    }
    ui.separator();
    ui.weak("Text size");
    for percent in [80, 100, 125, 150, 200] {
        let zoom = percent as f32 / 100.0;
        if ui.radio((studio.preferences.zoom - zoom).abs() < 0.01, format!("{percent} %")).clicked() {
            out.push(Command::SetZoom(zoom));
        }
    }
}

fn device_menu(ui: &mut egui::Ui, studio: &Studio, out: &mut Vec<Command>) {
    let (name, reason) = match &studio.opened {
        Loading::Waiting => ("Opening…".to_owned(), String::new()),
        Loading::Ready(opened) => (opened.session.device.name.clone(), opened.session.device.reason.clone()),
        Loading::Failed(error) => ("No model".to_owned(), error.to_string()),
    };
    let text = |choice| match choice {
        Choice::Auto => "Automatic: a GPU where there is one".to_owned(),
        Choice::Cpu => "CPU".to_owned(),
        Choice::Gpu(number) => format!("GPU {number}"),
    };
    let menu = ui.menu_button(format!("Computes on: {name}"), |ui| {
        for choice in [Choice::Auto, Choice::Cpu, Choice::Gpu(0)] {
            let button = egui::RadioButton::new(studio.device == choice, text(choice));
            if ui.add_enabled(!studio.is_training(), button).clicked() {
                out.push(Command::SetDevice(choice));
            }
        }
    });
    menu.response.on_hover_text(reason);
}
