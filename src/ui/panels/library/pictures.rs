//! A concept's pictures: a grid, and under it the chosen one with its caption and as training will see it.

use egui::{Align2, Button, Id, Image, RichText, ScrollArea, StrokeKind, Ui, vec2};

use crate::engine::concept::{self, Picture, Trigger};
use crate::ui::cards::{ConceptCard, ConceptContent};
use crate::ui::command::Command;
use crate::ui::panels::library::{Looked, crop};
use crate::ui::studio::Studio;
use crate::ui::theme::palette;
use crate::ui::widgets::called::called;
use crate::ui::widgets::draft::Draft;
use crate::ui::widgets::failure::failure;

/// Side of a cell, and the room around it.
const CELL: f32 = 46.0;
const GAP: f32 = 4.0;
const GRID_HEIGHT: f32 = 3.5 * (CELL + GAP);
/// Side of a mask's thumbnail in the corner of its picture's.
const MASK: f32 = 16.0;

pub fn show(
    ui: &mut Ui,
    studio: &Studio,
    (card, content): (&ConceptCard, &ConceptContent),
    looked: &mut Looked,
    out: &mut Vec<Command>,
) {
    let images = &content.concept.images;
    let at = images.iter().position(|image| looked.picture.as_ref() == Some(&image.path)).unwrap_or(0);
    if let Some(at) = grid(ui, content, at) {
        looked.picture = Some(images[at].path.clone());
    }
    let Some(picture) = images.get(at) else { return };
    caption(ui, studio, card, picture, out);
    match looked.preparation.get(studio) {
        Some(Ok(views)) => crop::show(ui, studio, picture, views, &mut looked.view, out),
        Some(Err(error)) => failure(ui, error),
        None => {
            ui.label(RichText::new("How training will see it is shown once the model is open").small().weak());
        }
    }
}

/// Only the rows in sight are laid out. Gives the picture that was clicked.
fn grid(ui: &mut Ui, content: &ConceptContent, at: usize) -> Option<usize> {
    let mut clicked = None;
    ui.scope(|ui| {
        ui.spacing_mut().item_spacing = vec2(GAP, GAP);
        ui.spacing_mut().button_padding = vec2(2.0, 2.0);
        let columns = (((ui.available_width() - 12.0 + GAP) / (CELL + GAP)) as usize).max(1);
        let rows = content.thumbnails.len().div_ceil(columns);
        let area = ScrollArea::vertical().id_salt("pictures").max_height(GRID_HEIGHT).auto_shrink([false, true]);
        area.show_rows(ui, CELL, rows, |ui, shown| {
            for row in shown {
                ui.horizontal(|ui| {
                    let cells = row * columns..((row + 1) * columns).min(content.thumbnails.len());
                    for i in cells {
                        if cell(ui, content, i, i == at) {
                            clicked = Some(i);
                        }
                    }
                });
            }
        });
    });
    clicked
}

fn cell(ui: &mut Ui, content: &ConceptContent, i: usize, chosen: bool) -> bool {
    let picture = &content.concept.images[i];
    let image = Image::from_texture(&content.thumbnails[i]).fit_to_exact_size(vec2(CELL - 4.0, CELL - 4.0));
    let response = ui.add_sized([CELL, CELL], Button::image(image).selected(chosen));
    let name = picture.path.file_name().unwrap_or_default().to_string_lossy();
    let says = picture.caption.as_deref().unwrap_or("no caption yet");
    if picture.caption.is_none() {
        let (color, at) = (palette(ui).warning, response.rect.right_top() + vec2(-6.0, 6.0));
        ui.painter().circle(at, 4.0, color, (1.0, palette(ui).card));
    }
    let mut masked = "";
    if let Some(mask) = &content.masks[i] {
        masked = " (with a mask)";
        let size = mask.size_vec2() * (MASK / mask.size_vec2().max_elem());
        let rect = Align2::LEFT_BOTTOM.anchor_size(response.rect.left_bottom() + vec2(2.0, -2.0), size);
        Image::from_texture(mask).paint_at(ui, rect);
        ui.painter().rect_stroke(rect, 0, (1.0, palette(ui).accent), StrokeKind::Outside);
    }
    called(response, &format!("Picture {name}{masked}")).on_hover_text(format!("{name}{masked}: {says}")).clicked()
}

fn caption(ui: &mut Ui, studio: &Studio, card: &ConceptCard, picture: &Picture, out: &mut Vec<Command>) {
    let name = picture.path.file_name().unwrap_or_default().to_string_lossy();
    ui.label(RichText::new(format!("Caption of {name}")).small().weak());
    let draft = Draft {
        id: Id::new(("caption", &picture.path)),
        name: &format!("Caption of picture {name}"),
        value: picture.caption.as_deref().unwrap_or_default(),
        hint: "What the picture shows besides the concept",
        rows: 2,
    };
    let (response, done) = draft.show(ui);
    response.on_hover_text(
        "Written into a text file beside the picture when you leave this field; Escape leaves it as it was",
    );
    if let Some(text) = done {
        out.push(Command::SetCaption { concept: card.entry.folder.clone(), picture: picture.path.clone(), text });
    }
    let trigger = Trigger { token: card.entry.token.clone(), class_word: card.entry.class.clone() };
    if let Some(facts) = &studio.facts {
        let text = concept::caption(picture.caption.as_deref(), &facts.template, &trigger);
        ui.label(RichText::new(format!("Trained as “{text}”")).small().weak()).on_hover_text(
            "The trigger token is put in its place, and where there is no caption the model's own template is used",
        );
    }
}
