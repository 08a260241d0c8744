//! A picture to start from: which one, how far it may change, and what of it is repainted.

use egui::{CollapsingHeader, DragValue, Slider, Ui};

use crate::engine::preview::STRENGTH;
use crate::engine::project::PreviewForm;
use crate::engine::words::stem;
use crate::ui::cards::Loading;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::panels::preview::brush::Brush;
use crate::ui::studio::Studio;
use crate::ui::widgets::failure::failure;

/// Width of a slider's number, and of the gap before it.
const NUMBER: f32 = 52.0;

#[derive(Default)]
pub struct Start {
    brush: Brush,
}

impl Start {
    pub fn ui(&mut self, ui: &mut Ui, studio: &Studio, form: &mut PreviewForm, out: &mut Vec<Command>) {
        CollapsingHeader::new("Start from a picture").id_salt("start").show_unindented(ui, |ui| {
            choose(ui, studio, form, out);
            let Some(file) = &form.init else { return };
            ui.add(egui::Label::new(stem(file)).truncate()).on_hover_text(file.display().to_string());
            let label = ui
                .label("Strength of change")
                .on_hover_text("0 leaves the picture as it is, 1 makes another: of the steps, this share is taken");
            ui.spacing_mut().slider_width = (ui.available_width() - NUMBER).clamp(60.0, 220.0);
            ui.horizontal(|ui| {
                // The slider's own number would have no name.
                ui.add(Slider::new(&mut form.strength, 0.0..=1.0).show_value(false)).labelled_by(label.id);
                let number = DragValue::new(&mut form.strength).range(0.0..=1.0).speed(0.01).max_decimals(2);
                ui.add(number).labelled_by(label.id);
            });
            match studio.preview.beginning.as_ref().map(|beginning| &beginning.content) {
                Some(Loading::Ready(picture)) => self.brush.ui(ui, picture, &mut form.mask),
                Some(Loading::Failed(error)) => failure(ui, error),
                Some(Loading::Waiting) | None => {
                    ui.spinner();
                }
            }
        });
    }
}

fn choose(ui: &mut Ui, studio: &Studio, form: &mut PreviewForm, out: &mut Vec<Command>) {
    ui.horizontal_wrapped(|ui| {
        let button = ui.button("Choose a picture…");
        if button.on_hover_text("PNG, JPEG or WebP; it can be dropped onto the window, too").clicked() {
            out.push(Command::Ask(Question {
                title: "Picture to start from",
                kind: Answer::File,
                ending: "",
                offered: "",
                then: Command::StartFrom,
            }));
        }
        let has = studio.preview.picture.as_ref().is_some_and(|picture| !picture.coarse);
        let button = ui.add_enabled(has, egui::Button::new("Use this picture"));
        let button = button.on_hover_text("The picture above is kept beside the project, and the next starts from it");
        if button.on_disabled_hover_text("There is no finished picture yet").clicked() {
            out.push(Command::StartFromPicture);
        }
        if form.init.is_some()
            && ui.button("Start from noise").on_hover_text("Without a picture to start from").clicked()
        {
            (form.init, form.mask, form.strength) = (None, None, STRENGTH);
        }
    });
}
