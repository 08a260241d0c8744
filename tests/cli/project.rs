//! `triptych train` and the project file: who gets which slot.

use triptych::engine::io::metadata;

use crate::command::{Desk, TRAIN};
use crate::train;

fn slot(desk: &Desk, name: &str) -> String {
    desk.lora(name).metadata[metadata::SLOT].clone()
}

#[test]
fn the_project_hands_out_slots() {
    let desk = Desk::new();
    // Two at once: the lock keeps them apart.
    let started =
        ["a", "b"].map(|word| desk.start(&format!("{TRAIN} --steps 3 --token <{word}> --out {word}.safetensors")));
    for running in started {
        assert!(running.child.wait_with_output().unwrap().status.success());
    }
    let mut slots = [slot(&desk, "a.safetensors"), slot(&desk, "b.safetensors")];
    slots.sort();
    assert_eq!(slots, ["0", "1"]);
    let before = slot(&desk, "a.safetensors");
    train(&desk, "a", "").result();
    assert_eq!(slot(&desk, "a.safetensors"), before, "training again keeps the slot");
    train(&desk, "c", "--slot 5").result();
    train(&desk, "d", "").result();
    assert_eq!((slot(&desk, "c.safetensors"), slot(&desk, "d.safetensors")), ("5".into(), "2".into()));
    let project: toml::Table = toml::from_str(&String::from_utf8(desk.read("triptych.toml")).unwrap()).unwrap();
    let entries: Vec<_> = project["slot"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["number"].as_integer(), entry["token"].as_str()))
        .collect();
    assert_eq!((entries.len(), entries[2], entries[3]), (4, (Some(2), Some("<d>")), (Some(5), Some("<c>"))));

    let failure = train(&desk, "e", "--slot 5").failure();
    assert!(
        failure.contains("Slot 5 belongs to <c> already (c.safetensors)") && failure.ends_with("triptych.toml"),
        "{failure}"
    );
    assert!(train(&desk, "e", "--slot 16").failure().contains("There is no slot 16"));
    assert!(!desk.path("e.safetensors").exists());
    // Plain LoRA needs no slot; another project starts again.
    train(&desk, "f", "--method lora").result();
    train(&desk, "g", "--project other/project.toml").result();
    assert_eq!(slot(&desk, "g.safetensors"), "0");
    assert!(!desk.lora("f.safetensors").metadata.contains_key(metadata::SLOT));
}

#[test]
fn a_full_project_says_so_and_its_advice_works() {
    let desk = Desk::new();
    desk.write("triptych.toml", "block = 64");
    train(&desk, "a", "").result();
    train(&desk, "b", "").result();
    let failure = train(&desk, "c", "").failure();
    assert!(failure.contains("room for 2 concepts") && failure.contains("--set basis=random"), "{failure}");
    assert!(!desk.path("c.safetensors").exists());
    train(&desk, "c", "--set basis=random").result();
    assert_eq!(desk.lora("c.safetensors").metadata[metadata::BASIS], "random v1 seed 0 block 64");
}

#[test]
fn a_training_that_fails_gives_its_old_slot_back() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    let before = desk.read("triptych.toml");
    let failure = train(&desk, "a", "--slot 3 --set rank=9").failure();
    assert!(failure.contains("Rank 9 does not fit"), "{failure}");
    assert_eq!(desk.read("triptych.toml"), before, "the file at --out is still in slot 0");
}
