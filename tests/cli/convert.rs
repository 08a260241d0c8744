//! `triptych convert`

use std::collections::BTreeMap;

use serde_json::Value;
use triptych::engine::io::Dtype;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::safetensors::Checkpoint;

use crate::command::Desk;
use crate::{apart, delta, train};

/// What an adapter adds to each layer, by the layer's name in kohya's files.
fn deltas(file: &LoraFile) -> BTreeMap<String, Vec<f32>> {
    let pairs = file.modules().into_iter().filter_map(|module| Some((module.clone(), file.pair(module)?)));
    pairs.map(|(module, pair)| (module, delta(&pair))).collect()
}

/// There and back: the same change of every layer, whatever the names and wherever the scale is.
#[test]
fn an_adapter_is_the_same_in_every_format() {
    let desk = Desk::new();
    train(&desk, "a", "--method lora --set alpha=3 --set targets=keys_values,projections,resample,text").result();
    let before = deltas(&desk.lora("a.safetensors"));
    assert!(before.keys().any(|module| module.starts_with("lora_te_")) && before.len() > 14);
    for (format, out) in [
        ("kohya", "k.safetensors"),
        ("diffusers", "d.safetensors"),
        ("comfy", "c.safetensors"),
        ("lycoris", "l.safetensors"),
        ("full", "f.safetensors"),
        ("peft", "p"),
    ] {
        let line = format!("convert a.safetensors --to {format} --model starter --out {out}");
        let result = desk.run(&line).result();
        assert_eq!(result["lost"]["layers"], serde_json::json!({}), "{format}: nothing is cut");
        let networks = if format == "peft" { &["/unet", "/text_encoder"][..] } else { &[""] };
        let mut after = BTreeMap::new();
        for (i, network) in networks.iter().enumerate() {
            // Back by way of kohya's names.
            desk.run(&format!(
                "convert {out}{network} --to kohya --model starter --rank 999 --out back/{format}{i}.safetensors"
            ))
            .result();
            after.extend(deltas(&desk.lora(&format!("back/{format}{i}.safetensors"))));
        }
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{format}");
        for (module, delta) in &before {
            assert!(apart(&after[module], delta) < 1e-5, "{format}: {module}");
        }
    }
    // What the formats promise to those who read them.
    let keys = |name: &str| Checkpoint::open(&desk.path(name)).unwrap();
    let diffusers = keys("d.safetensors");
    assert!(diffusers.entries().keys().all(|key| key.ends_with(".lora_A.weight") || key.ends_with(".lora_B.weight")));
    let header: Value = serde_json::from_str(&diffusers.metadata()["lora_adapter_metadata"]).unwrap();
    assert_eq!((&header["unet.r"], &header["unet.lora_alpha"]), (&header["text_encoder.r"], &serde_json::json!(2.0)));
    let comfy = keys("c.safetensors");
    assert!(
        comfy.entries().contains_key("diffusion_model.middle_block.1.proj_in.lora_A.weight"),
        "{:?}",
        comfy.entries().keys()
    );
    assert!(comfy.entries().keys().any(|key| key.starts_with("bundle_emb.")));
    let config: Value = serde_json::from_slice(&desk.read("p/unet/adapter_config.json")).unwrap();
    assert_eq!((&config["peft_type"], &config["lora_alpha"]), (&"LORA".into(), &serde_json::json!(3.0)));
}

/// DoRA's change is a whole difference of the weight.
#[test]
fn what_a_format_cannot_hold_is_cut_and_told() {
    let desk = Desk::new();
    train(&desk, "a", "--method dora").result();
    let before = deltas(&desk.lora("a.safetensors"));
    let result = desk.run("convert a.safetensors --to kohya --rank 1 --out k.safetensors").result();
    let after = deltas(&desk.lora("k.safetensors"));
    for (module, told) in result["lost"]["layers"].as_object().unwrap() {
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let difference = norm(&mut before[module].iter().zip(&after[module]).map(|(a, b)| a - b));
        let share = difference / norm(&mut before[module].iter().copied());
        assert!((told.as_f64().unwrap() - share).abs() < 1e-3 && share > 1e-3, "{module}: {told} {share}");
    }
    let words = desk.say("convert a.safetensors --to kohya --rank 1 --out again.safetensors").stdout;
    assert!(words.contains("cut to rank 1") && words.contains("% of the whole change is lost"), "{words}");
    let words = desk.say("convert a.safetensors --to diffusers --out d.safetensors").stdout;
    assert!(words.contains("Left out: what <a> means"), "{words}");
    // Nothing is lost where whole differences have a place, and halves are as near as halves are.
    desk.run("convert a.safetensors --to lycoris --dtype f16 --out l.safetensors").result();
    let halves = desk.lora("l.safetensors");
    assert_eq!((halves.dtype, halves.layers.len()), (Some(Dtype::F16), 0));
    for (module, delta) in deltas(&halves) {
        assert!(apart(&delta, &before[&module]) < 1e-3);
    }
    desk.write("there/x", "");
    let refused = desk.say("convert a.safetensors --to peft --out there");
    assert!(refused.stderr.contains("nothing is overwritten"), "{}", refused.stderr);
}
