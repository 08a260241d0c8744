//! `triptych train`: the file it writes, and where its fields come from.

use serde_json::{Value, json};
use triptych::engine::io::metadata;
use triptych::engine::io::safetensors::Dtype;

use crate::command::{Desk, TRAIN};
use crate::train;

#[test]
fn equal_trainings_make_equal_files_wherever_they_lie() {
    let desk = Desk::new();
    desk.copy("assets/concepts/kenney_male_person", "unused");
    let line = |concept: &str, more: &str| {
        format!("{} --token <a> --steps 3 {more}", TRAIN.replace("concept robot", &format!("concept {concept}")))
    };
    let result = desk.run(&line("robot", "--out a.safetensors")).result();
    assert_eq!((&result["steps"], &result["layers"], &result["out"]), (&json!(3), &json!(14), &json!("a.safetensors")));
    assert!(result["loss"].as_array().unwrap().iter().all(Value::is_f64) && result["seconds"].is_f64(), "{result}");

    std::fs::create_dir(desk.path("deep")).unwrap();
    std::fs::rename(desk.path("robot"), desk.path("deep/other name")).unwrap();
    desk.run(&line("'deep/other name'", "--out deep/er/b.safetensors")).result();
    assert_eq!(desk.read("a.safetensors"), desk.read("deep/er/b.safetensors"));
    desk.run(&line("'deep/other name'", "--seed 1 --out c.safetensors --slot 0 --project deep/p.toml")).result();
    assert_ne!(desk.lora("a.safetensors").layers, desk.lora("c.safetensors").layers, "the seed changes nothing");

    // --stamp says when and by what, and changes no number.
    desk.run(&line("'deep/other name'", "--stamp --out deep/stamped.safetensors --project q.toml")).result();
    let (plain, stamped) = (desk.lora("a.safetensors"), desk.lora("deep/stamped.safetensors"));
    let new: Vec<_> = stamped.metadata.keys().filter(|key| !plain.metadata.contains_key(*key)).collect();
    assert_eq!(new, ["ss_training_finished_at", "triptych.version"]);
    assert_eq!((plain.layers, plain.tokens), (stamped.layers, stamped.tokens));
}

#[test]
fn a_trained_file_is_complete_and_says_what_it_is() {
    let desk = Desk::new();
    train(&desk, "a", "--seed 3 --set dtype=f16 --set vectors=2").result();
    let file = desk.lora("a.safetensors");
    assert_eq!((file.layers.len(), file.dtype), (14, Some(Dtype::F16)));
    assert!(file.layers.values().all(|layer| layer.rank == 2 && layer.up.iter().any(|x| *x != 0.0)));
    assert_eq!((file.tokens["<a>"].len(), file.tokens["<a>"][0].len()), (2, 128));
    let expected = [
        (metadata::METHOD, "orthogonal"),
        (metadata::BASIS, "slots v1 seed 0 block 8"),
        (metadata::SLOT, "0"),
        (metadata::TOKEN, "<a>"),
        (metadata::CLASS, "robot"),
        (metadata::BASE, "starter"),
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "2"),
        ("ss_seed", "3"),
        ("modelspec.trigger_phrase", "<a>"),
    ];
    for (key, value) in expected {
        assert_eq!(file.metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    let recipe: Value = serde_json::from_str(&file.metadata[metadata::RECIPE]).unwrap();
    assert_eq!((&recipe["training"]["steps"], &recipe["method"]["rank"]), (&json!("3"), &json!("2")));
    let model = desk.run("inspect starter").result();
    assert_eq!(file.metadata[metadata::BASE_HASH], model["sha256"].as_str().unwrap());
}

#[test]
fn fields_come_from_a_file_and_the_command_line_overrides_it() {
    let desk = Desk::new();
    desk.write(
        "c.toml",
        "rank = 3\nsteps = 2\nbatch = 1\nprior = 0\ntargets = \"*.attn2.to_k\"\nflip = false\nlr = 1e-3",
    );
    let line = "train --concept robot --class robot --config c.toml --out";
    desk.run(&format!("{line} a.safetensors")).result();
    let result = desk.run(&format!("{line} b.safetensors --steps 4 --set rank=1")).result();
    assert_eq!(result["steps"], 4);
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| desk.lora(name));
    assert_eq!((a.ranks().into_iter().collect::<Vec<_>>(), a.layers.len()), (vec![3], 7));
    assert_eq!((b.ranks().into_iter().collect::<Vec<_>>(), b.layers.len()), (vec![1], 7));
    let recipe: Value = serde_json::from_str(&a.metadata[metadata::RECIPE]).unwrap();
    assert_eq!((&recipe["training"]["flip"], &recipe["training"]["lr"]), (&json!("false"), &json!("0.001")));
    desk.write("c.toml", "colour = \"red\"");
    let done = desk.say(&format!("{line} c.safetensors"));
    assert!(done.code == Some(2) && done.stderr.contains("There is no field “colour”"), "{done:?}");
}

#[test]
fn one_file_holds_everything_and_print_config_writes_it() {
    let desk = Desk::new();
    let line = format!("{TRAIN} --token <a> --seed 3 --method lora --steps 2 --out a.safetensors");
    let printed = desk.say(&format!("{line} --print-config"));
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(!desk.path("a.safetensors").exists());
    desk.write("whole.toml", &printed.stdout);
    desk.run("train --config whole.toml").result();
    let bytes = desk.read("a.safetensors");
    desk.run(&line).result();
    assert!(bytes == desk.read("a.safetensors"), "{}", printed.stdout);
    // What is said counts before the file, the file before the preset.
    let over = desk.say("train --preset 12gb --config whole.toml --set rank=1 --print-config").stdout;
    for wanted in ["rank = 1", "batch = 1", "accumulate = 4", "resolution = 384", "seed = 3", "concept = \"robot\""] {
        assert!(over.lines().any(|line| line == wanted), "{wanted}\n{over}");
    }
    let failed = desk.say("train --preset usual --concept robot");
    assert!(failed.code == Some(2) && failed.stderr.contains("--out is missing"), "{failed:?}");
    let failed = desk.say("train --preset 5gb --concept robot");
    assert!(failed.code == Some(2) && failed.stderr.contains("6gb"), "{failed:?}");
}

#[test]
fn settings_of_another_program_train_here_and_what_does_not_map_is_named() {
    let desk = Desk::new();
    let form = json!({
        "LoRA_type": "Standard", "network_dim": 2, "network_alpha": 1, "max_train_steps": 2, "train_batch_size": 1,
        "optimizer": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 0, "train_data_dir": "robot",
        "multires_noise_iterations": 6,
    });
    desk.write("kohya.json", form.to_string());
    let done = desk.run("train --import kohya.json --class robot --out a.safetensors");
    assert_eq!(done.result()["steps"], 2);
    for piece in ["Prodigy: AdamW is used", "multires_noise_iterations = 6 has no counterpart"] {
        assert!(done.stderr.contains(piece), "{piece}\n{}", done.stderr);
    }
    let file = desk.lora("a.safetensors");
    assert!(file.layers.values().all(|layer| (layer.rank, layer.alpha) == (2, 1.0)));
    assert!(file.layers.keys().all(|module| module.starts_with("lora_unet_")));
}
