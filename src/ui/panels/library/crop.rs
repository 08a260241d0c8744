//! The chosen picture as training will see it: each of its views, and what masks it.

use egui::{Image, RichText, TextureHandle, Ui};

use crate::engine::concept::{Fit, Picture, View, Views};
use crate::ui::cards::Loading;
use crate::ui::command::Command;
use crate::ui::crops::Key;
use crate::ui::studio::Studio;
use crate::ui::widgets::called::called;
use crate::ui::widgets::failure::failure;

/// The crop is shown at most this large, in points.
const CROP: f32 = 160.0;

/// `at` is the view that is looked at.
pub fn show(ui: &mut Ui, studio: &Studio, picture: &Picture, views: &Views, at: &mut usize, out: &mut Vec<Command>) {
    let Some(with) = studio.opened.ready() else { return };
    // A mirror image shows nothing new.
    let of_picture: Vec<View> = views.of(picture.size).into_iter().filter(|view| !view.mirror).collect();
    *at = (*at).min(of_picture.len().saturating_sub(1));
    let Some(view) = of_picture.get(*at) else { return };
    ui.label(RichText::new(format!("As training will see it: {}", words(view))).small().weak())
        .on_hover_text("Fit, background, resolutions, versions and masks are settings of the training");
    if of_picture.len() > 1 {
        ui.horizontal(|ui| {
            let step = |ui: &mut Ui, text: &str, name: &str, enabled: bool| {
                called(ui.add_enabled(enabled, egui::Button::new(text).small()), name).clicked()
            };
            if step(ui, "◀", "Previous view", *at > 0) {
                *at -= 1;
            }
            ui.label(RichText::new(format!("{} of {}", *at + 1, of_picture.len())).small());
            if step(ui, "▶", "Next view", *at + 1 < of_picture.len()) {
                *at += 1;
            }
        });
    }
    let key = Key { picture: picture.clone(), view: *view, mask: views.mask, factor: with.model.vae.factor() };
    match studio.crops.get(&key) {
        None => out.push(Command::Crop(key)),
        Some(Loading::Waiting) => {
            ui.spinner();
        }
        Some(Loading::Failed(error)) => failure(ui, error),
        Some(Loading::Ready(crop)) => {
            ui.horizontal_wrapped(|ui| {
                let side = ui.available_width().min(CROP);
                let image = |ui: &mut Ui, texture: &TextureHandle, name: &str, help: &str| {
                    let size = texture.size_vec2() * (side / texture.size_vec2().max_elem());
                    ui.add(Image::from_texture(texture).fit_to_exact_size(size).alt_text(name)).on_hover_text(help);
                };
                image(ui, &crop.seen, "As training will see it", "The very pixels that training gets");
                if let Some(mask) = &crop.mask {
                    image(
                        ui,
                        mask,
                        "What counts",
                        "White counts in full, black as much as the training's setting says",
                    );
                }
            });
        }
    }
}

fn words(view: &View) -> String {
    let fit = match (view.number, view.fit) {
        (0, Fit::Pad) => "the whole picture",
        (0, Fit::Crop) => "the middle of the picture",
        _ => "a changed version",
    };
    format!("{fit}, {} × {} pixels", view.size[0], view.size[1])
}
