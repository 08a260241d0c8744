//! Which step of a training is shown, and how it came there.

use egui::{Button, Response, RichText, Slider, Ui, WidgetInfo, WidgetType};
use egui_plot::{Line, Plot, PlotPoints, VLine};

use super::shown::number;
use crate::ui::snapshots::Snapshot;
use crate::ui::theme;

/// Seconds that each snapshot is shown while playing.
const PACE: f64 = 0.1;

#[derive(Debug, Default)]
pub struct Timeline {
    /// The step looked at; `None` follows the newest.
    at: Option<usize>,
    /// When the snapshot on show came up, while playing.
    playing: Option<f64>,
}

impl Timeline {
    /// Place of the snapshot on show: the last one up to the step looked at.
    pub fn place(&self, snapshots: &[Snapshot]) -> usize {
        let newest = snapshots.len().saturating_sub(1);
        self.at.map_or(newest, |step| snapshots.partition_point(|s| s.step <= step).saturating_sub(1))
    }

    fn go(&mut self, snapshots: &[Snapshot], place: usize) {
        self.at = snapshots.get(place).filter(|_| place + 1 < snapshots.len()).map(|s| s.step);
    }

    /// Goes on while playing.
    pub fn tick(&mut self, ui: &Ui, snapshots: &[Snapshot]) {
        let Some(since) = self.playing else { return };
        let now = ui.input(|input| input.time);
        let due = ((now - since) / PACE) as usize;
        if due > 0 {
            let place = self.place(snapshots) + due;
            self.go(snapshots, place);
            self.playing = self.at.map(|_| now);
        }
        ui.ctx().request_repaint_after_secs(PACE as f32);
    }

    pub fn show(&mut self, ui: &mut Ui, snapshots: &[Snapshot], is_live: bool) {
        let place = self.place(snapshots);
        let newest = snapshots.len() - 1;
        if glyph(ui, place > 0, "⏮", "Earlier snapshot").clicked() {
            self.at = Some(snapshots[place - 1].step);
            self.playing = None;
        }
        let (sign, name) = if self.playing.is_some() { ("⏸", "Halt snapshots") } else { ("▶", "Play snapshots") };
        if glyph(ui, newest > 0, sign, name).clicked() {
            self.playing = match self.playing {
                Some(_) => None,
                None => Some(ui.input(|input| input.time)),
            };
            if self.playing.is_some() && place == newest {
                self.at = Some(snapshots[0].step);
            }
        }
        if glyph(ui, place < newest, "⏭", "Later snapshot").clicked() {
            self.go(snapshots, place + 1);
            self.playing = None;
        }
        let mut wanted = place;
        ui.spacing_mut().slider_width = 140.0;
        let slider =
            Slider::new(&mut wanted, 0..=newest).show_value(false).handle_shape(egui::style::HandleShape::Circle);
        let slider = ui.add_enabled(newest > 0, slider).on_hover_text("Which step is shown");
        slider.widget_info(|| WidgetInfo::slider(newest > 0, snapshots[place].step as f64, "Step of the spectrum"));
        if slider.changed() {
            self.go(snapshots, wanted);
            self.playing = None;
        }
        ui.label(format!("step {}", snapshots[place].step));
        let mut follows = self.at.is_none();
        let name = if is_live { "live" } else { "newest" };
        if ui.toggle_value(&mut follows, name).on_hover_text("Always shows the newest snapshot").clicked() {
            self.at = if follows { None } else { Some(snapshots[place].step) };
            self.playing = None;
        }
    }
}

fn glyph(ui: &mut Ui, enabled: bool, sign: &str, name: &str) -> Response {
    let response = ui.add_enabled(enabled, Button::new(sign));
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Button, enabled, name));
    response.on_hover_text(name).on_disabled_hover_text(format!("{name}: there is none"))
}

/// Two small curves over the steps.
pub fn curves(ui: &mut Ui, snapshots: &[Snapshot], place: usize, height: f32) {
    let here = &snapshots[place];
    ui.columns_const(|[left, right]| {
        curve(
            left,
            ("mean effective rank", "How many directions a layer uses, as a mean over the layers"),
            here.effective_rank,
            (snapshots, place, height),
            |s| s.effective_rank,
        );
        curve(
            right,
            ("total energy", "How far the adapter moves the model: the squared singular values of all layers, added"),
            here.energy,
            (snapshots, place, height),
            |s| s.energy,
        );
    });
}

fn curve(
    ui: &mut Ui,
    (name, tip): (&'static str, &str),
    now: f64,
    (snapshots, place, height): (&[Snapshot], usize, f32),
    value: fn(&Snapshot) -> f64,
) {
    let text = format!("{name} {}", number(now));
    ui.add(egui::Label::new(RichText::new(text).small()).truncate()).on_hover_text(tip);
    let palette = theme::palette(ui);
    let points: PlotPoints<'_> = snapshots.iter().map(|s| [s.step as f64, value(s)]).collect();
    let below = (height - ui.text_style_height(&egui::TextStyle::Small) - 6.0).max(36.0);
    let plot = Plot::new(name)
        .height(below)
        .show_axes(false)
        .show_grid(false)
        .allow_drag(false)
        .allow_zoom(false)
        .allow_scroll(false)
        .allow_boxed_zoom(false)
        .allow_double_click_reset(false)
        .include_y(0.0)
        .set_margin_fraction(egui::vec2(0.02, 0.08))
        .show(ui, |plot| {
            plot.vline(VLine::new("shown", snapshots[place].step as f64).color(palette.faint));
            plot.line(Line::new(name, points).color(palette.curve).width(1.5));
        });
    plot.response.widget_info(|| WidgetInfo::labeled(WidgetType::Other, true, format!("Curve of {name}")));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn follows_the_newest_until_an_older_one_is_chosen() {
        let snapshot = |step| Snapshot::new(step, Arc::from([]), Vec::new());
        let mut snapshots = [5, 10, 15].map(snapshot).to_vec();
        let mut timeline = Timeline::default();
        assert_eq!(timeline.place(&snapshots), 2);
        timeline.go(&snapshots, 1);
        snapshots.push(snapshot(20));
        assert_eq!(timeline.place(&snapshots), 1);
        // Thinned out since.
        snapshots.remove(1);
        assert_eq!(timeline.place(&snapshots), 0);
        timeline.go(&snapshots, 2);
        snapshots.push(snapshot(25));
        assert_eq!(timeline.place(&snapshots), 3, "the newest stays the newest");
    }
}
