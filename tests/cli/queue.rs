//! `triptych queue`

use serde_json::{Value, json};

use crate::command::{Desk, TRAIN};

/// [`TRAIN`] as an order of the queue in `q/`.
fn add(desk: &Desk, word: &str, more: &str) -> Value {
    let line = TRAIN.replacen("train", "queue add --queue q", 1);
    desk.run(&format!("{line} --token <{word}> --out {word}.safetensors {more}")).result()
}

/// Id and state, in order.
fn states(list: &Value) -> Vec<String> {
    let orders = list["orders"].as_array().into_iter().flatten();
    orders.map(|entry| format!("{} {}", entry["id"].as_str().unwrap_or("?"), entry["order"]["state"])).collect()
}

#[test]
fn orders_are_files_that_can_be_moved_and_removed() {
    let desk = Desk::new();
    assert_eq!(desk.run("queue list --queue q").result()["orders"], json!([]));
    for word in ["a", "b", "c"] {
        assert_eq!(add(&desk, word, "--steps 2 --lr 1e-3 --seed 7 --slot 1")["id"], word);
    }
    let text = String::from_utf8(desk.read("q/0020-b.toml")).unwrap();
    for line in
        ["state = \"waiting\"", "token = \"<b>\"", "seed = 7", "slot = 1", "[set]", "steps = 2", "lr = \"1e-3\""]
    {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let list = desk.run("queue list --queue q").result();
    assert_eq!(states(&list), ["a \"waiting\"", "b \"waiting\"", "c \"waiting\""]);
    assert!(list["orders"][0]["order"]["out"].as_str().unwrap().ends_with("/a.safetensors"), "{list}");

    let moved = desk.run("queue --queue q move c 1").result();
    assert_eq!(states(&moved), ["c \"waiting\"", "a \"waiting\"", "b \"waiting\""]);
    desk.write("q/0001-torn.toml", "concept = ");
    let left = desk.run("queue remove a c --queue q").result();
    assert_eq!((states(&left).len(), left["orders"][0]["error"]["what"].is_string()), (2, true), "{left}");
    let prose = desk.say("queue list --queue q").stdout;
    assert!(
        prose.contains("1  torn  unreadable") && prose.contains("2  b  waiting  <b> robot by orthogonal"),
        "{prose}"
    );
}

#[test]
fn a_wrong_order_never_gets_into_the_queue() {
    let desk = Desk::new();
    let line = TRAIN.replacen("train", "queue add --queue q", 1);
    for (more, words) in [
        ("--set colour=red", "There is no field “colour”"),
        ("--steps 0", "a whole number from 1"),
        ("--token 'two words'", "several words"),
        ("--method stew", "Choose one of orthogonal, lora"),
    ] {
        let done = desk.say(&format!("{line} {more} --out a.safetensors"));
        assert!(done.code == Some(2) && done.stderr.contains(words), "{done:?}");
    }
    assert!(!desk.path("q").exists());
    assert_eq!(desk.say("queue --queue q move a 0").code, Some(2));
    assert_eq!(desk.say("queue").code, Some(2));
    for line in ["remove a", "move a 1", "retry a"] {
        desk.write("q/.keep", "");
        assert!(desk.run(&format!("queue --queue q {line}")).failure().contains("There is no order “a”"), "{line}");
    }
}

#[test]
fn one_order_that_fails_does_not_stop_the_next_and_can_be_tried_again() {
    let desk = Desk::new();
    // The folder is not there when its turn comes.
    let line = TRAIN.replace("--concept robot", "--concept later").replacen("train", "queue add --queue q", 1);
    desk.run(&format!("{line} --token <a> --steps 1 --out a.safetensors")).result();
    add(&desk, "b", "--steps 2");
    let done = desk.run("queue run --queue q");
    let result = done.lines().pop().unwrap();
    assert_eq!((done.code, &result["done"]), (Some(1), &json!(["b"])), "{done:?}");
    assert_eq!(result["failed"][0]["id"], "a");
    assert!(done.notes().contains("a failed: There is no such concept folder"), "{}", done.notes());
    assert!(desk.path("b.safetensors").is_file() && !desk.path("a.safetensors").exists());
    let list = desk.run("queue list --queue q").result();
    assert_eq!(states(&list), ["a \"failed\"", "b \"done\""]);
    assert!(list["orders"][0]["order"]["error"].as_str().unwrap().contains("There is no such concept folder"));

    std::fs::rename(desk.path("robot"), desk.path("later")).unwrap();
    desk.run("queue retry a --queue q").result();
    assert_eq!(desk.run("queue run --queue q").result(), json!({ "done": ["a"], "failed": [] }));
    assert!(desk.path("a.safetensors").is_file());
    let prose = desk.say("queue run --queue q");
    assert_eq!((prose.code, prose.stdout.as_str()), (Some(0), "Nothing waits in the queue\n"));
}

#[test]
fn an_order_is_the_training_it_was_made_from() {
    let desk = Desk::new();
    let fields = "--steps 3 --seed 5 --set vectors=2";
    for word in ["a", "b"] {
        desk.run(&format!("{TRAIN} --token <{word}> {fields} --out alone/{word}.safetensors")).result();
        add(&desk, word, fields);
    }
    // The second is taught with the model that the first left open.
    desk.run("queue run --queue q").result();
    for name in ["a.safetensors", "b.safetensors"] {
        assert_eq!(desk.read(name), desk.read(&format!("alone/{name}")), "equal trainings, equal bytes");
    }
}

#[test]
fn concepts_are_queued_together() {
    let desk = Desk::new();
    desk.copy("assets/concepts/kenney_male_person", "man");
    let more = "--token <a> --concept man --class man --token <b> --repeats 2 --repeats 1 --steps 3";
    desk.run(&format!("{TRAIN} {more} --out alone/ab.safetensors")).result();
    desk.run(&format!("queue add --queue q {} {more} --out ab.safetensors", TRAIN.trim_start_matches("train ")))
        .result();
    assert!(desk.say("queue list --queue q").stdout.contains("<a> robot and <b> by orthogonal"));
    desk.run("queue run --queue q").result();
    assert_eq!(desk.read("ab.safetensors"), desk.read("alone/ab.safetensors"));
}

#[cfg(unix)]
#[test]
fn a_stopped_or_killed_run_goes_on_where_it_was() {
    let desk = Desk::new();
    let fields = "--steps 40 --set save_every=5";
    desk.run(&format!("{TRAIN} --token <a> {fields} --out alone/a.safetensors")).result();
    add(&desk, "a", fields);
    let list = || states(&desk.run("queue list --queue q").result());

    let mut running = desk.start("queue run --queue q");
    assert!(running.reaches(12));
    assert_eq!(list(), ["a \"running\""]);
    // Meanwhile nobody else takes it.
    assert_eq!(desk.run("queue run --queue q").result()["done"], json!([]));
    assert!(desk.run("queue remove a --queue q").failure().contains("being taught right now"));
    running.kill();
    assert_eq!(list(), ["a \"waiting\""]);

    let mut running = desk.start("queue run --queue q");
    assert!(running.reaches(20));
    assert_eq!(running.interrupt().code(), Some(130));
    assert_eq!(list(), ["a \"waiting\""]);

    let done = desk.run("queue run --queue q");
    assert_eq!(done.result()["done"], json!(["a"]));
    assert!(done.notes().contains("Resuming after step"), "{}", done.notes());
    assert_eq!(desk.read("a.safetensors"), desk.read("alone/a.safetensors"), "the bytes differ");
}
