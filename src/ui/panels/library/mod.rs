//! Library: the model, the concepts and the adapters of the project.

mod adapter;
mod adapters;
mod card;
mod concept;
mod concepts;
mod crop;
mod meter;
mod model;
mod pictures;
mod preparation;
mod sizes;
mod summary;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use egui::{RichText, ScrollArea, StrokeKind, Ui};

use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::focus;

pub const ROW: Row = Row {
    name: "library",
    title: "Library",
    hint: "Everything of your project: the model, concepts (folders of pictures to teach it) and adapters (what it learnt). \
           Drop a folder with 5 to 20 pictures here to begin.",
    build: || Box::<Library>::default(),
};

#[derive(Default)]
struct Library {
    /// The concept whose card is open, by its folder.
    concept: Option<PathBuf>,
    looked: Looked,
    /// The adapter whose card is open, by its file.
    adapter: Option<PathBuf>,
    summaries: summary::Summaries,
}

/// What is looked at in the open concept.
#[derive(Default)]
struct Looked {
    picture: Option<PathBuf>,
    /// Which of the views that training has of it.
    view: usize,
    preparation: preparation::Cached,
}

impl Panel for Library {
    fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        let hovering = ui.input(|input| !input.raw.hovered_files.is_empty());
        let room = ui.available_rect_before_wrap();
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            model::show(ui, studio, out);
            ui.add_space(theme::GAP);
            self.concepts(ui, studio, hovering, out);
            ui.add_space(theme::GAP);
            self.adapters(ui, studio, out);
            focus::follow(ui);
        });
        if hovering {
            let accent = theme::palette(ui).accent;
            ui.painter().rect_filled(room, theme::CARD, accent.gamma_multiply(0.12));
            ui.painter().rect_stroke(room, theme::CARD, (2.0, accent), StrokeKind::Inside);
        }
    }
}

/// A section's title with what stands beside it.
fn heading(ui: &mut Ui, title: &str, beside: impl FnOnce(&mut Ui)) {
    ui.horizontal_wrapped(|ui| {
        // As high as a button, so that the title stands in its middle.
        ui.spacing_mut().interact_size.y = 24.0;
        ui.label(RichText::new(title).strong());
        beside(ui);
    });
}
