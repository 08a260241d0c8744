//! `triptych merge`

use serde_json::{Value, json};
use triptych::engine::io::metadata;

use crate::command::{Desk, TRAIN};
use crate::{SAMPLE, apart, delta, train};

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
fn a_recipe_makes_the_merge_it_describes() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    train(&desk, "b", "").result();
    let fader = |file: &str, rest: &str| format!("[[fader]]\nfile = \"{file}.safetensors\"\n{rest}\n");
    let recipe = format!("method = \"sum\"\n{}{}", fader("a", "strength = 0.75"), fader("b", "muted = true"));
    desk.write("recipe.toml", recipe);
    desk.run("merge --recipe recipe.toml --out cooked.safetensors").result();
    desk.run("merge a.safetensors:0.75 b.safetensors:0 --out given.safetensors").result();
    assert_eq!(desk.lora("cooked.safetensors").layers, desk.lora("given.safetensors").layers);
}

#[test]
fn a_merge_into_a_model_is_a_model() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    desk.run("merge a.safetensors --into starter --out baked").result();
    let told = desk.run("inspect baked").result();
    assert_eq!(told["kind"], json!("model"));
    assert_ne!(told["sha256"], desk.run("inspect starter").result()["sha256"]);
    assert!(desk.path("baked/embeddings/a.safetensors").is_file());
    let again = desk.say("merge a.safetensors --into starter --out baked");
    assert!(again.code == Some(1) && again.stderr.contains("nothing is overwritten"), "{again:?}");
}
