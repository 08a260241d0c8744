//! `triptych overlap` and `triptych spectrum`

use serde_json::json;

use crate::command::Desk;
use crate::{delta, train};

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
