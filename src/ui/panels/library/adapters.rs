//! The adapters' cards and the slot meter.

use egui::{Id, Label, Rect, RichText, Sense, Ui, pos2, vec2};

use crate::ui::cards::{AdapterCard, Loading};
use crate::ui::command::{Answer, Command, Question};
use crate::ui::panels::library::card::Card;
use crate::ui::panels::library::summary::Summary;
use crate::ui::panels::library::{Library, adapter, heading, meter};
use crate::ui::studio::Studio;
use crate::ui::theme::palette;

/// The little spectrum.
const BARS: egui::Vec2 = vec2(46.0, 26.0);
/// Narrower cards put it under the words.
const NARROW: f32 = 160.0;

impl Library {
    pub(super) fn adapters(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        heading(ui, "Adapters", |ui| {
            let button =
                ui.button("Add adapter…").on_hover_text("A LoRA file (.safetensors), yours or somebody else's");
            if button.clicked() {
                out.push(Command::Ask(Question {
                    title: "Choose an adapter file",
                    kind: Answer::File,
                    ending: "safetensors",
                    offered: "",
                    then: Command::Add,
                }));
            }
        });
        if let Some(facts) = &studio.facts {
            let (taken, capacity) = (meter::taken(studio), facts.capacity(studio.project.block));
            ui.label(RichText::new(format!("{} of {capacity} slots used", taken.len())).small().weak());
            meter::show(ui, &taken, capacity);
            if taken.len() >= capacity {
                ui.colored_label(
                    palette(ui).warning,
                    "No slot is left: train with another method, or with the random basis",
                );
            }
        }
        if studio.adapters.is_empty() {
            let text = "Nothing learnt yet: teach a concept in Train, or add a LoRA file";
            ui.label(RichText::new(text).small().weak());
        }
        self.summaries.keep(|path| studio.adapters.iter().any(|card| card.path == path));
        for card in &studio.adapters {
            let open = self.adapter.as_deref() == Some(&card.entry.file);
            let summary = self.summaries.get(card);
            let name = format!("Adapter {}", card.entry.name);
            let what = if open { "close this card" } else { "see what it is, rename it, look at its spectrum" };
            let help = format!("{}: {what}", card.entry.name);
            let id = Id::new(("adapter", &card.entry.file));
            let clicked = Card { id, name: &name, help: &help, open }.show(
                ui,
                |ui| head(ui, studio, card, summary),
                |ui| adapter::show(ui, studio, card, summary, out),
            );
            if clicked {
                self.adapter = (!open).then(|| card.entry.file.clone());
            }
        }
    }
}

fn head(ui: &mut Ui, studio: &Studio, card: &AdapterCard, summary: Option<&Summary>) {
    let bars = summary.map_or(&[][..], |summary| &summary.bars);
    let beside = |ui: &mut Ui| {
        let (rect, _) = ui.allocate_exact_size(BARS, Sense::hover());
        spectrum(ui, rect, bars);
    };
    if bars.is_empty() {
        words(ui, studio, card, summary);
    } else if ui.available_width() < NARROW {
        words(ui, studio, card, summary);
        beside(ui);
    } else {
        ui.horizontal_top(|ui| {
            let room = ui.available_width() - BARS.x - ui.spacing().item_spacing.x;
            ui.vertical(|ui| {
                ui.set_width(room);
                words(ui, studio, card, summary);
            });
            beside(ui);
        });
    }
}

fn words(ui: &mut Ui, studio: &Studio, card: &AdapterCard, summary: Option<&Summary>) {
    ui.spacing_mut().item_spacing.y = 1.0;
    ui.add(Label::new(&card.entry.name).truncate());
    match (&card.content, summary) {
        (Loading::Failed(error), _) => {
            ui.colored_label(palette(ui).error, RichText::new(&error.what).small());
        }
        (Loading::Ready(_), Some(summary)) => {
            ui.label(RichText::new(&summary.line).small().weak());
            if let Some(text) = stranger(studio, summary) {
                ui.colored_label(palette(ui).warning, RichText::new(text).small());
            }
        }
        _ => {
            ui.label(RichText::new("Reading the file…").small().weak());
        }
    }
}

/// A warning where the adapter was made for another model than the open one.
fn stranger(studio: &Studio, summary: &Summary) -> Option<String> {
    let (facts, hash) = (studio.facts.as_ref()?, summary.base_hash.as_ref()?);
    let base = summary.base.as_deref().unwrap_or("an unnamed model");
    (*hash != facts.hash).then(|| match base == facts.name {
        true => format!("⚠ made for another version of {base}"),
        false => format!("⚠ made for {base}, not for this model"),
    })
}

fn spectrum(ui: &Ui, rect: Rect, bars: &[f32]) {
    let step = rect.width() / bars.len() as f32;
    for (i, height) in bars.iter().enumerate() {
        let left = rect.left() + i as f32 * step;
        // A point high at least: a direction that holds little is still there.
        let top = rect.bottom() - (height * rect.height()).max(1.0);
        let bar = Rect::from_min_max(pos2(left, top), pos2(left + (step - 1.0).max(1.0), rect.bottom()));
        ui.painter().rect_filled(bar, 0, palette(ui).curve);
    }
}
