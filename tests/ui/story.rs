//! From a folder of pictures to a reopened project, as an artist would go.

use egui::accesskit::Role;
use egui::{Key, Modifiers};
use egui_kittest::kittest::Queryable as _;
use triptych::engine::concept::shipped::{self, SHIPPED};
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::project::Project;
use triptych::engine::train::configuration::Configuration;

use crate::{answer, press, set, shows, until, window};

#[test]
fn a_concept_is_taught_mixed_seen_saved_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, _) = shipped::unpack(&SHIPPED[2], &folder.path().join("clown")).unwrap();
    let path = folder.path().join("triptych.toml");
    let mut window = window(folder.path());
    until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));
    until(&mut window, "a first picture", |window| shows(window, " s · refined"));

    press(&mut window, "Add concept…");
    answer(&mut window, "Choose the folder that holds the pictures", &pictures);
    until(&mut window, "the concept", |window| shows(window, "<train>"));

    set(&mut window, "Steps", "5");
    press(&mut window, "Train");
    until(&mut window, "the training", |window| shows(window, "step 5 of 5") || shows(window, "taught"));
    until(&mut window, "its end", |window| shows(window, "it is on the mixing desk now"));
    let adapter = folder.path().join("adapters/train.safetensors");
    assert!(LoraFile::open(&adapter).unwrap().tokens.contains_key("<train>"));

    window.get_by_label("Merge panel").click();
    window.run_steps(3);
    press(&mut window, "Save as adapter…");
    answer(&mut window, "Save the mix as", &folder.path().join("mix"));
    let mix = folder.path().join("mix.safetensors");
    // Until it is on the shelf: what comes there later would be the newest that undo knows.
    until(&mut window, "the mix", |window| mix.is_file() && window.query_by_label("Adapter mix").is_some());
    press(&mut window, "Mute train");
    until(&mut window, "its silence", |window| !window.state().is_busy());
    press(&mut window, "Undo");
    press(&mut window, "Redo");

    press(&mut window, "Save picture…");
    answer(&mut window, "Save the picture as", &folder.path().join("picture"));
    let picture = folder.path().join("picture.png");
    until(&mut window, "the picture", |_| picture.is_file());

    window.key_press_modifiers(Modifiers::COMMAND, Key::S);
    window.run_steps(2);
    drop(window);
    let project = Project::open(&path, 1).unwrap();
    assert_eq!(project.adapters.len(), 2, "{:?}", project.adapters);
    assert_eq!(project.slots.len(), 1);
    assert!(project.desk.faders[0].muted);

    let mut window = crate::window(folder.path());
    until(&mut window, "the project again", |window| !window.state().is_busy());
    assert!(shows(&window, "train") && shows(&window, "1 of 8 slots used"));
    window.get_by_label("Merge panel").click();
    window.run_steps(3);
    assert!(window.query_by_label("Mute train").is_some());
}

#[test]
fn a_prompt_is_counted_weighed_and_read_at_another_layer() {
    let folder = tempfile::tempdir().unwrap();
    let mut window = window(folder.path());
    until(&mut window, "a first picture", |window| shows(window, " s · refined"));
    let prompt = window.get_by_role_and_label(Role::MultilineTextInput, "Prompt");
    prompt.focus();
    window.run_steps(2);
    window.key_press_modifiers(Modifiers::COMMAND, Key::A);
    window.run_steps(1);
    window.event(egui::Event::Text("red BREAK cat".into()));
    window.run_steps(2);
    assert!(shows(&window, "76 / 150"));
    window.key_press_modifiers(Modifiers::COMMAND, Key::ArrowUp);
    window.run_steps(2);
    set(&mut window, "Clip skip", "2");
    until(&mut window, "its picture", |window| !window.state().is_busy() && shows(window, " s · refined"));
    window.key_press_modifiers(Modifiers::COMMAND, Key::S);
    window.run_steps(2);
    drop(window);
    let preview = Project::open(&folder.path().join("triptych.toml"), 1).unwrap().preview;
    assert_eq!((preview.prompt.as_str(), preview.clip_skip), ("red BREAK (cat:1.1)", 2));
}

#[test]
fn settings_of_another_program_fill_the_form_and_are_saved_as_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, _) = shipped::unpack(&SHIPPED[2], &folder.path().join("clown")).unwrap();
    let [theirs, ours] = ["kohya.json", "ours.toml"].map(|name| folder.path().join(name));
    let form = serde_json::json!({
        "LoRA_type": "Standard", "network_dim": 4, "network_alpha": 2, "max_train_steps": 70, "lr_warmup": 10,
        "optimizer": "AdamW", "learning_rate": 0.0001, "seed": 5, "keep_tokens": 1, "train_data_dir": pictures,
    });
    std::fs::write(&theirs, form.to_string()).unwrap();
    let mut window = window(folder.path());
    until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));
    assert!(shows(&window, "Thorough") && !shows(&window, "24 GB"), "a small model needs no preset by memory");

    press(&mut window, "Open settings…");
    answer(&mut window, "Open settings of a training", &theirs);
    until(&mut window, "what is left out", |window| shows(window, "Not taken over"));
    assert!(shows(&window, "keep_tokens = 1 has no counterpart"));
    until(&mut window, "the concept", |window| shows(window, "called up by"));
    press(&mut window, "Understood");
    assert!(!shows(&window, "Not taken over"));

    press(&mut window, "Save settings…");
    answer(&mut window, "Save the settings as", &ours);
    until(&mut window, "the file", |_| ours.is_file());
    let saved = Configuration::read(&ours).unwrap();
    assert_eq!((saved.method.as_deref(), saved.seed, saved.concept), (Some("lora"), Some(5), Some(pictures)));
    for (name, value) in [("rank", 4), ("alpha", 2), ("steps", 70), ("warmup", 7), ("prior", 0)] {
        assert_eq!(saved.fields[name].as_integer(), Some(value), "{name}");
    }
}
