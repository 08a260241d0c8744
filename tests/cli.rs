//! The command line from outside: every command, what it prints, writes and returns.

mod command;

use std::collections::BTreeMap;
use std::process::Stdio;

use command::{Desk, Done, TRAIN, tensors, tree};
use serde_json::{Value, json};
use triptych::engine::adapter;
use triptych::engine::diffusion::SAMPLERS;
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::io::safetensors::{self, Checkpoint, Dtype, Tensor};
use triptych::engine::io::{metadata, png};
use triptych::engine::merge;
use triptych::engine::random::Philox;
use triptych::engine::train::config;

/// A small picture, quickly made.
const SAMPLE: &str = "sample --steps 2 --prompt 'a 3d emoji of robot'";

/// Trains `<word>` for three steps into `word.safetensors`.
fn train(desk: &Desk, word: &str, more: &str) -> Done {
    desk.run(&format!("{TRAIN} --steps 3 --token <{word}> --out {word}.safetensors {more}"))
}

/// `ΔW`, dense.
fn delta(layer: &LoraLayer) -> Vec<f32> {
    let width = layer.input();
    let column = |up: &[f32], i: usize| -> f32 {
        up.iter().enumerate().map(|(k, x)| x * layer.down[k * width + i]).sum::<f32>() * layer.scale()
    };
    layer.up.chunks(layer.rank).flat_map(|up| (0..width).map(|i| column(up, i)).collect::<Vec<_>>()).collect()
}

/// Largest difference as a share of the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().chain(b).fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn pixels(desk: &Desk, name: &str) -> Vec<u8> {
    image::open(desk.path(name)).unwrap_or_else(|e| panic!("{name}: {e}")).into_rgb8().into_raw()
}

#[test]
fn a_wrong_command_exits_2_names_the_right_words_and_writes_nothing() {
    let desk = Desk::new();
    let train = format!("{TRAIN} --out x.safetensors");
    let cases: &[(&str, &str)] = &[
        ("", "Usage"),
        ("brew", "brew"),
        ("methods paintings", "samplers"),
        ("inspect", "PATH"),
        ("sample --prompt x --out x.png --nonsense", "--nonsense"),
        ("sample --prompt x", "--out"),
        ("methods --device toaster", "Choose auto, cpu, gpu or gpu:N"),
        (&format!("{SAMPLE} --out x.png --sampler turbo"), "dpmpp_2m_karras, dpmpp_2m, ddim"),
        ("sample --prompt x --out x.png --steps 0", "Choose 1 to 1000 steps"),
        (&format!("{SAMPLE} --out x.png --size 64"), "such as 512x768"),
        (&format!("{SAMPLE} --out x.png --size 63x64"), "multiples of 4"),
        (&format!("{SAMPLE} --out x.png --size 99999999996x99999999996"), "too large"),
        (&format!("{SAMPLE} --out x.png --count 0"), "a count from 1 to 1000"),
        (&format!("{SAMPLE} --out x.png --cfg nan"), "The guidance is not a number"),
        (&format!("{SAMPLE} --out x.png --seed first"), "--seed"),
        (&format!("{SAMPLE} --out x.png --adapter :0.5"), "FILE:strength"),
        (&format!("{train} --method dreambooth"), "Choose one of orthogonal, lora"),
        (&format!("{train} --set colour=red"), "Choose one of rank, alpha, basis"),
        (&format!("{train} --method lora --set basis=slots"), "rank_stabilised"),
        (&format!("{train} --set rank"), "field=value"),
        (&format!("{train} --set rank=-1"), "a whole number from 0 to 1024"),
        (&format!("{train} --set schedule=never"), "one of linear, cosine, constant"),
        (&format!("{train} --set flip=perhaps"), "true or false"),
        (&format!("{train} --set min_snr=NaN"), "a number from 0 to 100"),
        (&format!("{train} --steps 0"), "a whole number from 1"),
        (&format!("{train} --lr fast"), "lr cannot be “fast”"),
        (&format!("{train} --set targets=elbows"), "matches no layer"),
        (&format!("{train} --set background=red"), "six hexadecimal digits"),
        (&format!("{train} --set resolution=65"), "multiple of 16"),
        (&format!("{train} --set resolution=4096"), "at most 720"),
        (&format!("{train} --token 'two words'"), "several words"),
        ("merge --out x.safetensors", "F[:strength"),
        ("merge a.safetensors --method stew --out x.safetensors", "Choose one of sum"),
        ("merge a.safetensors --set normalise=loud --out x.safetensors", "one of off, whole, layer"),
        ("overlap a.safetensors", "2"),
    ];
    let before = desk.files();
    for (line, words) in cases {
        let done = desk.say(line);
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.stderr.contains(words) && done.stdout.is_empty(), "{words}: {done:?}");
        assert_eq!(desk.files(), before, "{line}");
    }
}

