//! `triptych sample`

use std::collections::BTreeMap;

use serde_json::json;
use triptych::engine::io::png;
use triptych::engine::io::safetensors::{self, Checkpoint, Dtype, Tensor};
use triptych::engine::random::Philox;

use crate::command::Desk;
use crate::{SAMPLE, pixels, train};

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
         Steps: 2, Sampler: euler_ancestral, CFG scale: 3.5, Seed: 7, Size: 64x64, Model: starter, RNG: NV"
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
fn prompts_have_weights_and_any_length() {
    let desk = Desk::new();
    let picture = |prompt: &str, negative: &str| {
        let line = format!("sample --steps 2 --prompt '{prompt}' --negative '{negative}' --out x.png");
        desk.run(&line).result();
        pixels(&desk, "x.png")
    };
    let plain = picture("a 3d emoji of robot", "");
    assert_eq!(picture("a 3d emoji of (robot:1)", ""), plain);
    assert_ne!(picture("a 3d emoji of (robot:1.5)", ""), plain);
    assert_ne!(picture("a 3d emoji of \\(robot\\)", ""), picture("a 3d emoji of (robot)", ""));
    // What lies beyond the first 75 tokens is heard, on either side alone.
    let long = "red ".repeat(80);
    assert_ne!(picture("a 3d emoji of robot", &long), picture("a 3d emoji of robot", &format!("{long} blue hat")));
    assert_ne!(picture(&long, "hat"), picture(&format!("{long} blue hat"), "hat"));
    let book = desk.say(&format!("sample --steps 1 --prompt '{}' --out y.png", "red ".repeat(4000)));
    assert!(book.code == Some(2) && book.stderr.contains("4000 tokens"), "{book:?}");
}

#[test]
fn clip_skip_reads_another_layer_and_is_remembered() {
    let desk = Desk::new();
    desk.run(&format!("{SAMPLE} --out one.png")).result();
    desk.run(&format!("{SAMPLE} --clip-skip 2 --out two.png")).result();
    assert_ne!(pixels(&desk, "one.png"), pixels(&desk, "two.png"));
    let text = |name: &str| png::read_text(&desk.path(name)).unwrap()[png::PARAMETERS].clone();
    assert!(text("two.png").contains(", Clip skip: 2, ") && !text("one.png").contains("Clip skip"));
    let refused = desk.say(&format!("{SAMPLE} --clip-skip 5 --out three.png"));
    assert!(refused.code == Some(2) && refused.stderr.contains("has 4 layers"), "{refused:?}");
}
