//! One strip for each adapter: fader, mute, solo, equaliser.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use egui::{DragValue, RichText, ScrollArea, Slider, SliderOrientation, Ui, vec2};

use crate::engine::io::names;
use crate::engine::project::{Desk, FURTHEST, Fader};
use crate::engine::words::stem;
use crate::ui::cards::{AdapterContent, Loading};
use crate::ui::command::Command;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::called::called;
use crate::ui::widgets::focus;

/// Of a strip in points.
const WIDTH: f32 = 104.0;
const FADER: f32 = 150.0;
const BAND: f32 = 60.0;

#[derive(Default)]
pub struct Strips {
    /// The equaliser in view, by file.
    open: Option<PathBuf>,
    /// Blocks of the adapters, each with the file that they were read from.
    blocks: BTreeMap<PathBuf, (Arc<AdapterContent>, Vec<String>)>,
}

impl Strips {
    pub fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        let mut desk = studio.project.desk.clone();
        let mut what = None;
        ScrollArea::horizontal().id_salt("strips").show(ui, |ui| {
            ui.horizontal_top(|ui| {
                for i in 0..desk.faders.len() {
                    let silent = desk.heard(&desk.faders[i]).unet == 0.0;
                    what = self.strip(ui, studio, &mut desk, i, silent).or(what);
                }
            });
            focus::follow(ui);
        });
        if let Some(file) = self.open.clone()
            && let Some(fader) = desk.faders.iter_mut().find(|fader| fader.file == file)
        {
            what = self.equaliser(ui, studio, fader).or(what);
        }
        if let Some(what) = what {
            out.push(Command::SetDesk { desk, what });
        }
    }

    fn strip(&mut self, ui: &mut Ui, studio: &Studio, desk: &mut Desk, i: usize, silent: bool) -> Option<&'static str> {
        let palette = theme::palette(ui);
        let fader = &mut desk.faders[i];
        let card = studio.adapter(&fader.file);
        let name = card.map_or_else(|| stem(&fader.file), |card| card.entry.name.clone());
        let mut what = None;
        theme::card(ui).show(ui, |ui| {
            ui.push_id(&fader.file, |ui| {
                ui.set_width(WIDTH);
                ui.vertical_centered(|ui| {
                    let text = RichText::new(&name).strong();
                    let text = if silent { text.weak() } else { text };
                    ui.add(egui::Label::new(text).truncate());
                    ui.spacing_mut().slider_width = FADER;
                    let slider = Slider::new(&mut fader.strength, -FURTHEST..=FURTHEST)
                        .orientation(SliderOrientation::Vertical)
                        .show_value(false)
                        .trailing_fill(!silent);
                    // A slider takes the whole line and stands at its beginning.
                    let slider = ui
                        .horizontal(|ui| {
                            ui.add_space((WIDTH - ui.spacing().interact_size.y) / 2.0 - ui.spacing().item_spacing.x);
                            ui.add(slider)
                        })
                        .inner
                        .on_hover_text("Strength; double click for 1");
                    labelled(&slider, egui::WidgetType::Slider, &format!("Strength of {name}"), fader.strength);
                    if slider.double_clicked() {
                        fader.strength = 1.0;
                        what = Some("fader");
                    }
                    let value =
                        DragValue::new(&mut fader.strength).range(-FURTHEST..=FURTHEST).speed(0.01).fixed_decimals(2);
                    let value = called(ui.add(value), &format!("Strength of {name} as a number"));
                    if slider.changed() || value.changed() {
                        what = Some("fader");
                    }
                    ui.horizontal(|ui| {
                        ui.add_space((WIDTH - 64.0) / 2.0);
                        if toggle(ui, "M", &format!("Mute {name}"), &mut fader.muted, palette.warning) {
                            what = Some("mute");
                        }
                        if toggle(ui, "S", &format!("Solo {name}"), &mut fader.solo, palette.accent) {
                            what = Some("solo");
                        }
                    });
                    let is_open = self.open.as_ref() == Some(&fader.file);
                    let changed = if fader.blocks.is_empty() { "Blocks" } else { "Blocks •" };
                    let button = ui.selectable_label(is_open, RichText::new(changed).small());
                    let button = button.on_hover_text("Strength of each block of the model");
                    labelled(&button, egui::WidgetType::Button, &format!("Blocks of {name}"), 0.0);
                    if button.clicked() {
                        self.open = (!is_open).then(|| fader.file.clone());
                    }
                    match card.map(|card| &card.content) {
                        None => drop(ui.colored_label(palette.error, "not in the library")),
                        Some(Loading::Waiting) => drop(ui.weak("opening…")),
                        Some(Loading::Failed(error)) => {
                            ui.colored_label(palette.error, RichText::new(&error.what).small());
                        }
                        Some(Loading::Ready(_)) => {}
                    }
                });
            });
        });
        what
    }

    fn equaliser(&mut self, ui: &mut Ui, studio: &Studio, fader: &mut Fader) -> Option<&'static str> {
        let content = studio.adapter(&fader.file)?.content.ready()?;
        let read = || (Arc::clone(content), in_order(content.file.modules()));
        let (known, blocks) = self.blocks.entry(fader.file.clone()).or_insert_with(read);
        if !Arc::ptr_eq(known, content) {
            (*known, *blocks) = read();
        }
        let mut what = None;
        theme::card(ui).show(ui, |ui| {
            ui.horizontal(|ui| {
                ui.label("Strength of each block");
                if ui.small_button("All to 1").clicked() {
                    fader.blocks.clear();
                    what = Some("blocks");
                }
            });
            ScrollArea::horizontal().id_salt("bands").show(ui, |ui| {
                ui.horizontal_top(|ui| {
                    for block in blocks.iter() {
                        let mut strength = fader.blocks.get(block).copied().unwrap_or(1.0);
                        ui.allocate_ui(vec2(64.0, BAND + 44.0), |ui| {
                            ui.vertical_centered(|ui| {
                                ui.spacing_mut().slider_width = BAND;
                                let slider = Slider::new(&mut strength, -FURTHEST..=FURTHEST)
                                    .orientation(SliderOrientation::Vertical)
                                    .show_value(false);
                                let slider = ui.add(slider);
                                labelled(&slider, egui::WidgetType::Slider, &format!("Strength in {block}"), strength);
                                let value = DragValue::new(&mut strength).range(-FURTHEST..=FURTHEST).speed(0.01);
                                let value = ui.add(value.fixed_decimals(2));
                                let value = called(value, &format!("Strength in {block} as a number"));
                                if slider.changed() || value.changed() {
                                    what = Some("block");
                                }
                                ui.add(egui::Label::new(RichText::new(short(block)).small()).truncate())
                                    .on_hover_text(block);
                            });
                        });
                        if (strength - 1.0).abs() < 1e-4 {
                            fader.blocks.remove(block);
                        } else {
                            fader.blocks.insert(block.clone(), strength);
                        }
                    }
                });
                focus::follow(ui);
            });
        });
        what
    }
}

