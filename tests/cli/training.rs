//! How `triptych train` learns: accumulation, averaging, rates, early end, samples. Each against what it should be by
//! hand.

use std::collections::BTreeMap;

use serde_json::Value;
use triptych::engine::io::metadata;
use triptych::engine::io::png;

use crate::command::{Desk, Done, TRAIN};

/// Every number that was learnt.
fn learnt(desk: &Desk, name: &str) -> BTreeMap<String, Vec<f32>> {
    let file = desk.lora(name);
    let mut numbers = BTreeMap::new();
    for (module, layer) in file.layers {
        numbers.insert(format!("{module}.up"), layer.up);
        numbers.insert(format!("{module}.down"), layer.down);
    }
    numbers.extend(file.tokens.into_iter().map(|(word, vectors)| (word, vectors.concat())));
    numbers
}

/// The largest difference of two files, in shares of the largest number.
fn apart(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f32 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let largest = a.values().flatten().fold(0.0_f32, |m, x| m.max(x.abs()));
    a.iter().flat_map(|(name, a)| a.iter().zip(&b[name])).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn values(done: &Done, field: &str) -> Vec<f64> {
    done.lines().iter().filter(|line| line["event"] == "step").filter_map(|line| line[field].as_f64()).collect()
}

#[test]
fn accumulated_batches_learn_what_one_large_batch_learns() {
    let desk = Desk::new();
    // Plain mean squares with a prior: a step's three pictures and their prior, at once or one after the other.
    let line = TRAIN.replace("prior=0", "prior=1 --set strangers=0 --set noise_offset=0.1 --set lr=0.001");
    let [one, many] = [("3", "1", "one"), ("1", "3", "many")].map(|(batch, accumulate, out)| {
        let line = line.replace("--batch 1", &format!("--batch {batch}"));
        let done = desk.run(&format!(
            "{line} --slot 0 --project {out}.toml --set accumulate={accumulate} --steps 4 --out {out}.safetensors"
        ));
        done.result();
        done
    });
    for field in ["loss", "prior", "gradient"] {
        let (one, many) = (values(&one, field), values(&many, field));
        assert_eq!((one.len(), many.len()), (4, 4), "{field}");
        for (one, many) in one.iter().zip(&many) {
            assert!((one - many).abs() <= 2e-4 * one.abs().max(1e-3), "{field}: {one} and {many}");
        }
    }
    let apart = apart(&learnt(&desk, "one.safetensors"), &learnt(&desk, "many.safetensors"));
    assert!(apart < 5e-3, "{apart}");
}

#[test]
fn the_file_holds_the_average_of_the_steps() {
    let desk = Desk::new();
    let line = format!("{TRAIN} --steps 3 --set keep_every=1");
    desk.run(&format!("{line} --slot 0 --out plain.safetensors")).result();
    let done = desk.run(&format!("{line} --set ema=0.2 --slot 0 --project other.toml --out mean.safetensors"));
    done.result();
    assert!(done.notes().contains("moving average with decay 0.2"), "{}", done.notes());
    let [first, second, third] = [
        "plain.safetensors.steps/000001.safetensors",
        "plain.safetensors.steps/000002.safetensors",
        "plain.safetensors",
    ]
    .map(|name| learnt(&desk, name));
    // d is 0, then (1 + 1)/(10 + 1), then 0.2, which (1 + 2)/(10 + 2) has passed.
    let step = |before: &BTreeMap<String, Vec<f32>>, next: &BTreeMap<String, Vec<f32>>, d: f32| {
        let mean = |(name, before): (&String, &Vec<f32>)| {
            let values = before.iter().zip(&next[name]).map(|(b, n)| d * b + (1.0 - d) * n).collect();
            (name.clone(), values)
        };
        before.iter().map(mean).collect::<BTreeMap<_, _>>()
    };
    let two = step(&first, &second, 2.0 / 11.0);
    let three = step(&two, &third, 0.2);
    let kept = |step: usize| learnt(&desk, &format!("mean.safetensors.steps/{step:06}.safetensors"));
    for (expected, found) in [(first.clone(), kept(1)), (two, kept(2)), (three, learnt(&desk, "mean.safetensors"))] {
        assert!(apart(&expected, &found) < 1e-6);
    }
    assert!(apart(&third, &learnt(&desk, "mean.safetensors")) > 1e-3, "the average is not the last step");
}

#[test]
fn the_write_side_and_the_text_encoder_learn_at_their_own_rates() {
    let desk = Desk::new();
    let line = TRAIN.replace("targets=keys_values", "targets=keys_values,text --set lr=0.001 --method lora --steps 1");
    desk.run(&format!("{line} --out plain.safetensors")).result();
    desk.run(&format!("{line} --set up_rate_ratio=4 --out plus.safetensors")).result();
    desk.run(&format!("{line} --set text_lr=0.003 --out text.safetensors")).result();
    let [plain, plus, text] = ["plain", "plus", "text"].map(|name| learnt(&desk, &format!("{name}.safetensors")));
    // AdamW's first step is the rate, whatever the gradient; up begins at zero, where nothing decays.
    let size = |numbers: &[f32]| numbers.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    for name in plain.keys().filter(|name| name.ends_with(".up")) {
        assert!((size(&plus[name]) / size(&plain[name]) - 4.0).abs() < 1e-3, "{name}");
        let expected = if name.starts_with("lora_te_") { 3.0 } else { 1.0 };
        assert!((size(&text[name]) / size(&plain[name]) - expected).abs() < 1e-3, "{name}");
    }
    for name in plain.keys().filter(|name| name.ends_with(".down")) {
        assert_eq!(plus[name], plain[name], "{name}");
    }
    assert!(plain.keys().any(|name| name.starts_with("lora_te_text_model_encoder_layers_0_")));
}

#[test]
fn an_adapter_of_the_text_encoder_learns_is_held_back_and_is_heard() {
    let desk = Desk::new();
    let line = TRAIN.replace("prior=0", "prior=1").replace("targets=keys_values", "targets=text");
    let done = desk.run(&format!("{line} --method lora --steps 3 --out text.safetensors"));
    done.result();
    // Only the text encoder has changed: what strays from the untouched model strays through it.
    let prior = values(&done, "prior");
    assert!(prior[0] < 1e-12 && prior[1] > 1e-10 && prior[2] > prior[1], "{prior:?}");
    assert!(learnt(&desk, "text.safetensors").keys().all(|name| name.starts_with("lora_te_") || name == "<sks>"));

    let sample = "sample --prompt 'a 3d emoji of robot' --steps 2 --out";
    desk.run(&format!("{sample} base.png")).result();
    desk.run(&format!("{sample} with.png --adapter text.safetensors")).result();
    desk.run(&format!("{sample} unet.png --adapter text.safetensors:1:0")).result();
    assert_ne!(desk.read("base.png"), desk.read("with.png"), "the adapter is not heard");
    let pixels = |name: &str| png::read(&desk.path(name)).unwrap();
    assert_eq!(pixels("base.png"), pixels("unet.png"), "its strength on text is 0");
}

#[test]
fn a_training_that_no_longer_gains_ends_with_its_best_adapter() {
    let desk = Desk::new();
    // So slow that nothing changes: no measurement after the first is lower.
    let line = format!(
        "{TRAIN} --steps 30 --set lr=1e-30 --set token_lr=1e-30 --set validate_every=2 --set patience=3 --out a.safetensors"
    );
    let done = desk.run(&line);
    assert_eq!(done.result()["steps"], 8);
    assert!(
        done.notes().contains("Ended after step 8: the steady loss has not fallen since step 2"),
        "{}",
        done.notes()
    );
    let best: Vec<Value> = done.lines().into_iter().filter(|line| line["event"] == "best").collect();
    assert!(best.len() == 1 && best[0]["step"] == 2, "{best:?}");
    assert_eq!(desk.lora("a.safetensors").metadata[metadata::STEP], "2");
    assert_eq!(desk.read("a.safetensors"), desk.read("a.safetensors.steps/000002-best.safetensors"));
    assert!(!desk.path("a.safetensors.state").exists());
    let again = desk.run(&format!("{line} --resume"));
    assert!(again.result()["steps"] == 0 && again.notes().contains("already finished"), "{}", again.notes());

    let done = desk.say(&format!("{TRAIN} --set patience=2 --set validate_every=0 --out b.safetensors"));
    assert!(done.code == Some(2) && done.stderr.contains("it is never measured"), "{done:?}");
    let done = desk.say(&format!("{TRAIN} --set min_snr=5 --set debiased=true --out b.safetensors"));
    assert!(done.code == Some(2) && done.stderr.contains("Choose one of them"), "{done:?}");
}

#[test]
fn samples_and_kept_steps_lie_beside_the_file_and_change_none_of_its_bytes() {
    let desk = Desk::new();
    let line = |more: &str, out: &str| {
        format!(
            "{} --token <a> --slot 0 --steps 6 {more} --out {out}.safetensors",
            TRAIN.replace("--batch 1", "--batch 2")
        )
    };
    desk.run(&line("--set validate_every=0", "plain")).result();
    desk.write("seen.safetensors.samples/000099-1.png", "of an earlier run");
    let more = "--set sample_every=3 --set 'sample_prompts=[trigger] on the moon; a dog' --set keep_every=1 \
                --set keep_last=2 --set keep_best=true --set validate_every=2 --project other.toml";
    let done = desk.run(&line(more, "seen"));
    done.result();
    assert_eq!(desk.read("plain.safetensors"), desk.read("seen.safetensors"));
    let files = desk.files();
    let of = |folder: &str| -> Vec<&str> { files.iter().filter_map(|name| name.strip_prefix(folder)).collect() };
    assert_eq!(of("seen.safetensors.samples/"), ["000003-1.png", "000003-2.png", "000006-1.png", "000006-2.png"]);
    let steps = of("seen.safetensors.steps/");
    let best: Vec<_> = steps.iter().filter(|name| name.ends_with("-best.safetensors")).collect();
    assert_eq!((steps.len(), best.len()), (3, 1), "{steps:?}");
    assert!(steps.contains(&"000005.safetensors") && steps.contains(&"000006.safetensors"), "{steps:?}");
    let text = |name: &str| png::read_text(&desk.path(&format!("seen.safetensors.samples/{name}"))).unwrap();
    assert!(text("000003-1.png")["parameters"].starts_with("<a> on the moon"), "{:?}", text("000003-1.png"));
    assert!(text("000003-2.png")["parameters"].contains("a dog"));
    let sampled: Vec<Value> = done.lines().into_iter().filter(|line| line["event"] == "sampled").collect();
    assert!(sampled.len() == 4 && sampled[0]["prompt"] == "<a> on the moon", "{sampled:?}");
}

#[test]
fn clip_skip_is_learnt_with_and_written_down() {
    let desk = Desk::new();
    let line = format!("{} --steps 3 --slot 0", TRAIN.replace("prior=0", "prior=1"));
    desk.run(&format!("{line} --project a.toml --out one.safetensors")).result();
    desk.run(&format!("{line} --project b.toml --set clip_skip=2 --out two.safetensors")).result();
    assert!(apart(&learnt(&desk, "one.safetensors"), &learnt(&desk, "two.safetensors")) > 1e-3);
    let skip = |name: &str| desk.lora(name).metadata.get(metadata::CLIP_SKIP).cloned();
    assert_eq!((skip("one.safetensors"), skip("two.safetensors").as_deref()), (None, Some("2")));
    let refused = desk.say(&format!("{line} --set clip_skip=5 --out three.safetensors"));
    assert!(refused.code == Some(2) && refused.stderr.contains("has 4 layers"), "{refused:?}");
}

#[test]
fn captions_that_are_cut_are_named() {
    let desk = Desk::new();
    desk.write("robot/jump.txt", format!("<sks> robot, {}", "red ".repeat(90)));
    desk.write("robot/walk0.txt", format!("<sks> robot, {}", "blue ".repeat(90)));
    let notes = desk.run(&format!("{TRAIN} --steps 1 --out a.safetensors")).notes();
    let told = notes.lines().find(|line| line.contains("tokens, of which the first 75 are learnt")).unwrap();
    assert!(told.contains("jump.png has 9") && told.ends_with("so does 1 more"), "{told}");
    desk.write("robot/walk0.txt", "(robot:1.5)");
    let notes = desk.run(&format!("{TRAIN} --steps 1 --out b.safetensors")).notes();
    assert!(notes.contains("are learnt\n"), "{notes}");
}
