//! Teaching a classifier: on the command line, by every method, through the file and back.

use std::collections::BTreeMap;
use std::path::Path;

use triptych::engine::adapter::{Context, METHODS};
use triptych::engine::io::Checkpoint;
use triptych::engine::io::metadata::CLASSES;
use triptych::engine::io::safetensors::save;
use triptych::engine::vision::classify::classify;
use triptych::engine::vision::dataset::DataSet;
use triptych::engine::vision::job::{self, Job};
use triptych::engine::vision::prepare::{Preparation, Resize};
use triptych::engine::vision::{Adapted, Classifier, Learnt};

use crate::command::{Desk, tensors, tree};
use crate::reference::{self, Reference, assert_close};

const CLASSES_HERE: [&str; 3] = ["dicebear_pixel-art", "kenney_male_person", "kenney_robot"];

/// Folders of the concepts that are shipped, each with its first pictures.
fn lay_out(desk: &Desk, pictures: usize) {
    for class in CLASSES_HERE {
        let mut files: Vec<_> =
            std::fs::read_dir(tree("assets/concepts").join(class)).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "png"));
        files.sort();
        for path in files.iter().take(pictures) {
            let name = path.file_name().unwrap().to_str().unwrap();
            desk.write(&format!("data/{class}/{name}"), std::fs::read(path).unwrap());
        }
    }
}

#[test]
fn a_probe_learns_classes_it_is_measured_on_and_classify_uses_it() {
    let desk = Desk::new();
    lay_out(&desk, 8);
    desk.write("data/kenney_robot/broken.png", "no picture");
    let train = "train --data data --steps 60 --set held_out=0.25 --seed 3";
    let done = desk.run(&format!("{train} --out probe.safetensors"));
    assert!(done.notes().contains("broken.png is left out"), "{}", done.notes());
    assert!(done.notes().contains("3 classes: 18 pictures to learn from, 6 kept out"), "{}", done.notes());
    let result = done.result();
    println!("accuracy {}, loss {}", result["accuracy"], result["loss"]);
    assert!(result["accuracy"].as_f64().unwrap() > 0.9, "{result}");
    assert_eq!(result["classes"].as_array().unwrap().len(), 3);
    let counts = |row: &serde_json::Value| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(result["confusion"].as_array().unwrap().iter().map(counts).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(result["picture"], "probe.safetensors.confusion.png");
    assert!(image::open(desk.path("probe.safetensors.confusion.png")).unwrap().width() > 300);
    assert_eq!(done.lines().iter().filter(|line| line["event"] == "step").count(), 60);

    let robot = desk.run("classify --adapter probe.safetensors data/kenney_robot/jump.png").result();
    assert_eq!(robot["pictures"][0]["top"][0]["class"], "kenney_robot", "{robot}");
    assert_eq!(robot["pictures"][0]["top"].as_array().unwrap().len(), 3, "there are only three classes");
    let (held, metadata) = tensors(&desk.path("probe.safetensors"));
    assert_eq!(
        held.keys().collect::<Vec<_>>(),
        ["base_model.model.classifier.1.bias", "base_model.model.classifier.1.weight"]
    );
    assert_eq!(serde_json::from_str::<Vec<String>>(&metadata[CLASSES]).unwrap(), CLASSES_HERE);

    desk.run(&format!("{train} --out again.safetensors")).result();
    assert_eq!(desk.read("again.safetensors"), desk.read("probe.safetensors"), "a function of inputs and seed");
    let resumed = desk.run(&format!("{train} --out again.safetensors --resume"));
    assert!(resumed.notes().contains("already finished") && resumed.code == Some(0), "{resumed:?}");
    let told = desk.run("inspect probe.safetensors").result();
    assert_eq!(
        (&told["kind"], &told["what"]),
        (&"other".into(), &"This is what an image classifier has learnt".into())
    );
    let adapter = desk.refuses("sample --prompt x --steps 2 --adapter probe.safetensors --out x.png");
    assert!(adapter.contains("triptych classify --adapter"), "{adapter}");
    let other = desk.refuses("classify --model data --adapter probe.safetensors robot/idle.png");
    assert!(other.contains("There is no image classifier here"), "{other}");
}

#[cfg(unix)]
#[test]
fn a_stopped_run_goes_on_to_the_same_file() {
    let desk = Desk::new();
    lay_out(&desk, 3);
    desk.copy("tests/reference/resnet", "resnet");
    let line =
        "train --model resnet --data data --method lora --set rank=2 --batch 2 --steps 40 --set validate_every=7";
    desk.run(&format!("{line} --out whole.safetensors")).result();
    let line = format!("{line} --out stopped.safetensors");
    let mut running = desk.start(&line);
    assert!(running.reaches(5));
    running.interrupt();
    if !desk.path("stopped.safetensors").exists() {
        let resumed = desk.run(&format!("{line} --resume"));
        assert!(resumed.notes().contains("Resuming after step"), "{}", resumed.notes());
        resumed.result();
    }
    assert_eq!(desk.read("stopped.safetensors"), desk.read("whole.safetensors"));
    assert!(desk.half_written().is_empty() && !desk.path("stopped.safetensors.state").exists());
}

#[test]
fn a_wrong_command_exits_2_and_names_the_right_words() {
    let desk = Desk::new();
    lay_out(&desk, 2);
    for (line, words) in [
        ("train --data data --concept robot --out x.safetensors", "--concept"),
        ("train --data data --out x.safetensors --method stew", "or probe for the head alone"),
        ("train --data data --out x.safetensors --set prior=1", "Choose one of steps, batch"),
        ("train --data data --out x.safetensors --method lora --set targets=elbows", "*"),
        ("train --data data", "--out is missing"),
        ("train --concept robot --out x.safetensors --method probe", "There is no adapter method “probe”"),
        ("queue add --data data --out x.safetensors", "cannot wait in the queue"),
    ] {
        let done = desk.say(line);
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.stderr.contains(words), "{words}: {done:?}");
    }
    assert!(!desk.path("x.safetensors").exists());
}

