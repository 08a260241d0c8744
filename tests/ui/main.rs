//! The real window, driven by its labels on a project of its own, from an empty folder to a reopened one.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod keyboard;
mod models;
mod panels;
mod readers;
mod shelf;
mod story;

use std::path::Path;
use std::time::{Duration, Instant};

use egui::accesskit::Role;
use egui::{Key, Modifiers};
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use triptych::engine::device::Choice;
use triptych::ui::{App, Start};

/// What one thing may take: a picture, a model, five steps, on two cores that others keep busy too.
const PATIENCE: Duration = Duration::from_mins(6);

const SIZE: [f32; 2] = [1280.0, 800.0];

/// On the project in `folder`, computing on the CPU.
fn start(folder: &Path) -> Start {
    Start {
        project: Some(folder.join("triptych.toml")),
        device: Choice::Cpu,
        precision: None,
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

/// Presses the button of this name.
fn press(window: &mut Harness<'_, App>, name: &str) {
    window.get_by_role_and_label(Role::Button, name).click();
    window.run_steps(3);
}

/// Uses a control as a screen reader does, wherever it is scrolled to.
fn use_control(window: &mut Harness<'_, App>, name: &str) {
    window.get_all_by_label(name).last().expect("there is a control of this name").click_accesskit();
    window.run_steps(4);
}

/// The first button whose name begins so.
fn named_from(window: &Harness<'_, App>, beginning: &str) -> String {
    let names = window.get_all_by_role(Role::Button).filter_map(|node| node.accesskit_node().label());
    names.into_iter().find(|name| name.starts_with(beginning)).expect("there is a button of this name")
}

/// Answers the question in the window: no dialog can open where this runs.
fn answer(window: &mut Harness<'_, App>, title: &str, path: &Path) {
    until(window, title, |window| window.query_by_role_and_label(Role::TextInput, title).is_some());
    window.get_by_role_and_label(Role::TextInput, title).focus();
    window.run_steps(2);
    window.get_by_role_and_label(Role::TextInput, title).type_text(&path.to_string_lossy());
    window.run_steps(2);
    press(window, "OK");
}

/// Types a number into the first field of this name.
fn set(window: &mut Harness<'_, App>, name: &str, value: &str) {
    // By the focus, wherever it is scrolled to.
    window.get_all_by_role_and_label(Role::SpinButton, name).next().expect("there is a field of this name").focus();
    window.run_steps(4);
    window.key_press_modifiers(Modifiers::COMMAND, Key::A);
    window.run_steps(1);
    window.event(egui::Event::Text(value.into()));
    window.run_steps(1);
    window.key_press(Key::Enter);
    window.run_steps(2);
    let field = window.get_all_by_role_and_label(Role::SpinButton, name).next().expect("the field is still there");
    assert_eq!(field.accesskit_node().numeric_value(), value.parse().ok(), "{name}");
}

/// Five steps of a concept are taught, and all panels have something to show.
fn teach(window: &mut Harness<'_, App>) {
    until(window, "the model", |window| shows(window, "Computes on: CPU"));
    until(window, "a first picture", |window| shows(window, " s · refined"));
    until(window, "the thumbnails", |window| shows(window, "11 pictures"));
    set(window, "Steps", "5");
    press(window, "Train");
    until(window, "the training's end", |window| shows(window, "it is on the mixing desk now"));
    settle(window);
}

/// Until nothing changes by itself any more: a button that a finished picture enables would come and go.
fn settle(window: &mut Harness<'_, App>) {
    until(window, "the pictures", |window| !window.state().is_busy());
    window.run_steps(4);
    until(window, "the pictures that these asked for", |window| !window.state().is_busy());
}

/// Every panel with everything in it unfolded, each handed to `look` with its name.
fn tour(window: &mut Harness<'_, App>, look: fn(&mut Harness<'_, App>, &str)) {
    teach(window);
    look(window, "Training");
    use_control(window, "Start from a picture");
    settle(window);
    use_control(window, "Use this picture");
    until(window, "the picture to start from", |window| window.query_by_label("Mask over the picture").is_some());
    settle(window);
    use_control(window, "Advanced");
    look(window, "Start from a picture");
    press(window, "Plan");
    use_control(window, "All settings");
    look(window, "Plan");
    use_control(window, "Add to queue");
    let queue = named_from(window, "Queue (");
    press(window, &queue);
    until(window, "the order", |window| shows(window, "waits"));
    look(window, "Queue");
    for kind in ["Concept ", "Adapter "] {
        let card = named_from(window, kind);
        use_control(window, &card);
    }
    // The project learns of it when it is saved, two seconds after a change.
    until(window, "the slot that the training took", |window| shows(window, " and free its slot"));
    press(window, "Merge panel");
    let blocks = named_from(window, "Blocks of ");
    use_control(window, &blocks);
    look(window, "Library and Merge");
    press(window, "Grid");
    look(window, "Grid");
}