#[test]
fn what_is_not_there_or_something_else_exits_1_with_a_sentence() {
    let desk = Desk::new();
    desk.write("prose.txt", "It was a dark and stormy night; the rain fell in torrents.");
    desk.write("broken.toml", "rank = = 2");
    desk.write("nested.toml", "[rank]\nvalue = 2");
    let picture = "robot/idle.png";
    let train = format!("{TRAIN} --out x.safetensors");
    let cases: &[(&str, &str, &str)] = &[
        ("inspect nowhere", "There is nothing here", "nowhere"),
        ("inspect robot/idle.png", "not a whole safetensors file", picture),
        (&format!("{SAMPLE} --out x.png --model nowhere"), "There is no model here", "nowhere"),
        (&format!("{SAMPLE} --out x.png --model {picture}"), "This is a file, not a model folder", picture),
        (&format!("{SAMPLE} --out x.png --model robot"), "Could not read", "robot/text_encoder/config.json"),
        (&format!("{SAMPLE} --out x.png --adapter nowhere:0.5"), "Could not open", "nowhere"),
        (&format!("{SAMPLE} --out x.png --adapter robot"), "This is a folder", "robot"),
        (&format!("{SAMPLE} --out x.png --latents nowhere"), "Could not open", "nowhere"),
        (&format!("{SAMPLE} --out robot"), "The output is a folder", "robot"),
        ("train --concept nowhere --out x.safetensors", "There is no such concept folder", "nowhere"),
        (&format!("train --concept {picture} --out x.safetensors"), "A concept is a folder", picture),
        (&format!("{train} --config nowhere"), "Could not read", "nowhere"),
        (&format!("{train} --config broken.toml"), "cannot be read", "broken.toml"),
        (&format!("{train} --config nested.toml"), "rank is not a plain value", "nested.toml"),
        (&format!("{train} --project prose.txt"), "The project cannot be read", "prose.txt"),
        (&format!("{TRAIN} --method lora --out robot"), "The output is a folder", "robot"),
        ("merge nowhere --out x.safetensors", "Could not open", "nowhere"),
        ("spectrum prose.txt", "not a whole safetensors file", "prose.txt"),
        ("overlap prose.txt nowhere", "not a whole safetensors file", "prose.txt"),
    ];
    let before = desk.files();
    for (line, words, path) in cases {
        let failure = desk.run(line).failure();
        assert!(failure.contains(words) && failure.ends_with(path), "{line}\n{failure}");
        let prose = desk.say(line);
        assert_eq!((prose.code, prose.stdout.as_str()), (Some(1), ""), "{line}");
        assert!(prose.stderr.contains(words), "{prose:?}");
    }
    assert_eq!(desk.files(), before, "a failed command left files");
}

#[test]
fn json_is_one_object_a_line_and_the_result_is_the_last() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    train(&desk, "b", "").result();
    for line in [
        "methods",
        "inspect starter",
        "spectrum a.safetensors",
        "overlap a.safetensors b.safetensors",
        "merge a.safetensors b.safetensors --out both.safetensors",
        &format!("{SAMPLE} --out a.png"),
        &format!("{TRAIN} --steps 3 --out c.safetensors"),
    ] {
        let done = desk.run(line);
        let (result, lines) = (done.result(), done.lines());
        assert!(result["event"].is_null(), "{line}: the last line is {result}");
        assert!(lines[..lines.len() - 1].iter().all(|line| line["event"].is_string()), "{done:?}");
        let prose = desk.say(line);
        assert!(prose.code == Some(0) && !prose.stdout.trim_start().starts_with('{'), "{prose:?}");
    }
    let steps: Vec<_> = desk.run(&format!("{TRAIN} --steps 3 --out c.safetensors")).lines();
    let steps: Vec<_> = steps.iter().filter(|line| line["event"] == "step").map(|line| line["step"].clone()).collect();
    assert_eq!(steps, [1, 2, 3]);
}

