//! The concepts' cards.

use egui::{Id, Image, Label, RichText, Ui, vec2};

use crate::engine::words::counted;
use crate::ui::cards::{ConceptCard, Loading};
use crate::ui::command::{Answer, Command, Question};
use crate::ui::panels::library::card::Card;
use crate::ui::panels::library::{Library, concept, heading};
use crate::ui::studio::Studio;
use crate::ui::theme::palette;

/// Pictures on a closed card.
const SHOWN: usize = 3;
const SIDE: f32 = 34.0;
/// Narrower cards put the words under the pictures.
const NARROW: f32 = 215.0;

impl Library {
    pub(super) fn concepts(&mut self, ui: &mut Ui, studio: &Studio, hovering: bool, out: &mut Vec<Command>) {
        heading(ui, "Concepts", |ui| {
            let button = ui.button("Add concept…").on_hover_text("Choose the folder that holds the pictures");
            if button.clicked() {
                out.push(Command::Ask(Question {
                    title: "Choose the folder that holds the pictures",
                    kind: Answer::Folder,
                    ending: "",
                    offered: "",
                    then: Command::Add,
                }));
            }
        });
        let (hint, color) = match (hovering, studio.concepts.is_empty()) {
            (true, _) => ("⬇ let go to add it", palette(ui).accent),
            (false, true) => (
                "Nothing to teach yet: add a folder with 5 to 20 pictures of one thing, or drop it here",
                ui.visuals().weak_text_color(),
            ),
            (false, false) => ("⬇ or drop a folder here", ui.visuals().weak_text_color()),
        };
        ui.label(RichText::new(hint).small().color(color));
        for card in &studio.concepts {
            let open = self.concept.as_deref() == Some(&card.entry.folder);
            let name = format!("Concept {}", card.entry.name);
            let what = if open { "close this card" } else { "see its pictures, captions and words" };
            let help = format!("{}: {what}", card.entry.name);
            let id = Id::new(("concept", &card.entry.folder));
            let clicked = Card { id, name: &name, help: &help, open }.show(
                ui,
                |ui| head(ui, card),
                |ui| concept::show(ui, studio, card, &mut self.looked, out),
            );
            if clicked {
                self.concept = (!open).then(|| card.entry.folder.clone());
            }
        }
    }
}

fn head(ui: &mut Ui, card: &ConceptCard) {
    let side = SIDE.min((ui.available_width() - 4.0 * SHOWN as f32) / SHOWN as f32);
    let pictures = |ui: &mut Ui| {
        if let Some(content) = card.content.ready() {
            for thumbnail in content.thumbnails.iter().take(SHOWN) {
                // Of one size, whatever their shape, so that names stand in line.
                let (rect, _) = ui.allocate_exact_size(vec2(side, side), egui::Sense::hover());
                let inner = thumbnail.size_vec2() * (side / thumbnail.size_vec2().max_elem());
                Image::from_texture(thumbnail)
                    .corner_radius(3)
                    .paint_at(ui, egui::Rect::from_center_size(rect.center(), inner));
            }
        }
    };
    if ui.available_width() < NARROW || card.content.failed().is_some() {
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            pictures(ui);
        });
        words(ui, card);
    } else {
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            pictures(ui);
            ui.add_space(4.0);
            ui.vertical(|ui| words(ui, card));
        });
    }
}

fn words(ui: &mut Ui, card: &ConceptCard) {
    ui.spacing_mut().item_spacing.y = 1.0;
    ui.add(Label::new(&card.entry.name).truncate());
    match &card.content {
        Loading::Waiting => {
            ui.label(RichText::new("Reading the pictures…").small().weak());
        }
        Loading::Failed(error) => {
            ui.colored_label(palette(ui).error, RichText::new(&error.what).small());
        }
        Loading::Ready(content) => {
            let class = match card.entry.class.as_str() {
                "" => String::new(),
                class => format!(" · {class}"),
            };
            let count = counted(content.concept.images.len(), "picture");
            ui.label(RichText::new(format!("{count} · {}{class}", card.entry.token)).small().weak());
            let bare = content.concept.images.iter().filter(|picture| picture.caption.is_none()).count();
            if bare > 0 {
                ui.label(RichText::new(format!("{bare} without a caption")).small().weak());
            }
            let skipped = content.concept.skipped.len();
            if skipped > 0 {
                let text = format!("⚠ {} left out", counted(skipped, "file"));
                ui.colored_label(palette(ui).warning, RichText::new(text).small());
            }
        }
    }
}
