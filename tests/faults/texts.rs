//! Texts that people edit: projects, recipes, fields, block strengths, orders of the queue.

use crate::command::{Desk, TRAIN, tree};

/// A text that the engine reads, whole, and a command that reads it from `bad.toml`.
struct Text {
    whole: &'static str,
    line: String,
    /// What is said of a text that is none of its kind.
    unreadable: &'static str,
}

fn texts() -> [Text; 4] {
    let train = format!("{TRAIN} --steps 1 --out out.safetensors");
    [
        Text {
            whole: "version = 2\nblock = 8\n[[slot]]\nnumber = 0\nfile = \"a.safetensors\"\ntoken = \"<a>\"\n",
            line: format!("{train} --project bad.toml"),
            unreadable: "The project cannot be read",
        },
        Text {
            whole: "method = \"sum\"\n[[fader]]\nfile = \"a.safetensors\"\nstrength = 0.5\n",
            line: "merge --recipe bad.toml --out out.safetensors".into(),
            unreadable: "This is not a recipe",
        },
        Text {
            whole: "rank = 2\nlr = 1e-3\ntargets = \"keys_values\"\n",
            line: format!("{train} --config bad.toml"),
            unreadable: "The configuration cannot be read",
        },
        Text {
            whole: "\"mid_block\" = 0.5\n[1]\n\"down_blocks.0\" = 1\n",
            line: "merge a.safetensors --blocks bad.toml --out out.safetensors".into(),
            unreadable: "The block strengths cannot be read",
        },
    ]
}

fn desk() -> Desk {
    let desk = Desk::new();
    desk.run(&format!("{TRAIN} --method lora --steps 2 --token <a> --out a.safetensors")).result();
    desk.write("out.safetensors", "an earlier file");
    desk
}

#[test]
fn a_text_that_is_cut_or_none_at_all_is_refused_by_what_reads_it() {
    let desk = desk();
    let picture = std::fs::read(tree("assets/concepts/kenney_robot/idle.png")).unwrap();
    for Text { whole, line, unreadable } in texts() {
        // In the middle of its last value.
        let cut = whole.trim_end().trim_end_matches(|c| c != '=');
        let cases: [(&str, &[u8], &str); 4] = [
            ("cut", cut.as_bytes(), unreadable),
            ("prose", b"It was a dark and stormy night", unreadable),
            ("not UTF-8", b"name = \"K\xe4fer\"", "It is no text file"),
            ("a picture", &picture, "It is no text file"),
        ];
        for (case, content, words) in cases {
            desk.write("bad.toml", content);
            let failure = desk.refuses(&line);
            assert!(failure.contains(words) && failure.ends_with("bad.toml"), "{case}, {line}: {failure}");
        }
    }
}

#[test]
fn a_value_that_cannot_be_meant_is_named() {
    let desk = desk();
    let [project, recipe, config, blocks] = texts().map(|text| text.line);
    let cases = [
        (&project, "block = 0", "block must be at least 1"),
        (&project, "block = -8", "invalid value"),
        (&project, "block = \"wide\"", "invalid type"),
        (&project, "", "missing field"),
        (&project, "block = 9223372036854775807", "room for 0 concepts"),
        (&project, "version = 99\nblock = 8", "written by a newer Triptych"),
        (&project, "block = 8\n[[slot]]\nnumber = -1\nfile = \"a\"\ntoken = \"<a>\"", "invalid value"),
        (&project, "block = 8\n[[desk.fader]]\nfile = \"a\"\nstrength = nan", "strength of a is not a number"),
        (&recipe, "", "names no adapter"),
        (&recipe, "[[fader]]\nfile = 5", "invalid type"),
        (&recipe, "[[fader]]\nfile = \"a.safetensors\"\nstrength = \"loud\"", "invalid type"),
        (
            &recipe,
            "[[fader]]\nfile = \"a.safetensors\"\nstrength = nan",
            "a.safetensors in this recipe is not a number",
        ),
        (&recipe, "[[fader]]\nfile = \"a.safetensors\"\nblocks = { mid_block = inf }", "is not a number"),
        (&config, "[rank]\nvalue = 2", "rank is not a plain value"),
        (&config, "rank = [2, 3]", "rank is not a plain value"),
        (&blocks, "mid_block = nan", "The strength of mid_block is not a number"),
        (&blocks, "mid_block = \"half\"", "The strength of mid_block is not a number"),
        (&blocks, "[2]\nmid_block = 1", "[2] is not the number of an adapter"),
    ];
    for (line, content, words) in cases {
        desk.write("bad.toml", content);
        let failure = desk.refuses(line);
        assert!(failure.contains(words) && failure.ends_with("bad.toml"), "{content:?}, {line}: {failure}");
    }
    // Where a file that a recipe names is missing, it is that file which is told.
    desk.write("bad.toml", "[[fader]]\nfile = \"attic/gone.safetensors\"");
    let failure = desk.refuses(&recipe);
    assert!(failure.contains("Could not open") && failure.ends_with("attic/gone.safetensors"), "{failure}");
}

#[test]
fn an_order_that_cannot_be_read_is_passed_over_and_left_as_it_is() {
    let desk = Desk::new();
    let add = TRAIN.replacen("train", "queue add --queue q", 1);
    desk.run(&format!("{add} --method lora --steps 2 --out good.safetensors")).result();
    let good = String::from_utf8(desk.read("q/0010-good.toml")).unwrap();
    let spoiled: [(&str, Vec<u8>, &str); 6] = [
        ("0001-cut", good.as_bytes()[..good.len() / 2].to_vec(), "The order cannot be read"),
        ("0002-picture", desk.read("robot/idle.png"), "It is no text file"),
        ("0003-empty", Vec::new(), "missing field"),
        ("0004-method", good.replace("\"lora\"", "\"stew\"").into(), "stew"),
        ("0005-field", good.replace("rank = 2", "rank = 0").into(), "rank cannot be"),
        ("0006-place", good.replace("out = \"/", "out = \"").into(), "means another place in every folder"),
    ];
    for (name, content, _) in &spoiled {
        desk.write(&format!("q/{name}.toml"), content);
    }
    let done = desk.run("queue run --queue q");
    assert_eq!(done.result()["done"], serde_json::json!(["good"]));
    let notes = done.notes();
    for (name, content, words) in &spoiled {
        let (_, id) = name.split_once('-').unwrap();
        let told = notes.split_once(&format!("{id} is passed over")).unwrap_or_else(|| panic!("{id}: {notes}")).1;
        let told = told.split("is passed over").next().unwrap();
        assert!(told.contains(words) && told.contains(&format!("{name}.toml")), "{id}: {told}");
        assert!(desk.read(&format!("q/{name}.toml")) == *content, "{id}");
    }
    assert!(desk.path("good.safetensors").is_file());
}