#[test]
fn nobody_reading_the_result_is_no_fault() {
    let desk = Desk::new();
    for line in ["methods", &format!("{TRAIN} --steps 2 --out a.safetensors --json")] {
        let mut child = desk.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !stderr.contains("panicked"), "{line}: {stderr}");
    }
    assert!(desk.path("a.safetensors").is_file());
}

#[test]
fn inspect_tells_models_adapters_and_concepts_apart() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    desk.write("robot/torn.png", "\u{89}PNG");
    let cases = [
        (
            "starter",
            json!({ "kind": "model", "name": "starter", "native_size": [64, 64], "prediction": "v_prediction",
                    "block": 8, "capacity": 8, "caption": "a 3d emoji of {token} {class}" }),
        ),
        (
            "a.safetensors",
            json!({ "kind": "adapter", "method": "orthogonal", "base": "starter", "slot": "0", "tokens": { "<a>": 1 },
                    "basis": "slots v1 seed 0 block 8", "layers": 14, "ranks": [2], "dtype": "F32" }),
        ),
        ("robot", json!({ "kind": "concept", "name": "robot", "class_word": null, "pictures": 3, "captioned": 3 })),
    ];
    for (path, expected) in cases {
        let report = desk.run(&format!("inspect {path}")).result();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&report[key], value, "{path}: {key}");
        }
        let prose = desk.say(&format!("inspect {path}")).stdout;
        let kind = expected["kind"].as_str().unwrap();
        assert!(prose.to_lowercase().starts_with(kind), "{prose}");
    }
    let on_disk = desk.run(&format!("inspect '{}'", tree("assets/starter").display())).result();
    assert_eq!(on_disk, desk.run("inspect starter").result(), "the model in the program is the one in the tree");
    let skipped = desk.run("inspect robot").result()["skipped"].clone();
    assert!(skipped[0][0].as_str().unwrap().ends_with("torn.png") && skipped[1].is_null(), "{skipped}");
}

#[test]
fn methods_lists_every_row_and_every_field() {
    let desk = Desk::new();
    let (all, prose) = (desk.run("methods").result(), desk.say("methods").stdout);
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&all["adapters"]), adapter::METHODS.iter().map(|row| row.name).collect::<Vec<_>>());
    assert_eq!(names(&all["merges"]), merge::METHODS.iter().map(|row| row.name).collect::<Vec<_>>());
    assert_eq!(names(&all["samplers"]), SAMPLERS.iter().map(|row| row.name).collect::<Vec<_>>());
    let of_methods = adapter::METHODS.iter().map(|row| (row.name, row.fields));
    let of_merges = merge::METHODS.iter().map(|row| (row.name, row.fields));
    for (i, (name, fields)) in of_methods.enumerate() {
        assert_eq!(all["adapters"][i]["fields"], json!(fields), "{name}");
    }
    for (i, (name, fields)) in of_merges.enumerate() {
        assert_eq!(all["merges"][i]["fields"], json!(fields), "{name}");
    }
    assert_eq!(all["training"], json!(config::FIELDS));
    for field in all["training"].as_array().unwrap() {
        for key in ["name", "title", "help", "unit", "default", "kind"] {
            assert!(!field[key].is_null(), "{key} of {field}");
        }
        assert!(prose.contains(field["help"].as_str().unwrap()), "{field}");
    }
    for (part, keys) in [
        ("adapters", vec!["adapters", "targets", "training"]),
        ("merges", vec!["merges"]),
        ("samplers", vec!["samplers"]),
    ] {
        let result = desk.run(&format!("methods {part}")).result();
        assert_eq!(result.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    }
}

#[test]
fn a_picture_tells_what_made_it_and_a_seed_repeats_it() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    let line = "sample --steps 2 --prompt 'a 3d emoji of <a> robot' --negative rain --seed 7 --cfg 3.5 --sampler euler_ancestral \
                --adapter a.safetensors:0.8:0.5";
    let result = desk.run(&format!("{line} --out one.png")).result();
    assert_eq!((&result["files"], &result["seed"]), (&json!(["one.png"]), &json!(7)));
    desk.run(&format!("{line} --out two.png")).result();
    assert_eq!(desk.read("one.png"), desk.read("two.png"), "equal commands, equal bytes");
    let text = &png::read_text(&desk.path("one.png")).unwrap()[png::PARAMETERS];
    assert_eq!(
        text,
        "a 3d emoji of <a> robot <lora:a:0.8>\nNegative prompt: rain\n\
         Steps: 2, Sampler: euler_ancestral, CFG scale: 3.5, Seed: 7, Size: 64x64, Model: starter"
    );
    let changes = [
        ("--seed 7", "--seed 8"),
        ("--cfg 3.5", "--cfg 2"),
        ("rain", "snow"),
        ("euler_ancestral", "ddim"),
        (":0.8:", ":-3:"),
    ];
    for (old, new) in changes {
        assert!(line.contains(old));
        desk.run(&format!("{} --out other.png", line.replace(old, new))).result();
        assert_ne!(pixels(&desk, "one.png"), pixels(&desk, "other.png"), "{new} changes nothing");
    }
}

