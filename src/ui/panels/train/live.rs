//! How the training goes: curves, pace, samples, and what can be asked of it.

use egui::{Color32, ProgressBar, RichText, ScrollArea, Ui, vec2};
use egui_plot::{HoverPosition, Line, Plot, PlotPoint, PlotPoints, Points};

use crate::engine::words;
use crate::ui::command::Command;
use crate::ui::run::{Origin, Point, Run, RunState, Sample};
use crate::ui::theme;
use crate::ui::widgets::focus;

/// Points that a curve is drawn with at most.
const MOST_POINTS: usize = 400;
const SAMPLE: f32 = 72.0;

#[derive(Default)]
pub struct Live {
    curve: Curve,
    /// Thinned points of the curve in view, made anew when steps came.
    drawn: Drawn,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Curve {
    #[default]
    Loss,
    Rate,
    Gradient,
}

/// What the plot shows, and what it was made from.
#[derive(Default)]
struct Drawn {
    of: Option<(std::time::Instant, usize, usize, Curve)>,
    raw: Vec<PlotPoint>,
    smooth: Vec<PlotPoint>,
    steady: Vec<PlotPoint>,
}

impl Live {
    pub fn ui(&mut self, ui: &mut Ui, run: &Run, out: &mut Vec<Command>) {
        head(ui, run);
        buttons(ui, run, out);
        self.curves(ui, run);
        best(ui, run, out);
        strip(ui, run, out);
    }

