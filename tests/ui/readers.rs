//! What a screen reader is told: every control has a name, what it is, and its value.

use egui::accesskit::Role;
use egui_kittest::Harness;
use egui_kittest::kittest::NodeT as _;
use triptych::ui::App;

use crate::keyboard::is_control;
use crate::{named_from, press, tour, window};

#[track_caller]
fn all_are_told(window: &mut Harness<'_, App>, what: &str) {
    window.run_steps(4);
    let nodes = || window.root().children_recursive().map(|node| node.accesskit_node());
    let mut wrong: Vec<String> = Vec::new();
    for node in nodes().filter(|node| is_control(node.role())) {
        let (role, label) = (node.role(), node.label().unwrap_or_default());
        // A sign alone is no name: readers spell out “black right-pointing triangle”, or say nothing.
        if !label.chars().any(char::is_alphanumeric) {
            wrong.push(format!("{role:?} “{label}” at {:?} has no name", node.bounding_box()));
        }
        if matches!(role, Role::Slider | Role::SpinButton) && node.numeric_value().is_none() {
            wrong.push(format!("{role:?} “{label}” has no value"));
        }
        if matches!(role, Role::CheckBox | Role::RadioButton) && node.toggled().is_none() {
            wrong.push(format!("{role:?} “{label}” does not say whether it is on"));
        }
    }
    assert!(wrong.is_empty(), "{what}: {wrong:#?}");
}

#[test]
fn every_control_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut window = window(folder.path());
    tour(&mut window, all_are_told);
    for menu in ["Project", "View", "Computes on: "] {
        let name = named_from(&window, menu);
        press(&mut window, &name);
        all_are_told(&mut window, menu);
        window.key_press(egui::Key::Escape);
        window.run_steps(3);
    }
}
