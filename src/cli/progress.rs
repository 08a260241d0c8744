//! Events as a progress bar, or as JSON lines; Ctrl+C as a clean stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::say;
use crate::engine::event::Event;
use crate::engine::{Error, Result};

/// Weight of the newest loss in the smoothed one.
const SMOOTHING: f32 = 0.05;

pub struct Progress {
    json: bool,
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    smoothed: Option<f32>,
    /// The latest steady loss.
    steady: Option<f32>,
}

impl Progress {
    /// Listens for Ctrl+C from now on; a second one ends the program at once.
    pub fn new(json: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        // A handler can be set once for each process; a second Progress keeps the first one's.
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("\nStopping at the next safe point; press Ctrl+C again to stop at once.");
        });
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::no_length() };
        bar.set_style(ProgressStyle::default_bar());
        Self { json, bar, stop, smoothed: None, steady: None }
    }

    /// The closure that jobs report to.
    pub fn watch(&mut self) -> impl FnMut(Event) -> Result<()> + '_ {
        |event| self.on(&event)
    }

    fn on(&mut self, event: &Event) -> Result<()> {
        if self.json {
            if let Ok(line) = serde_json::to_string(event) {
                // Where lines are lost, the result is too, and that is told.
                say(&line).ok();
            }
        } else {
            self.draw(event);
        }
        if self.stop.load(Ordering::SeqCst) {
            self.bar.abandon();
            return Err(Error::cancelled());
        }
        Ok(())
    }

    fn draw(&mut self, event: &Event) {
        match event {
            Event::Note { text } => self.line(text),
            Event::Warning { text } => self.line(&format!("Warning: {text}")),
            Event::Saved { path } => {
                self.bar.finish_and_clear();
                self.line(&format!("Saved {}", path.display()));
            }
            Event::Stage { name, total } => {
                (self.smoothed, self.steady) = (None, None);
                self.bar.finish_and_clear();
                self.bar = ProgressBar::new(*total as u64).with_style(style()).with_prefix(name.clone());
                self.bar.enable_steady_tick(Duration::from_secs(1));
            }
            Event::Kept { step, path } => self.line(&format!("Kept step {step}: {}", path.display())),
            Event::Best { step, loss, .. } => {
                self.line(&format!("Step {step} is the best so far: steady loss {loss:.4}"));
            }
            Event::Sampled { path, .. } => self.line(&format!("Sample {}", path.display())),
            Event::Steady { loss, .. } => self.steady = Some(*loss),
            // Too many numbers for a line, and what is said by the files that stay.
            Event::Spectrum(_) | Event::Dropped { .. } => {}
            Event::Progress { done, total } => {
                self.bar.set_position(*done as u64);
                if done == total {
                    self.bar.finish_and_clear();
                }
            }
            Event::Step { step, total, loss, .. } => {
                let before = self.smoothed.unwrap_or(*loss);
                let smoothed = before + SMOOTHING * (loss - before);
                self.smoothed = Some(smoothed);
                let steady = self.steady.map_or_else(String::new, |steady| format!(", steady {steady:.4}"));
                self.bar.set_message(format!("loss {smoothed:.4}{steady}"));
                self.bar.set_position(*step as u64);
                if step == total {
                    self.bar.finish_and_clear();
                    self.line(&format!("{total} steps, loss {smoothed:.4}"));
                }
            }
        }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {per_sec} {msg} ETA {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
