//! A training as the window follows it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egui::TextureHandle;

use crate::engine::Error;
use crate::engine::adapter::FileKind;
use crate::engine::event::{Event, Spectrum};
use crate::ui::snapshots::Snapshots;
use crate::ui::work::training::Control;

/// Share of the new in the smoothed loss.
const SMOOTHING: f32 = 0.06;
/// Share of the new in the time of a step.
const PACE: f64 = 0.2;

pub struct Run {
    /// What is taught, for people.
    pub name: String,
    pub out: PathBuf,
    /// The word that calls it up.
    pub token: String,
    /// Whether it is of the open project and model: what it makes then goes onto the desk.
    pub belongs: bool,
    /// Whether it reads columns of a slot that no other slot has.
    pub in_slots: bool,
    /// What the time of its steps is remembered under.
    pub key: Option<String>,
    /// Of the prompt that samples are made with.
    pub prompt: String,
    /// Folder of the concept, as its entry has it.
    pub concept: PathBuf,
    pub control: Arc<Control>,
    pub total: usize,
    pub steps: Vec<Point>,
    /// The loss on pictures and noise that stay the same, by step.
    pub steady: Vec<(usize, f32)>,
    /// Step and steady loss of the best adapter, where that is kept.
    pub best: Option<(usize, f32)>,
    pub strip: Vec<Sample>,
    pub spectra: Snapshots,
    /// What its method leaves of a layer: decides whether there is a spectrum to follow.
    pub leaves: FileKind,
    /// Whether a kept step is being measured.
    pub is_measuring: bool,
    /// The stage before the steps: what, how many done, of how many.
    pub stage: Option<(String, usize, usize)>,
    /// Seconds, smoothed, without pauses.
    pub step_seconds: Option<f64>,
    last: Option<Instant>,
    pub started: Instant,
    pub state: RunState,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RunState {
    Running,
    Paused,
    Stopping,
    Done,
    Stopped,
    Failed(Error),
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub step: usize,
    pub loss: f32,
    pub smooth: f32,
    pub rate: f64,
    /// Joint norm of all gradients.
    pub gradient: f32,
}

/// A picture of a step.
pub struct Sample {
    pub step: usize,
    pub look: Option<TextureHandle>,
    pub from: Origin,
}

/// What a sample was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The step's own file, which can become the adapter while it is there.
    File { is_there: bool },
    /// The training itself, under a prompt of its own.
    Training { prompt: String },
}

impl Run {
    pub fn new(name: String, out: PathBuf, concept: PathBuf, prompt: String, total: usize) -> Self {
        Self {
            name,
            out,
            token: String::new(),
            belongs: true,
            in_slots: true,
            key: None,
            prompt,
            concept,
            control: Arc::default(),
            total,
            steps: Vec::new(),
            steady: Vec::new(),
            best: None,
            strip: Vec::new(),
            spectra: Snapshots::default(),
            leaves: FileKind::Lora,
            is_measuring: false,
            stage: None,
            step_seconds: None,
            last: None,
            started: Instant::now(),
            state: RunState::Running,
        }
    }

    pub fn is_live(&self) -> bool {
        matches!(self.state, RunState::Running | RunState::Paused | RunState::Stopping)
    }

    pub fn hear(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Stage { name, total } if name != "training" => self.stage = Some((name.clone(), 0, *total)),
            Event::Progress { done, total } => {
                if let Some(stage) = &mut self.stage {
                    (stage.1, stage.2) = (*done, *total);
                }
            }
            Event::Step { step, total, loss, rate, gradient, .. } => {
                self.stage = None;
                self.total = *total;
                let smooth = self.steps.last().map_or(*loss, |p| p.smooth + SMOOTHING * (loss - p.smooth));
                self.steps.push(Point { step: *step, loss: *loss, smooth, rate: *rate, gradient: *gradient });
                if let Some(last) = self.last.replace(now) {
                    let seconds = (now - last).as_secs_f64();
                    self.step_seconds = Some(self.step_seconds.map_or(seconds, |s| s + PACE * (seconds - s)));
                }
            }
            Event::Steady { step, loss } => self.steady.push((*step, *loss)),
            Event::Best { step, loss, .. } => self.best = Some((*step, *loss)),
            Event::Kept { step, .. } => {
                self.strip.retain(|sample| sample.step != *step || !matches!(sample.from, Origin::File { .. }));
                self.strip.push(Sample { step: *step, look: None, from: Origin::File { is_there: true } });
            }
            Event::Dropped { step } => {
                for sample in self.strip.iter_mut().filter(|sample| sample.step == *step) {
                    if let Origin::File { is_there } = &mut sample.from {
                        *is_there = false;
                    }
                }
            }
            Event::Spectrum(Spectrum { step, layers }) => {
                self.spectra.hear(*step, layers.iter().map(|layer| (layer.layer.as_str(), layer.values.as_slice())));
            }
            _ => {}
        }
    }

    pub fn pause(&mut self, paused: bool) {
        self.control.pause(paused);
        self.state = if paused { RunState::Paused } else { RunState::Running };
        // The pause is not a slow step.
        self.last = None;
    }

    pub fn step(&self) -> usize {
        self.steps.last().map_or(0, |point| point.step)
    }

    pub fn left(&self) -> Option<Duration> {
        let left = self.total.saturating_sub(self.step()) as f64;
        self.step_seconds.map(|seconds| Duration::from_secs_f64(seconds * left))
    }
}
