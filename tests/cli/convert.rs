//! `triptych convert`

use std::collections::BTreeMap;

use serde_json::Value;
use triptych::engine::io::Dtype;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::safetensors::{Checkpoint, Tensor, save};
use triptych::engine::model::StableDiffusion;
use triptych::engine::model::stored::Stored;
use triptych::engine::random::Philox;

use crate::command::Desk;
use crate::{SAMPLE, apart, delta, pixels, train};

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
    desk.run("convert a.safetensors --to kohya --model starter --thumbnail robot/idle.png --out t.safetensors")
        .result();
    let shown = desk.lora("t.safetensors").metadata["modelspec.thumbnail"].clone();
    assert!(shown.starts_with("data:image/jpeg;base64,/9j/") && shown.len() < 40_000, "{}", shown.len());
    let joined = deltas(&desk.lora("p"));
    assert_eq!(joined.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "a folder of both networks");
    let report = desk.run("inspect p").result();
    assert_eq!((&report["kind"], &report["layers"]), (&"adapter".into(), &before.len().into()), "{report}");
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
    let result = desk.run("convert a.safetensors --to lycoris --dtype f16 --out l.safetensors").result();
    let halves = desk.lora("l.safetensors");
    assert_eq!((halves.dtype, halves.layers.len()), (Some(Dtype::F16), 0));
    let (mut lost, mut whole) = (0.0, 0.0);
    for (module, delta) in deltas(&halves) {
        assert!(apart(&delta, &before[&module]) < 1e-3);
        let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
        lost += squares(&mut before[&module].iter().zip(&delta).map(|(a, b)| a - b));
        whole += squares(&mut before[&module].iter().copied());
    }
    let told = result["lost"]["all"].as_f64().unwrap();
    assert!((told / (lost / whole).sqrt() - 1.0).abs() < 1e-3 && told > 1e-5, "rounding is told: {told}");
    desk.write("there/x", "");
    let refused = desk.say("convert a.safetensors --to peft --out there");
    assert!(refused.stderr.contains("nothing is overwritten"), "{}", refused.stderr);
}

/// A LoKr of whole factors stays one where it may, and is multiplied out where it must.
#[test]
fn a_kronecker_product_is_the_same_in_every_form() {
    let desk = Desk::new();
    let layer = "lora_unet_up_blocks_2_attentions_0_transformer_blocks_0_ff_net_2";
    let model = Stored::open(&StableDiffusion::folder("starter")).unwrap();
    let [out, input] = *model.shape(layer).unwrap() else { panic!("it is a linear layer") };
    let draw = |part: &str, shape: [usize; 2], i| {
        let values: Vec<f32> = Philox::new(3).normal(i, shape[0] * shape[1]).iter().map(|x| 0.3 * x).collect();
        (format!("{layer}.{part}"), Tensor::new(Dtype::F32, &shape, &values))
    };
    let tensors = [draw("lokr_w1", [2, 4], 0), draw("lokr_w2", [out / 2, input / 4], 1)];
    save(&desk.path("lokr.safetensors"), &tensors.into(), &BTreeMap::new()).unwrap();
    let report = desk.run("inspect lokr.safetensors").result();
    assert_eq!(report["parameters"], 8 + out * input / 8, "what the file holds, and not what it makes");
    let before = deltas(&desk.lora("lokr.safetensors"));
    for (format, part) in [("lycoris", "lokr_w2"), ("full", "diff"), ("kohya", "lora_up.weight")] {
        let line = format!("convert lokr.safetensors --to {format} --model starter --rank 999");
        let result = desk.run(&format!("{line} --out {format}.safetensors")).result();
        assert!(result["lost"]["all"].as_f64().unwrap() < 1e-5, "{format}: {result}");
        let file = format!("{format}.safetensors");
        assert!(Checkpoint::open(&desk.path(&file)).unwrap().entries().contains_key(&format!("{layer}.{part}")));
        let after = deltas(&desk.lora(&file));
        assert!(after.len() == 1 && apart(&after[layer], &before[layer]) < 1e-5, "{format}");
    }
    // Beside a model, in it, and merged with another.
    desk.run(&format!("{SAMPLE} --out base.png")).result();
    desk.run(&format!("{SAMPLE} --adapter lokr.safetensors --out beside.png")).result();
    desk.run("merge lokr.safetensors --into starter --out baked").result();
    desk.run(&format!("{SAMPLE} --model baked --out within.png")).result();
    let [base, beside, within] = ["base.png", "beside.png", "within.png"].map(|name| pixels(&desk, name));
    let worst = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst(&beside, &within) <= 3 && worst(&beside, &base) > 8);
    desk.run("merge lokr.safetensors:0.5 full.safetensors:0.5 --out both.safetensors").result();
    assert!(apart(&deltas(&desk.lora("both.safetensors"))[layer], &before[layer]) < 1e-5);
}

