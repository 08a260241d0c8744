//! The panel, by keyboard and in numbers.

use egui::Key;
use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;

use super::*;
use crate::engine::device::Choice;
use crate::engine::event::{Event, SingularValues};
use crate::engine::project::Project;
use crate::ui::preferences::Preferences;

fn studio() -> Studio {
    Studio::new(Project::new(8), "/p/triptych.toml".into(), Choice::Cpu, Preferences::default())
}

/// A training that has sent three snapshots of two layers.
fn trained() -> Studio {
    let mut run = Run::new("robot".into(), "/p/robot.safetensors".into(), "robot".into(), String::new(), 30);
    for step in [10, 20, 30] {
        let layer = |layer: &str, most: f32| SingularValues {
            layer: layer.into(),
            values: (0..8).map(|i| most * step as f32 / (1.0 + i as f32)).collect(),
        };
        let layers = vec![
            layer("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v", 0.01),
            layer("lora_unet_down_blocks_0_attentions_0_proj_in", 0.002),
        ];
        run.hear(&Event::Spectrum(crate::engine::event::Spectrum { step, layers }), Instant::now());
    }
    Studio { run: Some(run), ..studio() }
}

struct Room {
    panel: Spectrum,
    studio: Studio,
    out: Vec<Command>,
}

fn harness<'a>(studio: Studio, size: [f32; 2]) -> Harness<'a, Room> {
    let room = Room { panel: Spectrum::default(), studio, out: Vec::new() };
    Harness::builder().with_step_dt(0.05).with_size(size).build_ui_state(
        |ui, room: &mut Room| {
            theme::install(ui.ctx());
            room.panel.ui(ui, &room.studio, &mut room.out);
        },
        room,
    )
}

#[test]
fn arrows_go_through_the_layers() {
    let mut harness = harness(trained(), [1200.0, 160.0]);
    harness.run();
    harness.get_by_label("down 0 · attention 0 · projection in");
    harness.get_by_label("Heat strip of the layers").focus();
    harness.run();
    harness.key_press(Key::ArrowRight);
    harness.run();
    harness.get_by_label("up 1 · attention 0 · cross attention · values");
    harness.key_press(Key::Home);
    harness.run();
    harness.get_by_label("down 0 · attention 0 · projection in");
}

#[test]
fn earlier_steps_come_back() {
    let mut harness = harness(trained(), [1200.0, 160.0]);
    harness.run();
    harness.get_by_label("step 30");
    harness.get_by_label("Earlier snapshot").click();
    harness.run();
    harness.get_by_label("step 20");
    harness.get_by_label("live").click();
    harness.run();
    harness.get_by_label("step 30");
    harness.get_by_label("Play snapshots").click();
    harness.run_steps(2);
    assert_ne!(harness.state().panel.timeline.place(harness.state().studio.run.as_ref().unwrap().spectra.all()), 2);
    harness.run_steps(60);
    harness.get_by_label("step 30");
}

#[test]
fn narrow_windows_scroll() {
    let mut harness = harness(trained(), [560.0, 120.0]);
    harness.run();
    harness.get_by_label("Heat strip of the layers");
}

#[test]
fn an_empty_project_says_what_to_do() {
    let mut harness = harness(studio(), [1200.0, 160.0]);
    harness.run();
    harness.get_by_label_contains("Start a training in Train");
    harness.get_by_label("Spectrum of");
}

#[test]
fn a_method_without_a_live_spectrum_says_why() {
    for (leaves, word) in [(FileKind::Own, "depends on the picture"), (FileKind::Difference, "at every sample")] {
        let mut run = Run::new("robot".into(), "/p/robot.safetensors".into(), "robot".into(), String::new(), 30);
        run.leaves = leaves;
        let mut harness = harness(Studio { run: Some(run), ..studio() }, [600.0, 160.0]);
        harness.run();
        harness.get_by_label_contains(word);
    }
}
