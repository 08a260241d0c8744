//! `triptych doctor`.

use crate::command::Desk;

#[test]
fn a_machine_is_examined_on_the_cpu() {
    let desk = Desk::new();
    let report = desk.run("doctor").result();
    let keys: Vec<_> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["adapters", "automatic", "caches", "device", "machine", "self_test", "speed"]);
    assert_eq!(report["device"]["name"], "CPU");
    assert_eq!(report["self_test"]["passed"], true);
    let checks = report["self_test"]["checks"].as_array().unwrap();
    for name in ["3×3 convolution", "attention", "layer norm", "group norm and SiLU", "GEGLU", "AdamW", "f16 as f32"] {
        let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(check["verdict"], "right", "{check}");
    }
    for kernel in triptych::engine::ops::OPS {
        let tried =
            |check: &&serde_json::Value| check["name"].as_str().is_some_and(|name| name.starts_with(kernel.name));
        assert!(checks.iter().filter(tried).count() >= kernel.elements.len(), "{}", kernel.name);
    }
    assert!(checks.iter().any(|check| check["name"].as_str().is_some_and(|name| name.starts_with("layer of "))));
    let speed = report["speed"].as_array().unwrap();
    assert_eq!(speed.len(), 5);
    assert!(speed.iter().all(|speed| speed["rate"].as_f64().is_some_and(|rate| rate > 0.0)), "{speed:?}");
    assert_eq!(report["machine"]["triptych"], env!("CARGO_PKG_VERSION"));
    assert!(report["machine"]["libraries"]["wgpu"].is_string());
    // The home folder, which this desk has inside itself, is not told.
    let place = report["caches"]["folder"].as_str().unwrap();
    assert!(place.starts_with('~') && report["caches"]["kernels"].as_str().unwrap().starts_with(place), "{report}");
    assert!(!report.to_string().contains(&*desk.path("").to_string_lossy()), "{report}");
}

#[test]
fn its_words_fit_into_a_bug_report() {
    let desk = Desk::new();
    let done = desk.say("doctor");
    assert_eq!(done.code, Some(0), "{done:?}");
    for said in ["triptych ", "wgpu ", "--device auto takes: ", "Self-test against the CPU passed", "GFLOP/s", "GB/s"] {
        assert!(done.stdout.contains(said), "{said}: {}", done.stdout);
    }
    assert!(
        done.stdout.lines().count() < 80 && done.stdout.lines().all(|line| line.chars().count() < 150),
        "{}",
        done.stdout
    );
    assert_eq!(desk.say("doctor --model nowhere").code, Some(1));
}
