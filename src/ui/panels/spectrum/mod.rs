//! What an adapter is made of: the singular values of every layer's change, live while it is trained.

mod certificate;
mod detail;
mod layer;
mod shown;
mod strip;
#[cfg(test)]
mod tests;
mod timeline;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use egui::{ComboBox, ScrollArea, Ui, WidgetInfo, WidgetType, vec2};

use self::shown::{Shown, number};
use self::timeline::Timeline;
use crate::engine::adapter::FileKind;
use crate::ui::cards::{AdapterContent, Loading};
use crate::ui::command::Command;
use crate::ui::panel::{Panel, Row};
use crate::ui::run::Run;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::focus;

pub const ROW: Row = Row {
    name: "spectrum",
    title: "Spectrum",
    hint: "Each column is a layer, each row one direction it changes; bright ones change the picture most. Point at a column to read it",
    build: || Box::<Spectrum>::default(),
};

/// Height below which the panel scrolls.
const LOWEST: f32 = 96.0;
/// Width from which strip, layer and certificate stand side by side.
const WIDE: f32 = 900.0;
const DETAIL: f32 = 330.0;
const SIDE: f32 = 240.0;

#[derive(Default)]
struct Spectrum {
    shown: Option<(Source, Shown)>,
    /// The layer that is kept while the pointer is elsewhere.
    selected: usize,
    timeline: Timeline,
}

/// What `shown` was made from.
enum Source {
    Adapter(Arc<AdapterContent>),
    /// The training by its start, the step, and the newest step.
    Run(Instant, usize, usize),
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Adapter(a), Self::Adapter(b)) => Arc::ptr_eq(a, b),
            (Self::Run(a, step_a, newest_a), Self::Run(b, step_b, newest_b)) => {
                (a, step_a, newest_a) == (b, step_b, newest_b)
            }
            _ => false,
        }
    }
}

impl Panel for Spectrum {
    fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            match &studio.looked_at {
                Some(file) => self.adapter(ui, studio, file, out),
                None => self.run(ui, studio, out),
            }
            focus::follow(ui);
        });
    }
}

impl Spectrum {
    fn adapter(&mut self, ui: &mut Ui, studio: &Studio, file: &Path, out: &mut Vec<Command>) {
        let content = studio.adapter(file).map(|card| &card.content);
        let measured = match content {
            Some(Loading::Ready(content)) => content.spectra.as_ref().map(|layers| (content, layers)),
            Some(Loading::Failed(error)) => Err(error),
            Some(Loading::Waiting) => return said(ui, studio, out, "The adapter is being opened and measured …"),
            None => return said(ui, studio, out, "This adapter is no longer in the project: choose another above"),
        };
        let (content, layers) = match measured {
            Ok(measured) => measured,
            Err(error) => {
                picker(ui, studio, out);
                ui.colored_label(theme::palette(ui).error, &error.what);
                ui.weak(&error.advice);
                return;
            }
        };
        if layers.is_empty() {
            return said(ui, studio, out, "This adapter changes no layer: there is nothing to measure");
        }
        self.know(Source::Adapter(Arc::clone(content)), || {
            Shown::new(layers.iter().map(|layer| (layer.layer.as_str(), layer.singular_values.clone())), None)
        });
        ui.horizontal_wrapped(|ui| {
            picker(ui, studio, out);
            self.summary(ui);
        });
        let certificate = certificate::of_adapter(studio, file, content);
        self.rooms(ui, |ui, _| certificate::show(ui, &certificate));
    }

    fn run(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        let Some(run) = &studio.run else { return empty(ui, studio, out) };
        let snapshots = run.spectra.all();
        if snapshots.is_empty() {
            return said(ui, studio, out, why_none(run));
        }
        self.timeline.tick(ui, snapshots);
        let place = self.timeline.place(snapshots);
        self.know(Source::Run(run.started, snapshots[place].step, snapshots[snapshots.len() - 1].step), || {
            of_step(run, place)
        });
        ui.horizontal_wrapped(|ui| {
            picker(ui, studio, out);
            self.timeline.show(ui, snapshots, run.is_live());
            self.summary(ui);
        });
        let certificate = certificate::of_run(studio, run);
        self.rooms(ui, |ui, height| {
            timeline::curves(ui, snapshots, place, (height * 0.55).max(50.0));
            certificate::show(ui, &certificate);
        });
    }

    /// Makes what is shown anew if `source` is another one.
    fn know(&mut self, source: Source, make: impl FnOnce() -> Shown) {
        if self.shown.as_ref().is_none_or(|(known, _)| *known != source) {
            self.shown = Some((source, make()));
        }
    }

    fn summary(&self, ui: &mut Ui) {
        let Some((_, shown)) = &self.shown else { return };
        ui.weak(format!(
            "{} layers × {} · effective rank {:.1} · energy {}",
            shown.columns.len(),
            shown.rows,
            shown.effective_rank,
            number(shown.energy)
        ))
        .on_hover_text(
            "Singular values of ΔW at strength 1; effective rank is a mean over the layers, energy their sum",
        );
    }