#[test]
fn sizes_counts_and_tensors_are_as_asked() {
    let desk = Desk::new();
    desk.run(&format!("{SAMPLE} --size 96x64 --count 3 --seed 5 --out deep/a.png --dump t.safetensors")).result();
    let names = ["deep/a-1.png", "deep/a-2.png", "deep/a-3.png"];
    for (i, name) in names.iter().enumerate() {
        assert_eq!(image::image_dimensions(desk.path(name)).unwrap(), (96, 64));
        let text = &png::read_text(&desk.path(name)).unwrap()[png::PARAMETERS];
        assert!(text.contains(&format!("Seed: {}, Size: 96x64", 5 + i)), "{text}");
    }
    // Each picture is the one its own seed makes alone.
    desk.run(&format!("{SAMPLE} --size 96x64 --seed 6 --out alone.png")).result();
    let (alone, second) = (pixels(&desk, "alone.png"), pixels(&desk, names[1]));
    assert!(alone.iter().zip(&second).all(|(a, b)| a.abs_diff(*b) <= 1), "a batch is not its pictures");

    let dump = Checkpoint::open(&desk.path("t.safetensors")).unwrap();
    let found: Vec<_> = dump.entries().iter().map(|(name, e)| (name.as_str(), e.dtype, e.shape.clone())).collect();
    assert_eq!(found, [("image", Dtype::F32, vec![3, 3, 64, 96]), ("latents", Dtype::F32, vec![3, 4, 16, 24])]);
    let image = dump.f32("image").unwrap();
    assert!(image.iter().all(|x| (0.0..=1.0).contains(x)));
    let first: Vec<u8> =
        (0..64 * 96).flat_map(|at| [0, 1, 2].map(|c| (image[c * 64 * 96 + at] * 255.0).round() as u8)).collect();
    assert_eq!(first, pixels(&desk, names[0]), "image is the picture, plane by plane");

    // Given noise takes the place of the seed's: the same numbers make the same picture, two make two pictures.
    let noise: Vec<f32> = [5, 6].iter().flat_map(|&seed| Philox::new(seed).normal(0, 4 * 16 * 24)).collect();
    let start = BTreeMap::from([("latents".to_owned(), Tensor::new(Dtype::F32, &[2, 4, 16, 24], &noise))]);
    safetensors::save(&desk.path("noise.safetensors"), &start, &BTreeMap::new()).unwrap();
    desk.run(&format!("{SAMPLE} --latents noise.safetensors --seed 77 --out b.png")).result();
    for (i, name) in ["b-1.png", "b-2.png"].iter().enumerate() {
        let pairs = pixels(&desk, name).into_iter().zip(pixels(&desk, names[i]));
        assert!(pairs.into_iter().all(|(a, b)| a.abs_diff(b) <= 1), "{name}");
    }
}

#[test]
fn without_guidance_the_negative_prompt_has_no_say() {
    let desk = Desk::new();
    for (cfg, same) in [("1", true), ("4", false)] {
        for negative in ["rain", "snow"] {
            desk.run(&format!("{SAMPLE} --cfg {cfg} --negative {negative} --out {negative}.png")).result();
        }
        assert_eq!(pixels(&desk, "rain.png") == pixels(&desk, "snow.png"), same, "guidance {cfg}");
    }
}

#[test]
fn a_word_that_nothing_defines_is_a_warning() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    let line = "sample --steps 1 --prompt 'a 3d emoji of <a> robot and <nobody>' --adapter a.safetensors --out x.png";
    let done = desk.run(line);
    let warnings: Vec<_> = done.lines().into_iter().filter(|line| line["event"] == "warning").collect();
    assert!(warnings.len() == 1 && warnings[0]["text"].as_str().unwrap().contains("<nobody>"), "{done:?}");
    assert!(desk.say(line).stderr.contains("Nothing defines <nobody>"));
}

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