    fn curves(&mut self, ui: &mut Ui, run: &Run) {
        ui.horizontal_wrapped(|ui| {
            ui.selectable_value(&mut self.curve, Curve::Loss, "Loss")
                .on_hover_text("How far the model is from the pictures: falls, then levels out; noisy by nature");
            ui.selectable_value(&mut self.curve, Curve::Rate, "Learning rate");
            ui.selectable_value(&mut self.curve, Curve::Gradient, "Gradient norm")
                .on_hover_text("How hard the pictures pull; wild jumps mean that the learning rate is too high");
            if let Some(Point { loss, smooth, rate, gradient, .. }) = run.steps.last() {
                let now = match self.curve {
                    Curve::Loss => {
                        let steady = run.steady.last().map(|(_, loss)| format!("validation {loss:.4}"));
                        [format!("now {loss:.4}"), format!("smoothed {smooth:.4}")].into_iter().chain(steady).collect()
                    }
                    Curve::Rate => vec![format!("{rate:.2e}")],
                    Curve::Gradient => vec![format!("{gradient:.3}")],
                };
                // Whole on the next line rather than broken in two.
                for text in now {
                    ui.add(egui::Label::new(RichText::new(text).weak()).extend());
                }
            }
        });
        self.drawn.follow(run, self.curve);
        let palette = theme::palette(ui);
        Plot::new("curve")
            .height(130.0)
            .allow_drag(false)
            .allow_scroll(false)
            .allow_zoom(false)
            .set_margin_fraction(vec2(0.01, 0.08))
            .include_x(0.0)
            .include_x(run.total as f64)
            .show_grid([false, true])
            .label_formatter(|hover| match hover {
                HoverPosition::NearDataPoint { plot_name, position, .. } => {
                    Some(format!("{plot_name}\nstep {:.0}\n{:.4e}", position.x, position.y))
                }
                HoverPosition::Elsewhere { .. } => None,
            })
            .show(ui, |plot| {
                let line = |name: &str, points: &[PlotPoint], color: Color32, width: f32| {
                    Line::new(name.to_owned(), PlotPoints::Owned(points.to_vec())).color(color).width(width)
                };
                match self.curve {
                    Curve::Loss => {
                        plot.line(line("loss", &self.drawn.raw, palette.faint, 1.0));
                        plot.line(line("smoothed", &self.drawn.smooth, palette.curve, 2.0));
                        plot.line(line("validation", &self.drawn.steady, palette.warning, 1.5));
                        let points = PlotPoints::Owned(self.drawn.steady.clone());
                        plot.points(Points::new("validation", points).color(palette.warning).radius(2.5));
                    }
                    Curve::Rate => plot.line(line("learning rate", &self.drawn.raw, palette.curve, 2.0)),
                    Curve::Gradient => plot.line(line("gradient norm", &self.drawn.raw, palette.curve, 1.5)),
                }
            });
    }
}

impl Drawn {
    fn follow(&mut self, run: &Run, curve: Curve) {
        let of = Some((run.started, run.steps.len(), run.steady.len(), curve));
        if self.of == of {
            return;
        }
        self.of = of;
        let every = run.steps.len().div_ceil(MOST_POINTS).max(1);
        let thin = |value: fn(&Point) -> f64| {
            run.steps.iter().step_by(every).map(|point| PlotPoint::new(point.step as f64, value(point))).collect()
        };
        self.raw = thin(match curve {
            Curve::Loss => |point| f64::from(point.loss),
            Curve::Rate => |point| point.rate,
            Curve::Gradient => |point| f64::from(point.gradient),
        });
        self.smooth = thin(|point| f64::from(point.smooth));
        self.steady = run.steady.iter().map(|&(step, loss)| PlotPoint::new(step as f64, f64::from(loss))).collect();
    }
}

fn head(ui: &mut Ui, run: &Run) {
    let palette = theme::palette(ui);
    ui.horizontal_wrapped(|ui| {
        ui.strong(&run.name);
        match &run.state {
            RunState::Running => ui.label(format!("step {} of {}", run.step(), run.total)),
            RunState::Paused => {
                ui.colored_label(palette.warning, "paused: the model stays loaded, try prompts in Preview")
            }
            RunState::Stopping => ui.label("stopping after this step…"),
            RunState::Done => ui.colored_label(palette.good, "taught: it is on the mixing desk now"),
            RunState::Stopped => ui.label("stopped; “Go on” in Plan continues"),
            RunState::Failed(error) => ui.colored_label(palette.error, error.to_string()),
        };
    });
    let share = run.step() as f32 / run.total.max(1) as f32;
    ui.add(ProgressBar::new(share).desired_height(6.0));
    ui.weak(match (&run.stage, run.step_seconds, run.left()) {
        (Some((name, done, total)), ..) if run.steps.is_empty() => format!("{name}: {done} of {total}"),
        (_, Some(seconds), Some(left)) if run.is_live() => {
            let pace = match seconds < 1.0 {
                true => format!("{:.1} steps/s", 1.0 / seconds),
                false => format!("{seconds:.1} s/step"),
            };
            format!("{pace} · {} left", words::duration(left.as_secs_f64()))
        }
        (_, Some(seconds), _) => format!("{:.1} steps/s", 1.0 / seconds),
        _ => "preparing…".into(),
    });
}

fn buttons(ui: &mut Ui, run: &Run, out: &mut Vec<Command>) {
    if !run.is_live() {
        return;
    }
    ui.horizontal_wrapped(|ui| {
        if run.state == RunState::Paused {
            if ui.button("Resume").clicked() {
                out.push(Command::Resume);
            }
        } else if ui.button("Pause").on_hover_text("The model stays loaded, so that prompts can be tried").clicked() {
            out.push(Command::Pause);
        }
        if ui.button("Stop").on_hover_text("Keeps what was learnt, to go on later").clicked() {
            out.push(Command::Stop);
        }
        if ui.button("Sample now").on_hover_text("A picture of this step, on the strip below").clicked() {
            out.push(Command::SampleNow);
        }
        if ui.button("Save now").on_hover_text("Writes the state that a crash would go on from").clicked() {
            out.push(Command::SaveNow);
        }
    });
}

/// The adapter of the lowest steady loss, where it is kept.
fn best(ui: &mut Ui, run: &Run, out: &mut Vec<Command>) {
    let Some((step, loss)) = run.best else { return };
    ui.horizontal_wrapped(|ui| {
        ui.label(format!("Best so far: step {step}, validation {loss:.4}"));
        let button = ui.add_enabled(!run.is_live(), egui::Button::new("Keep the best").small());
        let button = button
            .on_hover_text("Makes the adapter of this step the adapter")
            .on_disabled_hover_text("It can be kept once the training has ended");
        if button.clicked() {
            out.push(Command::KeepStep(step));
        }
    });
}

fn strip(ui: &mut Ui, run: &Run, out: &mut Vec<Command>) {
    if run.strip.is_empty() {
        ui.weak("Samples of the steps will appear here");
        return;
    }
    ui.weak(format!("Samples of “{}”", run.prompt));
    let line = |ui: &mut Ui| {
        for Sample { step, look, from } in &run.strip {
            ui.vertical(|ui| {
                let (rect, response) = ui.allocate_exact_size(vec2(SAMPLE, SAMPLE), egui::Sense::hover());
                match look {
                    Some(look) => {
                        egui::Image::new(look).alt_text(format!("Sample of step {step}")).paint_at(ui, rect);
                    }
                    None => {
                        ui.painter().rect_filled(rect, 4.0, theme::palette(ui).card);
                    }
                }
                let is_there = match from {
                    Origin::File { is_there } => *is_there,
                    Origin::Training { prompt } => {
                        response.on_hover_text(format!("“{prompt}”, in {}.samples", run.out.display()));
                        ui.weak(RichText::new(format!("step {step}")).small());
                        return;
                    }
                };
                let text = RichText::new(format!("Keep {step}")).small();
                let button = ui.add_enabled(!run.is_live() && is_there, egui::Button::new(text).small());
                let button = button.on_hover_text("Makes the adapter of this step the adapter");
                let button = button.on_disabled_hover_text(match is_there {
                    true => "Any step can be kept once the training has ended",
                    false => "The file of this step made room for later ones",
                });
                if button.clicked() {
                    out.push(Command::KeepStep(*step));
                }
            });
        }
    };
    ScrollArea::horizontal().id_salt("strip").show(ui, |ui| {
        ui.horizontal_top(line);
        focus::follow(ui);
    });
}
