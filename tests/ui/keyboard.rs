//! Everything that can be clicked can be reached and moved by keys alone.

use std::collections::{BTreeSet, HashSet};

use egui::Key;
use egui::accesskit::Role;
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use triptych::ui::App;

use crate::{settle, shows, teach, tour, until, window};

/// More presses of Tab than any window has controls.
const MOST: usize = 600;

/// What people act on.
pub fn is_control(role: Role) -> bool {
    use Role::{
        Button, CheckBox, ColorWell, ComboBox, Link, MultilineTextInput, RadioButton, Slider, SpinButton, Switch,
        TextInput,
    };
    matches!(
        role,
        Button
            | CheckBox
            | ColorWell
            | ComboBox
            | Link
            | MultilineTextInput
            | RadioButton
            | Slider
            | SpinButton
            | Switch
            | TextInput
    )
}

/// The controls in the window that can be used now, by their role and name.
fn controls(window: &Harness<'_, App>) -> BTreeSet<String> {
    let nodes = window.root().children_recursive().map(|node| node.accesskit_node());
    nodes
        .filter(|node| is_control(node.role()) && !node.is_disabled())
        .map(|node| named(node.role(), node.label()))
        .collect()
}

fn named(role: Role, label: Option<String>) -> String {
    // A number that has the focus is a text field.
    let role = if role == Role::SpinButton { Role::TextInput } else { role };
    format!("{role:?} {}", label.unwrap_or_default())
}

/// Where Tab goes, once around.
fn reached(window: &mut Harness<'_, App>) -> BTreeSet<String> {
    if let Some(id) = window.ctx.memory(egui::Memory::focused) {
        window.ctx.memory_mut(|memory| memory.surrender_focus(id));
    }
    let (mut reached, mut ids) = (BTreeSet::new(), HashSet::new());
    for _ in 0..MOST {
        window.key_press(Key::Tab);
        window.run_steps(1);
        let Some(id) = window.ctx.memory(egui::Memory::focused) else { continue };
        if !ids.insert(id) {
            return reached;
        }
        let focused = window
            .root()
            .children_recursive()
            .map(|node| node.accesskit_node())
            .find(egui_kittest::kittest::AccessKitNode::is_focused);
        reached.extend(focused.map(|node| named(node.role(), node.label())));
    }
    panic!("Tab does not come around: {reached:#?}");
}

#[track_caller]
fn all_are_reached(window: &mut Harness<'_, App>, what: &str) {
    settle(window);
    let reached = reached(window);
    let missed: Vec<String> = controls(window).into_iter().filter(|control| !reached.contains(control)).collect();
    assert!(missed.is_empty(), "{what}: Tab reaches {} controls, and not {missed:#?}", reached.len());
}

#[test]
fn tab_reaches_every_control_of_every_panel() {
    let folder = tempfile::tempdir().unwrap();
    tour(&mut window(folder.path()), all_are_reached);
}

#[test]
fn keys_open_choices_and_move_faders() {
    let folder = tempfile::tempdir().unwrap();
    let mut window = window(folder.path());
    teach(&mut window);

    // A choice, with Enter and with Space.
    for key in [Key::Enter, Key::Space] {
        window.get_by_role_and_label(Role::ComboBox, "Compare with").focus();
        window.run_steps(2);
        assert!(!shows(&window, "the untouched model"));
        window.key_press(key);
        window.run_steps(3);
        assert!(shows(&window, "the untouched model"), "{key:?} opens no choice");
        window.key_press(Key::Escape);
        window.run_steps(3);
    }
    window.get_by_role_and_label(Role::ComboBox, "Compare with").focus();
    window.run_steps(2);
    window.key_press(Key::Enter);
    window.run_steps(3);
    window.get_by_label("the untouched model").focus();
    window.run_steps(2);
    window.key_press(Key::Enter);
    until(&mut window, "the other picture", |window| {
        window.query_by_label("Divider between the two pictures").is_some()
    });

    // A tab, then a fader.
    window.get_by_label("Merge panel").focus();
    window.run_steps(2);
    window.key_press(Key::Enter);
    window.run_steps(3);
    let value = |window: &Harness<'_, App>, name: &str| {
        window.get_by_role_and_label(Role::Slider, name).accesskit_node().numeric_value().unwrap()
    };
    let sliders = window.get_all_by_role(Role::Slider).filter_map(|node| node.accesskit_node().label());
    let fader = sliders.into_iter().find(|label| label.starts_with("Strength of ")).unwrap();
    for (name, key) in [
        (fader.as_str(), Key::ArrowDown),
        ("Heat strip of the layers", Key::ArrowRight),
        ("Divider between the two pictures", Key::ArrowLeft),
    ] {
        window.get_by_role_and_label(Role::Slider, name).focus();
        window.run_steps(3);
        let before = value(&window, name);
        window.key_press(key);
        window.run_steps(3);
        assert_ne!(before.to_bits(), value(&window, name).to_bits(), "{key:?} does not move {name}");
        assert!(window.get_by_role_and_label(Role::Slider, name).is_focused(), "{name} loses the focus to its own key");
    }
}