/// (IA)³ and a normalisation: what cannot be known without the model is known with it.
#[test]
fn changes_of_the_models_own_weights_need_the_model() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    let layer = "lora_unet_up_blocks_2_attentions_0_transformer_blocks_0_ff_net_2";
    let write = |name: &str, tensors: [(&str, &[usize], f32); 2]| {
        let tensor = |shape: &[usize], value| Tensor::new(Dtype::F32, shape, &vec![value; shape.iter().product()]);
        let tensors = tensors.map(|(key, shape, value)| (key.to_owned(), tensor(shape, value)));
        save(&desk.path(name), &tensors.into(), &BTreeMap::new()).unwrap();
    };
    let [weight, on_input] = [".weight", ".on_input"].map(|part| format!("{layer}{part}"));
    write("ia3.safetensors", [(&weight, &[64], 3.0), (&on_input, &[], 0.0)]);
    let [w, b] = ["w", "b"].map(|part| format!("lora_unet_conv_norm_out.{part}_norm"));
    write("norm.safetensors", [(&w, &[64], 0.5), (&b, &[64], 0.25)]);

    for line in [
        "spectrum ia3.safetensors",
        "overlap ia3.safetensors a.safetensors",
        "convert ia3.safetensors --to full --out x",
    ] {
        let refused = desk.say(line);
        assert!(refused.code == Some(1) || refused.code == Some(2), "{line}");
        assert!(refused.stderr.contains("--model M") && !desk.path("x").exists(), "{line}: {}", refused.stderr);
    }
    let spectrum = desk.run("spectrum ia3.safetensors --model starter").result();
    assert!(spectrum["energy"].as_f64().unwrap() > 0.0 && spectrum["layers"].as_array().unwrap().len() == 1);
    desk.run("overlap ia3.safetensors a.safetensors --model starter").result();
    desk.run("merge ia3.safetensors a.safetensors --out both.safetensors").result();
    let both = deltas(&desk.lora("both.safetensors"));
    desk.run("convert ia3.safetensors --to full --model starter --out f.safetensors").result();
    let alone = deltas(&desk.lora("f.safetensors"));
    let a = deltas(&desk.lora("a.safetensors"));
    let sum = |module: &str| match a.get(module) {
        Some(a) => alone[module].iter().zip(a).map(|(x, y)| x + y).collect(),
        None => alone[module].clone(),
    };
    assert!(apart(&both[layer], &sum(layer)) < 1e-5);

    // Beside a model and in it: the same picture.
    desk.run(&format!("{SAMPLE} --out base.png")).result();
    desk.run(&format!("{SAMPLE} --adapter ia3.safetensors --out beside.png")).result();
    desk.run("merge ia3.safetensors --into starter --out baked").result();
    desk.run(&format!("{SAMPLE} --model baked --out within.png")).result();
    let [base, beside, within] = ["base.png", "beside.png", "within.png"].map(|name| pixels(&desk, name));
    let worst = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(
        worst(&beside, &within) <= 3 && worst(&beside, &base) > 8,
        "{} {}",
        worst(&beside, &within),
        worst(&beside, &base)
    );

    let refused = desk.say(&format!("{SAMPLE} --adapter norm.safetensors --out x.png"));
    assert!(refused.stderr.contains("1 normalisation") && refused.stderr.contains("--into"), "{}", refused.stderr);
    desk.run("merge norm.safetensors --into starter --out normed").result();
    let norm = |folder: &str| {
        let file = Checkpoint::open(&desk.path(folder).join("unet/diffusion_pytorch_model.safetensors")).unwrap();
        (file.f32("conv_norm_out.weight").unwrap(), file.f32("conv_norm_out.bias").unwrap())
    };
    let ((w0, b0), (w1, b1)) = (norm("baked"), norm("normed"));
    assert!(
        w0.iter().zip(w1).all(|(a, b)| (b - a - 0.5).abs() < 2e-3)
            && b0.iter().zip(b1).all(|(a, b)| (b - a - 0.25).abs() < 2e-3)
    );
}