fn taught(model: &Classifier, data: &DataSet, method: &str, changes: &[(&str, &str)], out: &Path) -> Vec<f32> {
    let changes: Vec<_> = changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let method = job::method(method).unwrap();
    let (method_settings, settings) = job::settings(method, &changes).unwrap();
    let context = Context { seed: 1, slot: 0, block: 8 };
    let job = Job { model, data, method, method_settings, settings, context, out: out.into(), resume: false };
    let taught = job.run(&mut |_| Ok(())).unwrap_or_else(|e| panic!("{e}"));
    let (confusion, _) = taught.confusion.unwrap();

    // What was measured in training is what the file says of the same pictures.
    let learnt = Learnt::open(out, model).unwrap_or_else(|e| panic!("{e}"));
    let adapted = Adapted::with(model, &learnt).unwrap_or_else(|e| panic!("{e}"));
    let kept = data.split(job.settings.number("held_out"), 1).held_out;
    let paths: Vec<_> = kept.iter().map(|&i| data.items[i].path.clone()).collect();
    let mut counts = vec![vec![0; data.classes.len()]; data.classes.len()];
    for (seen, &i) in classify(&adapted, &paths, 1, &mut |_| Ok(())).unwrap().iter().zip(&kept) {
        counts[data.items[i].class][seen.top[0].index] += 1;
    }
    assert_eq!(counts, confusion.counts);
    taught.losses
}

#[test]
fn every_method_teaches_every_network_and_its_file_says_the_same() {
    let desk = Desk::new();
    lay_out(&desk, 4);
    let data = DataSet::open(&desk.path("data")).unwrap();
    for network in ["vit", "resnet"] {
        // Small pictures, for the sake of time.
        let small = Preparation { resize: Resize::Exact([48; 2]), ..Preparation::torchvision() };
        let mut model = reference::classifier(network);
        model.preparation = small;
        for method in METHODS {
            let out = desk.path(&format!("{network}-{}.safetensors", method.name));
            let changes =
                [("steps", "12"), ("batch", "9"), ("held_out", "0.5"), ("lr", "0.01"), ("validate_every", "0")];
            let losses = taught(&model, &data, method.name, &changes, &out);
            let (first, last) = (losses[0], losses[losses.len() - 1]);
            println!("{network} {}: loss {first:.3} → {last:.3}", method.name);
            assert!(last < first, "{network} {}: {losses:?}", method.name);
            let file = Checkpoint::open(&out).unwrap();
            let start = format!("base_model.model.{network}.");
            assert!(file.entries().keys().any(|key| key.starts_with(&start)), "{network} {}", method.name);
        }
    }
}