fn toggle(ui: &mut Ui, letter: &str, name: &str, on: &mut bool, color: egui::Color32) -> bool {
    let text =
        if *on { RichText::new(letter).strong().color(ui.visuals().extreme_bg_color) } else { RichText::new(letter) };
    let button = egui::Button::new(text).min_size(vec2(28.0, 22.0));
    let button = ui.add(if *on { button.fill(color) } else { button }).on_hover_text(name);
    button.widget_info(|| egui::WidgetInfo::selected(egui::WidgetType::Button, true, *on, name));
    if button.clicked() {
        *on ^= true;
    }
    button.clicked()
}

fn labelled(response: &egui::Response, kind: egui::WidgetType, name: &str, value: f32) {
    response.widget_info(|| match kind {
        egui::WidgetType::Slider => egui::WidgetInfo::slider(true, f64::from(value), name),
        kind => egui::WidgetInfo::labeled(kind, true, name),
    });
}

/// The blocks that modules lie in, as the data passes through them.
fn in_order<'a>(modules: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let blocks: BTreeSet<String> = modules.into_iter().map(|module| names::block(module)).collect();
    let place = |block: &String| {
        let kinds = ["text", "down", "mid", "up"];
        kinds.iter().position(|kind| block.starts_with(kind)).unwrap_or(kinds.len())
    };
    let mut blocks: Vec<String> = blocks.into_iter().collect();
    blocks.sort_by_key(place);
    blocks
}

fn short(block: &str) -> String {
    block.replace("_blocks", "").replace("_block", "").replace("text_model", "text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_in_the_order_of_the_data() {
        let modules = ["lora_unet_up_blocks_0_x", "lora_unet_mid_block_x", "lora_unet_down_blocks_1_x", "lora_te_x"];
        let modules: Vec<String> = modules.map(str::to_owned).to_vec();
        let blocks = in_order(&modules);
        let places = ["down", "mid", "up"].map(|kind| blocks.iter().position(|block| block.starts_with(kind)).unwrap());
        assert!(places.is_sorted(), "{blocks:?}");
    }
}
