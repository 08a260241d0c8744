//! What a screen reader is told: every control has a name, what it is, and its value.

use egui::accesskit::Role;
use egui_kittest::Harness;
use egui_kittest::kittest::NodeT as _;
use triptych::ui::App;

use crate::keyboard::is_control;
use crate::{named_from, press, shows, teach, until, use_control, window};

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
    teach(&mut window);
    all_are_told(&mut window, "Training");
    use_control(&mut window, "Start from a picture");
    use_control(&mut window, "Use this picture");
    until(&mut window, "the picture to start from", |window| window.query_by_label("Mask over the picture").is_some());
    use_control(&mut window, "Advanced");
    all_are_told(&mut window, "Start from a picture");
    press(&mut window, "Plan");
    use_control(&mut window, "All settings");
    all_are_told(&mut window, "Plan");
    use_control(&mut window, "Add to queue");
    let queue = named_from(&window, "Queue (");
    press(&mut window, &queue);
    until(&mut window, "the order", |window| shows(window, "waits"));
    all_are_told(&mut window, "Queue");
    for kind in ["Concept ", "Adapter "] {
        let card = named_from(&window, kind);
        use_control(&mut window, &card);
    }
    press(&mut window, "Merge panel");
    let blocks = named_from(&window, "Blocks of ");
    use_control(&mut window, &blocks);
    all_are_told(&mut window, "Library and Merge");
    press(&mut window, "Grid");
    all_are_told(&mut window, "Grid");
    for menu in ["Project", "View", "Computes on: "] {
        let name = named_from(&window, menu);
        press(&mut window, &name);
        all_are_told(&mut window, menu);
        window.key_press(egui::Key::Escape);
        window.run_steps(3);
    }
}
