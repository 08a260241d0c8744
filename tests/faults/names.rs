//! Names from inside files become names of files: none leads out of the folder that was asked for.

use std::collections::BTreeSet;

use crate::command::{Desk, TRAIN, tensors};
use triptych::engine::io::safetensors::Checkpoint;

#[test]
fn words_of_adapters_stay_inside_the_model_they_are_merged_into() {
    let desk = Desk::new();
    let long = format!("<{}>", "long".repeat(100));
    let words = ["<../../../evil>", "</etc/evil>", "<..>", "<EVIL>", long.as_str()];
    let mut line = String::from("merge");
    for (i, word) in words.iter().enumerate() {
        desk.run(&format!("{TRAIN} --method lora --steps 1 --token '{word}' --out {i}.safetensors")).result();
        line += &format!(" {i}.safetensors:0.2");
    }
    let before = desk.contents();
    desk.run(&format!("{line} --into starter --out deep/model")).result();
    let after = desk.contents();
    assert!(before.iter().all(|(name, content)| after.get(name) == Some(content)), "a file outside has changed");
    let new: BTreeSet<_> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    assert!(new.iter().all(|name| name.starts_with("deep/model/")), "{new:?}");
    // Each has a file, under its own name inside.
    let found: BTreeSet<String> = new
        .iter()
        .filter(|name| name.contains("/embeddings/"))
        .map(|name| Checkpoint::open(&desk.path(name)).unwrap().metadata()["token"].clone())
        .collect();
    assert_eq!(found, words.map(String::from).into());
    // A second time it is refused, and the first one stays whole.
    let failure = desk.refuses(&format!("{line} --into starter --out deep/model"));
    assert!(failure.contains("nothing is overwritten") && failure.ends_with("deep/model"), "{failure}");
    assert!(!tensors(&desk.path("deep/model/unet/diffusion_pytorch_model.safetensors")).0.is_empty());
}

#[cfg(unix)]
#[test]
fn an_output_that_is_no_file_is_refused_before_the_work() {
    let desk = Desk::new();
    // A pipe with a reader that never comes: opening it would wait for ever.
    let made = std::process::Command::new("mkfifo").arg(desk.path("pipe")).status().unwrap();
    assert!(made.success());
    let train = format!("{TRAIN} --method lora --steps 2 --out pipe");
    let done = desk.run(&train);
    let failure = done.failure();
    assert!(failure.contains("a device or a pipe") && failure.ends_with("pipe"), "{failure}");
    assert!(!done.lines().iter().any(|line| line["event"] == "step"), "told after the work");
    let failure = desk.run("sample --steps 1 --prompt x --out pipe").failure();
    assert!(failure.contains("a device or a pipe") && failure.ends_with("pipe"), "{failure}");
    assert!(!std::fs::metadata(desk.path("pipe")).unwrap().is_file(), "the pipe was replaced");
}
