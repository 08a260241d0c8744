//! MobileNetV2 sees in ten pictures what torchvision's sees with the same weights and preprocessing
//! (`tests/compat/classify.py` made the list).

use std::path::PathBuf;

use serde_json::Value;
use triptych::engine::device::cpu;
use triptych::engine::vision::classifier::EMBEDDED;
use triptych::engine::vision::classify::classify;
use triptych::engine::vision::{Adapted, Classifier};

use crate::command::{Desk, tree};

/// Between probabilities. Measured 1e-5: the pixels are the same.
const APART: f64 = 1e-3;

fn list() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(tree("tests/reference/classify.json")).unwrap()).unwrap()
}

#[test]
fn the_top_five_of_ten_pictures_are_torchvisions() {
    let list = list();
    assert!(list.len() >= 10);
    let paths: Vec<PathBuf> = list.iter().map(|seen| tree(seen["path"].as_str().unwrap())).collect();
    let model = Classifier::open(EMBEDDED, &cpu()).unwrap();
    let seen = classify(&Adapted::plain(&model), &paths, 5, &mut |_| Ok(())).unwrap();
    for (theirs, ours) in list.iter().zip(&seen) {
        let theirs = theirs["top"].as_array().unwrap();
        let expected: Vec<u64> = theirs.iter().map(|guess| guess["index"].as_u64().unwrap()).collect();
        let found: Vec<u64> = ours.top.iter().map(|guess| guess.index as u64).collect();
        let apart = theirs.iter().zip(&ours.top).map(|(theirs, ours)| {
            assert_eq!(theirs["class"], ours.class.as_str());
            (theirs["probability"].as_f64().unwrap() - f64::from(ours.probability)).abs()
        });
        let apart = apart.fold(0.0, f64::max);
        println!("{}: {found:?}, probabilities within {apart:.1e}", ours.path.display());
        assert_eq!(found, expected, "{}", ours.path.display());
        assert!(apart < APART, "{}: {apart}", ours.path.display());
    }
}

#[test]
fn the_command_names_five_classes_or_as_many_as_asked() {
    let desk = Desk::new();
    let ball = tree("tests/reference/emoji/noto_soccer_ball.png");
    let result = desk.run(&format!("classify '{}' robot/idle.png --top 2", ball.display())).result();
    assert_eq!(result["model"], EMBEDDED);
    let pictures = result["pictures"].as_array().unwrap();
    assert_eq!((pictures.len(), pictures[1]["path"].as_str()), (2, Some("robot/idle.png")));
    assert_eq!(pictures[0]["top"].as_array().unwrap().len(), 2);
    assert_eq!(pictures[0]["top"][0]["class"], "soccer ball");
    let said = desk.say(&format!("classify '{}'", ball.display()));
    assert!(said.stdout.contains("99.8 %  soccer ball"), "{said:?}");
    assert_eq!(said.stdout.lines().count(), 6, "{said:?}");
}

#[test]
fn what_is_no_classifier_or_picture_is_a_sentence() {
    let desk = Desk::new();
    desk.write("other/config.json", r#"{"model_type": "bert"}"#);
    desk.copy("tests/reference/vit", "vit");
    desk.write("note.txt", "hello");
    for (line, words) in [
        ("classify --model nowhere robot/idle.png", "There is no image classifier here"),
        ("classify --model robot robot/idle.png", "There is no image classifier here"),
        ("classify --model other robot/idle.png", "a model of the kind “bert”"),
        ("classify --model robot/idle.png robot/idle.png", "not a whole safetensors file"),
        ("classify robot/none.png", "none.png"),
        ("classify note.txt", "not a picture"),
        ("classify --adapter robot/idle.png robot/idle.png", "not a whole safetensors file"),
        ("classify --model vit --adapter vit/model.safetensors robot/idle.png", "it holds no base_model"),
    ] {
        let said = desk.refuses(line);
        assert!(said.contains(words), "{line}: {said}");
    }
    // Wrong numbers of a configuration, each told before anything is computed.
    for (field, value, words) in [
        ("num_attention_heads", "5", "do not divide into 5 heads"),
        ("hidden_act", "\"relu6\"", "relu6"),
        ("image_size", "40", "instead of"),
        ("hidden_size", "999999999996", "instead of"),
        ("num_hidden_layers", "4", "vit.encoder.layer.3"),
        ("patch_size", "0", "instead of"),
    ] {
        let mut config: serde_json::Map<String, Value> =
            serde_json::from_slice(&std::fs::read(tree("tests/reference/vit/config.json")).unwrap()).unwrap();
        config.insert(field.into(), serde_json::from_str(value).unwrap());
        desk.write("vit/config.json", Value::Object(config).to_string());
        let said = desk.run("classify --model vit robot/idle.png").failure();
        assert!(said.contains(words), "{field}: {said}");
    }
}