#[test]
fn a_merge_adds_the_adapters_at_their_strengths() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    train(&desk, "b", "--set rank=4").result();
    desk.write("blocks.toml", "\"down_blocks.0\" = 0.5\n[2]\nmid_block = 0\n\"down_blocks.1\" = -1.5");
    let line = "merge a.safetensors:0.75 b.safetensors:-2 --blocks blocks.toml --out out/both.safetensors";
    let result = desk.run(line).result();
    assert_eq!((&result["tokens"], &result["layers"]), (&json!(["<a>", "<b>"]), &json!(14)));
    let certificate = &result["certificate"];
    assert_eq!((&certificate["disjoint"], &certificate["slots"]), (&json!(true), &json!([[0], [1]])));
    assert!(result["overlap"][0]["product_max"].as_f64().unwrap() < 1e-5, "{result}");

    let [a, b, both] = ["a.safetensors", "b.safetensors", "out/both.safetensors"].map(|name| desk.lora(name));
    assert_eq!(both.tokens, a.tokens.into_iter().chain(b.tokens).collect());
    for (module, merged) in &both.layers {
        let of_block = |blocks: &[(&str, f32)]| {
            blocks.iter().find(|(block, _)| module.contains(block)).map_or(1.0, |(_, strength)| *strength)
        };
        let (wa, wb) = (
            0.75 * of_block(&[("down_blocks_0", 0.5)]),
            -2.0 * of_block(&[("down_blocks_0", 0.5), ("mid_block", 0.0), ("down_blocks_1", -1.5)]),
        );
        let sum: Vec<f32> =
            delta(&a.layers[module]).iter().zip(delta(&b.layers[module])).map(|(a, b)| wa * a + wb * b).collect();
        assert!(apart(&delta(merged), &sum) < 1e-5, "{module}");
    }
    let recipe: Value = serde_json::from_str(&both.metadata[metadata::RECIPE]).unwrap();
    let (first, second) = (&recipe["sources"][0], &recipe["sources"][1]);
    assert_eq!((&first["token"], &first["strength"]["unet"]), (&json!("<a>"), &json!(0.75)));
    assert_eq!((&second["slot"], &second["strength"]["blocks"]["down_blocks.1"]), (&json!("1"), &json!(-1.5)));
    assert_eq!(second["sha256"].as_str(), b.metadata.get("sshs_model_hash").map(String::as_str));

    let bytes = desk.read("out/both.safetensors");
    desk.run(&line.replace("out/both", "again")).result();
    assert_eq!(bytes, desk.read("again.safetensors"), "equal merges, equal bytes");
    desk.run(&format!("{SAMPLE} --adapter again.safetensors --out x.png")).result();
}

#[test]
fn what_must_not_be_merged_is_refused_and_nothing_is_written() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    train(&desk, "b", "--set basis_seed=1").result();
    desk.run(&format!("{TRAIN} --steps 3 --token <a> --seed 9 --out same_word.safetensors")).result();
    desk.write("out.safetensors", "what was there before");
    for (file, text) in
        [("colours.toml", "red = 1"), ("third.toml", "[3]\nmid_block = 1"), ("words.toml", "mid_block = \"loud\"")]
    {
        desk.write(file, text);
    }
    let cases = [
        (
            "b.safetensors",
            1,
            "uses the basis “slots v1 seed 0 block 8” and b.safetensors uses “slots v1 seed 1 block 8”",
        ),
        ("same_word.safetensors", 1, "bring the word <a> with different meanings"),
        ("--blocks colours.toml", 2, "There is no block “red”"),
        ("--blocks third.toml", 1, "[3] is not the number of an adapter"),
        ("--blocks words.toml", 1, "The strength of mid_block is not a number"),
        ("nowhere.safetensors", 1, "Could not open"),
    ];
    let before = desk.files();
    for (more, code, words) in cases {
        let done = desk.say(&format!("merge a.safetensors {more} --out out.safetensors"));
        assert!(done.code == Some(code) && done.stderr.contains(words), "{words}\n{done:?}");
        assert_eq!(desk.read("out.safetensors"), b"what was there before", "{more}");
        assert_eq!(desk.files(), before, "{more}");
    }
    let done = desk.say("merge a.safetensors:0 --out out.safetensors");
    assert!(done.code == Some(2) && done.stderr.contains("nothing is left to merge"), "{done:?}");

    // Other bases can still be measured, and other methods still be added.
    let measured = desk.run("overlap a.safetensors b.safetensors").result();
    assert!(measured["certificate"].is_null() && measured["pairs"][0]["overlap"]["product_max"].as_f64() > Some(1e-3));
    train(&desk, "c", "--method lora").result();
    let mixed = desk.run("merge a.safetensors c.safetensors --out out.safetensors").result();
    assert!(mixed["certificate"].is_null(), "{mixed}");
}

