//! Preview: the picture follows the prompt and the faders.

mod brush;
mod canvas;
mod emphasis;
mod grid;
mod pair;
mod start;
mod words;

use egui::{Key, RichText, ScrollArea, Ui, vec2};

use crate::ui::command::{Answer, Command, Question};
use crate::ui::panel::{Panel, Row};
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::focus;

pub const ROW: Row = Row {
    name: "preview",
    title: "Preview",
    hint: "Write a prompt with a concept's word in it: the picture follows every fader, coarse first and then refined",
    build: || Box::<Preview>::default(),
};

/// Side of a picture in the history strip.
const PAST: f32 = 48.0;

#[derive(Default)]
struct Preview {
    shows_grid: bool,
    words: words::Words,
    canvas: canvas::Canvas,
    grid: grid::GridView,
}

impl Panel for Preview {
    fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        ui.horizontal_wrapped(|ui| {
            ui.selectable_value(&mut self.shows_grid, false, "Picture")
                .on_hover_text("One picture, as the desk stands");
            ui.selectable_value(&mut self.shows_grid, true, "Grid").on_hover_text("Pictures over any two parameters");
            ui.separator();
            files(ui, studio, out);
        });
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            if self.shows_grid {
                self.grid.ui(ui, studio, out);
                focus::follow(ui);
                return;
            }
            self.canvas.ui(ui, studio, out);
            status(ui, studio);
            self.words.ui(ui, studio, out);
            past(ui, studio, out);
            focus::follow(ui);
        });
    }
}

fn files(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    let has = studio.preview.picture.as_ref().is_some_and(|picture| !picture.coarse);
    let png = |title, kind, then| Command::Ask(Question { title, kind, ending: "png", offered: "picture.png", then });
    if ui
        .add_enabled(has, egui::Button::new("Save picture…"))
        .on_hover_text("As PNG, with its prompt and settings")
        .clicked()
    {
        out.push(png("Save the picture as", Answer::NewFile, Command::SavePicture));
    }
    if ui.add_enabled(has, egui::Button::new("Copy")).on_hover_text("The picture, to the clipboard").clicked() {
        out.push(Command::CopyPicture);
    }
    if ui.button("Open prompt…").on_hover_text("Prompt and settings of a PNG that Triptych or A1111 saved").clicked()
    {
        out.push(png("Picture whose prompt to open", Answer::File, Command::OpenPrompt));
    }
}

fn status(ui: &mut Ui, studio: &Studio) {
    let view = &studio.preview;
    if let Some(error) = &view.error {
        ui.colored_label(theme::palette(ui).error, error.to_string());
        return;
    }
    ui.weak(match (&view.picture, view.is_painting) {
        (Some(picture), _) if picture.coarse => format!("{:.2} s · coarse, refining…", picture.seconds),
        (Some(_), true) => "painting…".into(),
        (Some(picture), false) => format!("{:.2} s · refined", picture.seconds),
        (None, true) => "painting the first picture…".into(),
        (None, false) if studio.opened.failed().is_some() => "No model is open".into(),
        (None, false) if studio.opened.ready().is_none() => "Opening the model…".into(),
        (None, false) => "Write a prompt below, and the picture appears here".into(),
    });
}

/// Pictures made before; one brings its prompt and settings back.
fn past(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    if studio.preview.history.len() < 2 {
        return;
    }
    ui.label(RichText::new("Before").weak());
    ScrollArea::horizontal().id_salt("past").show(ui, |ui| {
        ui.horizontal(|ui| {
            for (i, (request, picture)) in studio.preview.history.iter().enumerate().rev() {
                let image = egui::Image::new(&picture.texture)
                    .fit_to_exact_size(vec2(PAST, PAST))
                    .alt_text(format!("Picture {}", i + 1));
                let button = ui.add(egui::Button::image(image)).on_hover_text(format!(
                    "{}\nseed {} · {} steps · guidance {}",
                    request.prompt, request.seed, request.steps, request.cfg
                ));
                if button.clicked() || (button.has_focus() && ui.input(|input| input.key_pressed(Key::Enter))) {
                    out.push(Command::SetPreview(request.clone().into()));
                }
            }
        });
    });
}
