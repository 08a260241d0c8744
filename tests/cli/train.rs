//! `triptych train`: the file it writes, and where its fields come from.

use serde_json::{Value, json};
use triptych::engine::io::metadata;
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::io::token_vectors;

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
fn masks_weigh_the_loss_and_white_ones_change_nothing() {
    let desk = Desk::new();
    train(&desk, "a", "--project 0.toml").result();
    let plain = desk.lora("a.safetensors");
    let masked = |color: u8, more: &str| {
        for name in ["idle", "jump", "walk0"] {
            let shade = |x: u32, _: u32| image::Luma([if x < 64 { 255 } else { color }]);
            let mask = desk.path("robot").join(format!("{name}-masklabel.png"));
            image::GrayImage::from_fn(128, 128, shade).save(mask).unwrap();
        }
        let done = train(&desk, "a", &format!("--project 0.toml {more}"));
        done.result();
        assert!(!done.notes().contains("left out"), "{}", done.notes());
        desk.lora("a.safetensors")
    };
    let unused = masked(0, "");
    assert_eq!(
        (unused.layers, unused.tokens, unused.metadata),
        (plain.layers.clone(), plain.tokens.clone(), plain.metadata)
    );
    let white = masked(255, "--set mask=file");
    assert_eq!((white.layers, white.tokens), (plain.layers.clone(), plain.tokens));
    let half = masked(0, "--set mask=file --set unmasked_weight=0");
    assert_ne!(half.layers, plain.layers);
    let uneven = masked(0, "--set mask=file --set unmasked_weight=0 --set mask_normalise=false");
    assert_ne!(uneven.layers, half.layers);
    desk.copy("assets/concepts/kenney_robot", "bare");
    let bare = TRAIN.replace("concept robot", "concept bare");
    let done = desk.run(&format!("{bare} --steps 1 --set mask=file --out b.safetensors"));
    done.result();
    assert!(done.notes().contains("No picture has a mask beside it"), "{}", done.notes());
}

#[test]
fn the_recipe_says_how_pictures_were_shown_and_wrong_sizes_are_refused() {
    let desk = Desk::new();
    image::RgbImage::new(200, 90).save(desk.path("robot").join("wide.png")).unwrap();
    let shown = "--set fit=bucket --set resolutions=48,64 --set variations=2 --set rotate=5";
    let done = train(&desk, "a", shown);
    done.result();
    let prepared = done.lines().iter().filter(|line| line["event"] == "progress").count();
    assert_eq!(prepared, 4 * 2 * 2 * 2, "pictures, sizes, versions, mirror images");
    let file = desk.lora("a.safetensors");
    assert_eq!(file.metadata["ss_resolution"], "(64, 64)");
    let recipe: Value = serde_json::from_str(&file.metadata[metadata::RECIPE]).unwrap();
    assert_eq!((&recipe["training"]["resolutions"], &recipe["training"]["rotate"]), (&json!("48,64"), &json!("5")));
    assert!(recipe["training"].get("hue").is_none(), "what is as usual is not told");
    for (sides, word) in
        [("48,50", "multiple of 16"), ("64;48", "commas"), ("4096", "at most 720"), ("0", "multiple of 16")]
    {
        let done = desk.say(&format!("{TRAIN} --out b.safetensors --set resolutions={sides}"));
        assert!(done.code == Some(2) && done.stderr.contains(word), "{done:?}");
    }
}

#[test]
fn a_token_can_have_vectors_for_each_layer() {
    let desk = Desk::new();
    let counted = |name: &str, more: &str| {
        let done = train(&desk, name, &format!("--set vectors=2 --slot 0 --project {name}.toml {more}"));
        done.result()["parameters"].as_u64().unwrap()
    };
    let (plain, each) = (counted("p", ""), counted("l", "--set per_layer=true"));
    let file = desk.lora("l.safetensors");
    let layers = &file.layer_tokens["<l>"];
    let n = layers.len() as u64;
    assert!(n > 1 && layers.iter().all(|vectors| vectors.len() == 2 && vectors[0].len() == 128));
    assert_eq!((each - plain, plain > 2 * 128), (2 * (n - 1) * 128, true), "2·L·width instead of 2·width");
    assert!(layers[1..].iter().any(|vectors| *vectors != layers[0]), "every layer learnt the same");

    let report = desk.run("inspect l.safetensors").result();
    assert_eq!((&report["tokens"]["<l>"], &report["token_layers"]["<l>"]), (&json!(2), &json!(n)));
    let prose = desk.say("inspect l.safetensors").stdout;
    assert!(prose.contains(&format!("<l> (2 per-layer vectors in {n} layers)")), "{prose}");

    // Not asked for, nothing of it is in the file, and what was begun without it does not go on with it.
    let recipe = |name: &str| desk.lora(name).metadata[metadata::RECIPE].clone();
    assert!(!recipe("p.safetensors").contains("per_layer") && recipe("l.safetensors").contains("per_layer"));
    assert!(desk.lora("p.safetensors").layer_tokens.is_empty());

    // Beside a word of one vector for all, in one prompt and in one merge; a model keeps the mean and says so.
    let sample = "sample --steps 1 --prompt '<p> and <l>'";
    let done = desk.run(&format!("{sample} --adapter p.safetensors --adapter l.safetensors --out both.png"));
    done.result();
    assert!(!done.notes().contains("Nothing defines"), "{}", done.notes());
    train(&desk, "q", "--slot 1 --project l.toml").result();
    desk.run("merge l.safetensors q.safetensors --method sum --out m.safetensors").result();
    assert_eq!(desk.lora("m.safetensors").layer_tokens, file.layer_tokens);
    let baked = desk.run("merge l.safetensors --into starter --out baked");
    baked.result();
    assert!(baked.notes().contains("<l> has vectors of its own for each layer"), "{}", baked.notes());

    desk.edit("l.safetensors", |tensors| {
        let one = vec![vec![vec![0.5; 128]; 2]];
        let (name, tensor) = token_vectors::layer_tensor("<l>", &one, Dtype::F32);
        tensors.insert(name, tensor);
    });
    let refused = desk.refuses(&format!("{sample} --adapter l.safetensors --out x.png"));
    assert!(refused.contains("has vectors for 1 cross-attention layer, and this model has"), "{refused}");
}