    /// The strip, its layer, and what `side` adds: side by side, or below each other.
    fn rooms(&mut self, ui: &mut Ui, side: impl FnOnce(&mut Ui, f32)) {
        let Some((_, shown)) = &self.shown else { return };
        let selected = &mut self.selected;
        let height = ui.available_height().max(LOWEST);
        if ui.available_width() < WIDE {
            let hovered = strip::show(ui, shown, selected, LOWEST);
            detail::show(ui, &shown.columns[hovered.unwrap_or(*selected)], LOWEST);
            side(ui, LOWEST);
            return;
        }
        let gap = 2.0 * theme::GAP;
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = gap;
            let room = |ui: &mut Ui, width: f32, show: &mut dyn FnMut(&mut Ui)| {
                ui.allocate_ui(vec2(width, height), |ui| {
                    ui.set_width(width);
                    ui.spacing_mut().item_spacing.x = theme::GAP;
                    ui.vertical(show);
                });
            };
            let mut hovered = None;
            let wide = ui.available_width() - DETAIL - SIDE - 2.0 * gap;
            room(ui, wide, &mut |ui| hovered = strip::show(ui, shown, selected, height));
            room(ui, DETAIL, &mut |ui| detail::show(ui, &shown.columns[hovered.unwrap_or(*selected)], height));
            let mut side = Some(side);
            room(ui, SIDE, &mut |ui| {
                if let Some(side) = side.take() {
                    side(ui, height);
                }
            });
        });
    }
}

/// Why nothing of a training is there to see, and what to do.
fn why_none(run: &Run) -> &'static str {
    match (run.leaves, run.is_live()) {
        (FileKind::Own, _) => {
            "What this method learns depends on the picture, so it has no fixed weights to measure: judge it by the samples under Train"
        }
        (FileKind::Difference, true) => {
            "This method changes whole weights: they are measured at every sample of the training, because after every step it would take longer than the step. “Sample now” under Train measures at once"
        }
        (_, true) => "The first singular values come with the first steps of the training",
        (_, false) => "The training ended before its layers were measured: choose an adapter above",
    }
}

/// A snapshot; the brightest colour is the same for all of a training, so that steps can be compared.
fn of_step(run: &Run, place: usize) -> Shown {
    let snapshots = run.spectra.all();
    let snapshot = &snapshots[place];
    let strongest = snapshots.iter().map(|snapshot| snapshot.strongest).fold(0.0, f32::max);
    let wide = |values: &Vec<f32>| values.iter().map(|&x| f64::from(x)).collect();
    let layers = snapshot.layers.iter().zip(&snapshot.values).map(|(name, values)| (name.as_str(), wide(values)));
    Shown::new(layers, Some(strongest))
}

/// Chooses what is looked at.
fn picker(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    const TRAINING: &str = "Training now";
    let name = |file: &PathBuf| studio.adapter(file).map_or_else(|| "Gone".into(), |card| card.entry.name.clone());
    let training = studio.run.as_ref().map_or_else(|| TRAINING.into(), |run| format!("{TRAINING}: {}", run.name));
    let now = studio.looked_at.as_ref().map_or_else(|| training.clone(), name);
    let shown = ComboBox::from_id_salt("looked at").selected_text(now).width(150.0).truncate().show_ui(ui, |ui| {
        if ui.selectable_label(studio.looked_at.is_none(), training).clicked() {
            out.push(Command::LookAt(None));
        }
        for card in &studio.adapters {
            let is_shown = studio.looked_at.as_ref() == Some(&card.entry.file);
            let label = ui.selectable_label(is_shown, &card.entry.name);
            if label.on_hover_text(card.path.to_string_lossy()).clicked() {
                out.push(Command::LookAt(Some(card.entry.file.clone())));
            }
        }
    });
    shown.response.widget_info(|| WidgetInfo::labeled(WidgetType::ComboBox, true, "Spectrum of"));
    shown.response.on_hover_text("Whose spectrum is shown: the training's, or an adapter's");
}

fn said(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>, text: &str) {
    picker(ui, studio, out);
    ui.add(egui::Label::new(text).wrap());
}

/// Before anything was trained or opened.
fn empty(ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
    picker(ui, studio, out);
    let text = "Here you see how strongly each layer of the model is changed, and in how many directions, while an adapter is trained";
    ui.add(egui::Label::new(text).wrap());
    if studio.adapters.is_empty() {
        ui.weak("Start a training in Train, or drop an adapter file onto the window");
        return;
    }
    ui.weak("Nothing has been trained since the window opened. Start a training in Train, or look at an adapter");
    ui.horizontal_wrapped(|ui| {
        for card in studio.adapters.iter().take(4) {
            let button = ui.button(format!("Look at {}", card.entry.name));
            if button.on_hover_text("Shows the spectrum of this adapter").clicked() {
                out.push(Command::LookAt(Some(card.entry.file.clone())));
            }
        }
    });
}
