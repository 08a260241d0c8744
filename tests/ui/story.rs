//! From a folder of pictures to a reopened project, as an artist would go.

use std::path::Path;

use egui::accesskit::Role;
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use triptych::engine::concept::shipped::{self, SHIPPED};
use triptych::engine::project::Project;
use triptych::ui::App;

use crate::{shows, until, window};

/// Presses the one button of this name.
fn press(window: &mut Harness<'_, App>, name: &str) {
    window.get_by_role_and_label(Role::Button, name).click();
    window.run_steps(3);
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

#[test]
fn a_concept_is_taught_mixed_seen_saved_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, _) = shipped::unpack(&SHIPPED[2], &folder.path().join("mine")).unwrap();
    let mut window = window(folder.path());
    until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));

    press(&mut window, "Add concept…");
    answer(&mut window, "Folder of pictures", &pictures);
    until(&mut window, "the concept", |window| shows(window, "<train>"));
}