#[test]
fn a_folder_of_peft_is_written_whole_and_never_over_another() {
    let desk = Desk::new();
    lay_out(&desk, 3);
    let (model, data) = (reference::classifier("vit"), DataSet::open(&desk.path("data")).unwrap());
    let changes = [("steps", "3"), ("rank", "2"), ("alpha", "5"), ("lr", "0.01")];
    let [folder, file] = ["peft", "file.safetensors"].map(|name| desk.path(name));
    taught(&model, &data, "lora", &changes, &folder);
    taught(&model, &data, "lora", &changes, &file);
    assert_eq!(std::fs::read(folder.join("adapter_model.safetensors")).unwrap(), desk.read("file.safetensors"));
    let config: serde_json::Value = serde_json::from_slice(&desk.read("peft/adapter_config.json")).unwrap();
    assert_eq!((&config["peft_type"], &config["r"], &config["lora_alpha"]), (&"LORA".into(), &2.into(), &2.0.into()));
    let before = desk.contents();
    let (method_settings, settings) = job::settings(None, &[]).unwrap();
    let context = Context { seed: 1, slot: 0, block: 8 };
    let job = Job {
        model: &model,
        data: &data,
        method: None,
        method_settings,
        settings,
        context,
        out: folder,
        resume: false,
    };
    assert!(job.run(&mut |_| Ok(())).err().unwrap().what.contains("something of this name"));
    assert_eq!(desk.contents(), before);
}

/// A LoRA that PEFT saved, with alphas of its own and a head of other classes (`make_vision_peft_reference.py`).
#[test]
fn what_peft_saved_answers_as_in_peft() {
    let folder = reference::folder().join("vision_peft");
    if !folder.is_dir() {
        println!("skipped: the reference folder has no vision_peft");
        return;
    }
    let (model, r) = (reference::classifier("vit"), Reference::open("vision_peft_reference"));
    let learnt = Learnt::open(&folder, &model).unwrap_or_else(|e| panic!("{e}"));
    let adapted = Adapted::with(&model, &learnt).unwrap();
    assert_eq!(adapted.classes, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]);
    assert_close("logits", adapted.logits(r.tensor("x")), r.tensor("logits"), 2e-4);
}

#[test]
fn what_another_classifier_learnt_or_is_damaged_is_refused() {
    let desk = Desk::new();
    lay_out(&desk, 3);
    let [vit, resnet] = ["vit", "resnet"].map(reference::classifier);
    let data = DataSet::open(&desk.path("data")).unwrap();
    let out = desk.path("a.safetensors");
    taught(&vit, &data, "lora", &[("steps", "1")], &out);
    let refused = |model: &Classifier| Learnt::open(&out, model).unwrap_err();
    assert!(refused(&resnet).what.contains("it belongs to vit"), "{}", refused(&resnet));
    let (whole, metadata) = tensors(&out);
    let head = "base_model.model.classifier.weight";
    let cases = [
        (head, None, "it holds no base_model.model.classifier.weight"),
        ("", Some(("conv_in.weight", whole[head].clone())), "conv_in.weight"),
        ("base_model.model.vit.layers.0.attention.q_proj.lora_A.weight", None, "down side is missing"),
    ];
    for (gone, more, words) in cases {
        let mut tensors: BTreeMap<_, _> = whole.clone();
        tensors.remove(gone);
        tensors.extend(more.map(|(name, tensor)| (name.to_owned(), tensor)));
        save(&out, &tensors, &metadata).unwrap();
        assert!(refused(&vit).what.contains(words), "{words}: {}", refused(&vit));
    }
}
