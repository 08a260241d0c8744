//! What an open concept's card shows: its words, its pictures, what was left out.

use egui::{CollapsingHeader, Id, RichText, Ui};

use crate::engine::concept::{Skipped, Trigger};
use crate::engine::project::ConceptEntry;
use crate::engine::words::counted;
use crate::ui::cards::{ConceptCard, Loading};
use crate::ui::command::Command;
use crate::ui::panels::library::{Looked, pictures, sizes};
use crate::ui::studio::Studio;
use crate::ui::theme::palette;
use crate::ui::widgets::called::called;
use crate::ui::widgets::draft::Draft;
use crate::ui::widgets::failure::failure;

pub fn show(ui: &mut Ui, studio: &Studio, card: &ConceptCard, looked: &mut Looked, out: &mut Vec<Command>) {
    words(ui, studio, &card.entry, out);
    match &card.content {
        Loading::Waiting => {
            ui.spinner();
        }
        Loading::Failed(error) => {
            failure(ui, error);
            let find = ui.button("Find it…").on_hover_text("Show where the folder is now");
            if called(find, &format!("Find the pictures of {}", card.entry.name)).clicked() {
                out.push(Command::Find(card.entry.folder.clone()));
            }
        }
        Loading::Ready(content) => {
            pictures::show(ui, studio, (card, content), looked, out);
            if let Some(found) = looked.preparation.sizes(studio, &content.concept) {
                sizes::show(ui, found);
            }
            left_out(ui, &content.concept.skipped);
        }
    }
    ui.horizontal_wrapped(|ui| files(ui, card, out));
}

/// Name, token and class word.
fn words(ui: &mut Ui, studio: &Studio, entry: &ConceptEntry, out: &mut Vec<Command>) {
    let mut change =
        |ui: &mut Ui, what: &str, value: &str, help: (&'static str, &str), set: fn(&mut ConceptEntry, String)| {
            ui.label(RichText::new(what).small().weak()).on_hover_text(help.1);
            let name = format!("{what} of {}", entry.name);
            let id = Id::new((what, &entry.folder));
            let (response, done) = Draft { id, name: &name, value, hint: help.0, rows: 1 }.show(ui);
            response.on_hover_text(help.1);
            if let Some(text) = done.map(|text| text.trim().to_owned()).filter(|text| text != value) {
                let mut changed = entry.clone();
                set(&mut changed, text);
                out.push(Command::SetConcept(changed));
            }
        };
    change(ui, "Name", &entry.name, ("blue robot", "What you call it"), |entry, text| {
        if !text.is_empty() {
            entry.name = text;
        }
    });
    let help = "The new word that calls it up in a prompt";
    change(ui, "Trigger token", &entry.token, ("<robo>", help), |entry, text| entry.token = text);
    let help =
        "The plain word for what it is an example of; with it the concept is learnt faster and kept apart better";
    change(ui, "Class word", &entry.class, ("robot", help), |entry, text| entry.class = text);
    if let Err(error) = Trigger::new(&entry.token, &entry.class) {
        failure(ui, &error);
    }
    let twin = studio.project.concepts.iter().find(|other| other.token == entry.token && other.folder != entry.folder);
    if let Some(twin) = twin {
        ui.colored_label(
            palette(ui).warning,
            format!("{} has the same token: in a mix the two could not be told apart", twin.name),
        );
    }
}

fn left_out(ui: &mut Ui, skipped: &[Skipped]) {
    if skipped.is_empty() {
        return;
    }
    let title = RichText::new(format!("{} left out", counted(skipped.len(), "file")));
    CollapsingHeader::new(title.color(palette(ui).warning)).id_salt("left out").show(ui, |ui| {
        for Skipped { path, why } in skipped {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ui.label(RichText::new(&*name).small().strong()).on_hover_text(path.to_string_lossy());
            ui.label(RichText::new(why).small());
        }
    });
}

fn files(ui: &mut Ui, card: &ConceptCard, out: &mut Vec<Command>) {
    let ConceptEntry { name, folder, .. } = &card.entry;
    let again = ui.button("Read again").on_hover_text("After you have changed pictures or captions in the folder");
    if called(again, &format!("Read {name} again")).clicked() {
        out.push(Command::Reopen(folder.clone()));
    }
    let reveal = ui.button("Show in file manager").on_hover_text(card.folder.to_string_lossy());
    if called(reveal, &format!("Show {name} in the file manager")).clicked() {
        out.push(Command::Reveal(card.folder.clone()));
    }
    let remove = ui.button("Remove").on_hover_text("Out of the project; the files stay, and Ctrl+Z brings it back");
    if called(remove, &format!("Remove concept {name}")).clicked() {
        out.push(Command::RemoveConcept(folder.clone()));
    }
}