#[test]
fn overlap_and_spectrum_measure_what_is_in_the_files() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    train(&desk, "b", "").result();
    train(&desk, "c", "--method lora --seed 4").result();
    let result = desk.run("overlap a.safetensors b.safetensors c.safetensors").result();
    let pairs = result["pairs"].as_array().unwrap();
    let names: Vec<_> = pairs.iter().map(|pair| (pair["first"].as_str(), pair["second"].as_str())).collect();
    let [a, b, c] = ["a.safetensors", "b.safetensors", "c.safetensors"].map(Some);
    assert_eq!(names, [(a, b), (a, c), (b, c)]);
    for pair in pairs {
        let pair = &pair["overlap"];
        for key in ["cosine", "energy_ratio", "product_max", "product_mean"] {
            assert!(pair[key].is_f64(), "{key}: {pair}");
        }
        for key in ["observed", "chance", "times_chance"] {
            assert!(pair["read"][key].is_f64() && pair["write"][key].is_f64(), "{key}: {pair}");
        }
        assert!(pair["sentence"].as_str().unwrap().len() > 20 && pair["layers"].as_array().unwrap().len() == 14);
    }
    assert_eq!(
        (&pairs[0]["overlap"]["verdict"], &pairs[1]["overlap"]["verdict"] == "loads_exactly"),
        (&json!("loads_exactly"), false)
    );
    let certificate = desk.run("overlap a.safetensors b.safetensors").result()["certificate"].clone();
    assert_eq!((&certificate["disjoint"], &certificate["basis"]), (&json!(true), &json!("slots v1 seed 0 block 8")));
    let itself = desk.run("overlap a.safetensors a.safetensors").result();
    assert!((itself["pairs"][0]["overlap"]["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{itself}");
    assert_eq!(itself["certificate"]["disjoint"], false);

    let spectrum = desk.run("spectrum c.safetensors").result();
    let (file, layers) = (desk.lora("c.safetensors"), spectrum["layers"].as_array().unwrap());
    assert_eq!(layers.len(), file.layers.len());
    for layer in layers {
        let values: Vec<f64> =
            layer["singular_values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        let energy: f64 =
            delta(&file.layers[layer["layer"].as_str().unwrap()]).iter().map(|&x| f64::from(x).powi(2)).sum();
        let found: f64 = values.iter().map(|value| value * value).sum();
        assert!(values.len() == 2 && values[0] >= values[1] && (found / energy - 1.0).abs() < 1e-4, "{layer}");
        let effective = layer["effective_rank"].as_f64().unwrap();
        assert!((1.0..=2.0001).contains(&effective) && layer["stable_rank"].is_f64(), "{layer}");
    }
    let total: f64 = layers.iter().map(|layer| layer["energy"].as_f64().unwrap()).sum();
    assert!((spectrum["energy"].as_f64().unwrap() / total - 1.0).abs() < 1e-9);
}

#[test]
fn what_was_at_out_stays_when_a_command_fails() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    desk.edit("a.safetensors", |tensors| {
        tensors.remove("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight").unwrap();
    });
    for name in ["keep.safetensors", "keep.png"] {
        desk.write(name, "what was there before");
    }
    for line in [
        &format!("{TRAIN} --steps 2 --set rank=9 --out keep.safetensors"),
        "train --concept nowhere --out keep.safetensors",
        "merge a.safetensors --out keep.safetensors",
        &format!("{SAMPLE} --adapter a.safetensors --out keep.png --dump keep.safetensors"),
        &format!("{SAMPLE} --cfg 1e39 --out keep.png --dump keep.safetensors"),
    ] {
        desk.run(line).failure();
        for name in ["keep.safetensors", "keep.png"] {
            assert_eq!(desk.read(name), b"what was there before", "{line}");
        }
    }
    // A command that succeeds replaces it by the whole new file.
    desk.run(&format!("{TRAIN} --steps 2 --out keep.safetensors")).result();
    assert!(
        LoraFile::open(&desk.path("keep.safetensors")).is_ok() && !tensors(&desk.path("keep.safetensors")).0.is_empty()
    );
}
