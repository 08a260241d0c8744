//! Predicted beside measured memory of trainings on the CPU.
//!
//! `cargo bench --profile dev --bench memory -- MODEL [METHOD [FIELD=VALUE…]]`; without a method, a table of them. Each
//! training is two steps in a process of its own, from opening the model to the written file.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

mod peak;

use std::process::Command;

use peak::{Peak, anonymous};
use serde_json::{Value, json};
use triptych::engine::adapter;
use triptych::engine::concept::shipped::{self, SHIPPED};
use triptych::engine::device::Choice;
use triptych::engine::session::{self, Lesson, Session, Training};

/// Method and fields of each training.
const TRAININGS: [(&str, &[&str]); 14] = [
    ("orthogonal", &["recompute=off"]),
    ("orthogonal", &["recompute=on"]),
    ("lora", &[]),
    ("lora", &["rank=64"]),
    ("lora", &["batch=1"]),
    ("lora", &["batch=1", "recompute=on"]),
    ("lora", &["batch=8"]),
    ("lora", &["batch=8", "recompute=on"]),
    ("lora", &["prior=0"]),
    ("lora", &["targets=*"]),
    ("lora", &["targets=*", "recompute=on"]),
    ("lora", &["targets=cross_attention"]),
    ("dora", &[]),
    ("pissa", &["recompute=on"]),
];

fn main() {
    triptych::engine::pages::keep();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [] => println!("memory MODEL [METHOD [FIELD=VALUE…]]"),
        [model] => {
            println!("{:<36}{:>14}{:>14}{:>8}", "training", "predicted", "measured", "ratio");
            for (method, fields) in TRAININGS {
                let output = Command::new(std::env::current_exe().unwrap())
                    .args([model, method])
                    .args(fields)
                    .env("XDG_CACHE_HOME", tempfile::tempdir().unwrap().path())
                    .output()
                    .unwrap();
                let line = String::from_utf8(output.stdout).unwrap();
                let row: Value = serde_json::from_str(line.trim()).unwrap_or_else(|_| panic!("{line}"));
                let [predicted, measured] = ["predicted", "measured"].map(|name| row[name].as_f64().unwrap() / 1e6);
                let name = format!("{method} {}", fields.join(" "));
                println!("{name:<36}{predicted:>11.0} MB{measured:>11.0} MB{:>8.2}", predicted / measured);
            }
        }
        [model, method, fields @ ..] => println!("{}", train(model, method, fields)),
    }
}

fn train(model: &str, method: &str, fields: &[String]) -> Value {
    let idle = anonymous();
    let session = Session::open(Choice::Cpu, &mut |_| Ok(())).unwrap();
    let model = session.model(model).unwrap();
    let loaded = anonymous() - idle;
    let folder = tempfile::tempdir().unwrap();
    let (pictures, _) = shipped::unpack(&SHIPPED[0], folder.path()).unwrap();
    let concept = session.concept(&pictures).unwrap();
    let steps = [("steps".to_owned(), "2".to_owned())];
    let pair = |field: &String| field.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    let training = Training {
        lessons: vec![Lesson::new("<sks>", Some("robot".into()))],
        method: adapter::method(method).unwrap(),
        changes: steps.into_iter().chain(fields.iter().map(pair)).collect(),
        slot: None,
        project: None,
        seed: 0,
        out: folder.path().join("out.safetensors"),
        resume: false,
        stamp: false,
        wishes: None,
    };
    let estimate = session::estimate(&model, training.method, &training.changes).unwrap();
    let peak = Peak::watch();
    session.train(&model, &[concept], &training, &mut |_| Ok(())).unwrap();
    let measured = peak.read() - idle;
    json!({ "predicted": estimate.total(), "measured": measured, "loaded": loaded, "parts": estimate })
}