#[test]
fn concepts_taught_together_share_a_file_and_a_slot() {
    let desk = Desk::new();
    desk.copy("assets/concepts/kenney_male_person", "man");
    let line = "train --batch 1 --set rank=2 --set targets=keys_values --steps 8";
    let words = "--concept robot --token <a> --class robot --concept man --token <b> --class man";
    let both = |more: &str| desk.run(&format!("{line} {words} {more}"));
    both("--out ab.safetensors").result();
    let file = desk.lora("ab.safetensors");
    assert_eq!(file.tokens.keys().collect::<Vec<_>>(), ["<a>", "<b>"]);
    for (key, value) in [
        (metadata::TOKEN, "<a>"),
        (metadata::SLOT, "0"),
        ("modelspec.trigger_phrase", "<a>, <b>"),
        ("modelspec.title", "<a> robot, <b> man"),
    ] {
        assert_eq!(file.metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    let recipe: Value = serde_json::from_str(&file.metadata[metadata::RECIPE]).unwrap();
    let pictures = std::fs::read_dir(desk.path("man")).unwrap().count() / 2;
    let man = json!({ "token": "<b>", "class": "man", "pictures": pictures, "repeats": 1, "weight": 1.0 });
    assert_eq!((&recipe["concepts"][1], &recipe["pictures"]), (&man, &json!(pictures + 3)));
    let project = String::from_utf8(desk.read("triptych.toml")).unwrap();
    assert!(project.contains("<a> <b>") && project.matches("[[slot]]").count() == 1, "{project}");
    let done = desk.run("sample --steps 1 --adapter ab.safetensors --prompt '<a> robot and <b> man' --out p.png");
    done.result();
    assert!(!done.notes().contains("<b>"), "both words are known: {}", done.notes());

    // The same again is the same run; other shares are another.
    assert_eq!(both("--resume --out ab.safetensors").result()["steps"], 0);
    for (name, more) in
        [("r", "--repeats 1 --repeats 5"), ("w", "--weight 1 --weight 0.5"), ("e", "--set concept_balance=equal")]
    {
        both(&format!("{more} --out {name}.safetensors --project {name}.toml")).result();
        let other = desk.lora(&format!("{name}.safetensors"));
        assert_ne!(other.metadata[metadata::RUN], file.metadata[metadata::RUN], "{more}");
        assert_ne!(other.layers, file.layers, "{more}");
    }
    // What has no weight stays where it began, however long it is taught.
    let silent = |steps: &str| {
        let line = line.replace("--steps 8", &format!("--steps {steps}"));
        desk.run(&format!("{line} {words} --weight 1 --weight 0 --out s.safetensors --project s.toml")).result();
        desk.lora("s.safetensors").tokens["<b>"].clone()
    };
    assert_eq!(silent("2"), silent("9"));
    assert_ne!(silent("2"), file.tokens["<b>"]);

    let refused = |words: &str, code: i32, word: &str| {
        let done = desk.say(&format!("{line} {words} --out x.safetensors"));
        assert!(done.code == Some(code) && done.stderr.contains(word), "{done:?}");
    };
    refused("--concept robot --concept man", 2, "There are 2 concepts and --token is given 0 times");
    refused("--concept robot --concept man --token <a> --token <a>", 2, "Two of the concepts have the token <a>");
    refused("--concept robot --repeats 0", 2, "Repeats are 1 to 1000");
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
    let over = desk.say("train --preset 8gb --config whole.toml --set rank=1 --print-config").stdout;
    for wanted in ["rank = 1", "batch = 1", "accumulate = 2", "resolution = 512", "seed = 3", "concept = \"robot\""] {
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
