//! The real window, driven by its labels on a project of its own, from an empty folder to a reopened one.

mod models;
mod panels;
mod story;

use std::path::Path;
use std::time::{Duration, Instant};

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use triptych::engine::device::Choice;
use triptych::ui::{App, Start};

/// What one thing may take: a picture, a model, five steps, on two busy cores.
const PATIENCE: Duration = Duration::from_mins(2);

const SIZE: [f32; 2] = [1280.0, 800.0];

/// On the project in `folder`, computing on the CPU.
fn start(folder: &Path) -> Start {
    Start {
        project: Some(folder.join("triptych.toml")),
        device: Choice::Cpu,
        preferences: Some(folder.join("window.toml")),
        queue: Some(folder.join("queue")),
        began: Instant::now(),
    }
}

/// A window that draws nothing.
fn window(folder: &Path) -> Harness<'static, App> {
    let start = start(folder);
    Harness::builder().with_size(SIZE).build_eframe(move |cc| App::new(cc, start))
}

/// The same, drawn by the GPU or what stands in for one.
fn drawn_window(folder: &Path, theme: egui::Theme) -> Harness<'static, App> {
    let start = start(folder);
    Harness::builder().with_size(SIZE).with_theme(theme).wgpu().build_eframe(move |cc| App::new(cc, start))
}

/// Draws frames until `done`; what was waited for is told when it never comes.
fn until(window: &mut Harness<'_, App>, what: &str, done: impl Fn(&Harness<'_, App>) -> bool) {
    let start = Instant::now();
    while !done(window) {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        window.step();
        std::thread::sleep(Duration::from_millis(15));
    }
}

fn shows(window: &Harness<'_, App>, text: &str) -> bool {
    window.query_all_by_label_contains(text).next().is_some()
}
