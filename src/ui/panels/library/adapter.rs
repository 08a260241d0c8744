//! What an open adapter's card shows.

use egui::{Grid, Id, Label, RichText, Ui};

use crate::engine::project::AdapterEntry;
use crate::ui::cards::AdapterCard;
use crate::ui::command::Command;
use crate::ui::panels::library::summary::Summary;
use crate::ui::studio::Studio;
use crate::ui::widgets::called::called;
use crate::ui::widgets::draft::Draft;
use crate::ui::widgets::failure::failure;

pub fn show(ui: &mut Ui, studio: &Studio, card: &AdapterCard, summary: Option<&Summary>, out: &mut Vec<Command>) {
    let AdapterEntry { name, file, .. } = &card.entry;
    ui.label(RichText::new("Name").small().weak());
    let label = format!("Name of adapter {name}");
    let draft = Draft { id: Id::new(("rename", file)), name: &label, value: name, hint: "blue robot", rows: 1 };
    let (response, done) = draft.show(ui);
    response.on_hover_text("What you call it; the file keeps its name");
    if let Some(name) = done.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()) {
        out.push(Command::RenameAdapter { file: file.clone(), name });
    }
    if let Some(error) = card.content.failed() {
        failure(ui, error);
        let find = ui.button("Find it…").on_hover_text("Show where the file is now");
        if called(find, &format!("Find adapter {name}")).clicked() {
            out.push(Command::Find(file.clone()));
        }
    }
    if let Some(summary) = summary {
        Grid::new(("facts", file)).num_columns(2).spacing([8.0, 2.0]).show(ui, |ui| {
            for (what, value) in &summary.rows {
                ui.label(RichText::new(*what).small().weak());
                ui.add(Label::new(RichText::new(value).small()).truncate()).on_hover_text(value);
                ui.end_row();
            }
        });
    }
    ui.horizontal_wrapped(|ui| buttons(ui, studio, card, out));
}

fn buttons(ui: &mut Ui, studio: &Studio, card: &AdapterCard, out: &mut Vec<Command>) {
    let AdapterEntry { name, file, .. } = &card.entry;
    if card.content.ready().is_some() {
        let look = ui.button("Look at its spectrum").on_hover_text("Its singular values, layer by layer, in Spectrum");
        if called(look, &format!("Look at the spectrum of {name}")).clicked() {
            out.push(Command::LookAt(Some(file.clone())));
        }
    } else {
        let again = ui.button("Read again").on_hover_text("After you have put the file in its place");
        if called(again, &format!("Read adapter {name} again")).clicked() {
            out.push(Command::Reopen(file.clone()));
        }
    }
    let reveal = ui.button("Show in file manager").on_hover_text(card.path.to_string_lossy());
    if called(reveal, &format!("Show adapter {name} in the file manager")).clicked() {
        out.push(Command::Reveal(card.path.clone()));
    }
    let slot = studio.project.slots.iter().find(|slot| slot.file == *file).map(|slot| slot.number);
    let help = match (slot, card.gone) {
        (Some(slot), true) => format!("Out of the project, and slot {slot} is free again; Ctrl+Z brings both back"),
        (Some(slot), false) => {
            format!("Out of the project; the file stays, and so does its slot {slot}. Ctrl+Z brings it back")
        }
        (None, _) => "Out of the project; the file stays, and Ctrl+Z brings it back".into(),
    };
    let remove = ui.button("Remove").on_hover_text(help);
    if called(remove, &format!("Remove adapter {name}")).clicked() {
        out.push(Command::RemoveAdapter { file: file.clone(), frees: card.gone });
    }
    if let Some(slot) = slot.filter(|_| !card.gone) {
        let free = ui.button(format!("Remove and free slot {slot}")).on_hover_text(
            "For a file that you no longer mix with the others: the next concept gets its slot. Ctrl+Z brings both back",
        );
        if called(free, &format!("Remove adapter {name} and free its slot")).clicked() {
            out.push(Command::RemoveAdapter { file: file.clone(), frees: true });
        }
    }
}
