//! `triptych inspect`

use serde_json::json;

use crate::command::{Desk, tree};
use crate::train;

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
    image::RgbImage::new(640, 400).save(desk.path("robot").join("wide.png")).unwrap();
    image::GrayImage::new(64, 40).save(desk.path("robot").join("wide.mask.png")).unwrap();
    let report = desk.run("inspect robot").result();
    assert_eq!(report["buckets"], json!([[[512, 512], 3], [[640, 384], 1]]));
    assert_eq!((&report["resolution"], &report["masked"]), (&json!(512), &json!(1)));
    let report = desk.run("inspect robot --model starter").result();
    assert_eq!(report["buckets"], json!([[[64, 64], 3], [[80, 48], 1]]));
    let prose = desk.say("inspect robot").stdout;
    assert!(prose.contains("1 with masks") && prose.contains("640×384: 1 picture\n"), "{prose}");
    let skipped = desk.run("inspect robot").result()["skipped"].clone();
    assert!(skipped[0][0].as_str().unwrap().ends_with("torn.png") && skipped[1].is_null(), "{skipped}");
}
