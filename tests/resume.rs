//! A run that is killed and given again writes the same bytes as one that was left alone.

#![cfg(unix)]

mod command;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;

use command::{Desk, TRAIN};

const STATE: &str = "killed.safetensors.state/state.safetensors";

fn line(out: &str) -> String {
    format!("{TRAIN} --set save_every=5 --steps 40 --out {out}")
}

/// Starts the command and kills it with SIGKILL once `step` was reported.
fn kill_at(desk: &Desk, line: &str, step: u64) {
    let mut running = desk.start(line);
    assert!(running.reaches(step), "ended before step {step}: {line}");
    let status = running.kill();
    assert_eq!(status.signal(), Some(9), "the run was over before it could be killed at step {step}");
    assert!(!desk.path("killed.safetensors").exists(), "a file before its time");
}

/// The step after which a resumed run went on.
fn resumed_after(notes: &str) -> usize {
    let (_, rest) = notes.split_once("Resuming after step ").unwrap_or_else(|| panic!("not resumed: {notes}"));
    rest.lines().next().and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("no step: {notes}"))
}

#[test]
fn a_killed_run_ends_in_the_same_bytes() {
    let desk = Desk::new();
    // All the randomness of a real run: mirrored pictures in a new order each epoch, prior, made-up words.
    let with_prior = |out: &str| line(out).replace("prior=0", "prior=1");
    let whole = desk.run(&with_prior("whole/killed.safetensors")).result();
    let killed = with_prior("killed.safetensors");
    let resumed = format!("{killed} --resume");

    kill_at(&desk, &killed, 20);
    assert!(desk.path(STATE).is_file());
    // Once more on the way, then to the end.
    kill_at(&desk, &resumed, 31);
    let done = desk.run(&resumed);
    let result = done.result();
    let step = resumed_after(&done.notes());
    assert!((25..40).contains(&step) && step.is_multiple_of(5), "resumed after {step}");
    let first = done.lines().into_iter().find(|line| line["event"] == "step").unwrap();
    assert_eq!(first["step"], step + 1);

    assert!(desk.read("killed.safetensors") == desk.read("whole/killed.safetensors"), "the bytes differ");
    assert_eq!((&result["steps"], &result["loss"]), (&whole["steps"], &whole["loss"]));
    let left: BTreeSet<String> =
        desk.files().into_iter().filter(|name| !name.starts_with("robot") && !name.starts_with("whole")).collect();
    assert_eq!(left, [".triptych.toml.lock", "killed.safetensors", "triptych.toml"].map(String::from).into());
}

#[test]
fn a_run_killed_before_its_first_state_starts_afresh_and_says_so() {
    let desk = Desk::new();
    desk.run(&line("whole/killed.safetensors")).result();
    let killed = line("killed.safetensors");
    kill_at(&desk, &killed, 2);
    assert!(!desk.path(STATE).exists());
    let done = desk.run(&format!("{killed} --resume"));
    done.result();
    assert!(done.notes().contains("There is no saved state to resume from: starting afresh"), "{}", done.notes());
    assert!(desk.read("killed.safetensors") == desk.read("whole/killed.safetensors"), "the bytes differ");
}

#[test]
fn resuming_a_finished_run_does_nothing() {
    let desk = Desk::new();
    let line = format!("{TRAIN} --steps 3 --out a.safetensors --resume");
    desk.run(&line).result();
    // As if the run had been killed after writing its file and before forgetting its state.
    desk.write("a.safetensors.state/state.safetensors", "old");
    let modified = || std::fs::metadata(desk.path("a.safetensors")).unwrap().modified().unwrap();
    let (before, bytes) = (modified(), desk.read("a.safetensors"));
    let done = desk.run(&line);
    assert_eq!(done.result()["steps"], 0);
    assert!(done.notes().contains("already finished"), "{}", done.notes());
    assert_eq!((modified(), desk.read("a.safetensors")), (before, bytes));
    assert!(!desk.path("a.safetensors.state").exists());
    // Another seed is another run.
    assert_eq!(desk.run(&format!("{line} --seed 1")).result()["steps"], 3);
}

#[test]
fn a_state_belongs_to_its_settings() {
    let desk = Desk::new();
    desk.run(&line("whole/killed.safetensors")).result();
    let killed = line("killed.safetensors");
    kill_at(&desk, &killed, 7);
    let state = desk.read(STATE);
    for other in ["--seed 1", "--lr 0.001", "--token <other>", "--set flip=false", "--slot 3", "--method lora"] {
        let failure = desk.run(&format!("{killed} --resume {other}")).failure();
        assert!(
            failure.contains("other settings, pictures or model") && failure.ends_with(STATE),
            "{other}: {failure}"
        );
        assert!(failure.contains("leave out --resume to start afresh"), "{other}: {failure}");
        assert!(desk.read(STATE) == state && !desk.path("killed.safetensors").exists(), "{other}");
    }
    let text = desk.read("robot/idle.txt");
    desk.write("robot/idle.txt", "another caption");
    assert!(desk.run(&format!("{killed} --resume")).failure().contains("other settings, pictures or model"));
    desk.write("robot/idle.txt", text);
    // None of the refusals has done any harm.
    let done = desk.run(&format!("{killed} --resume"));
    done.result();
    assert!(resumed_after(&done.notes()) >= 5);
    assert!(desk.read("killed.safetensors") == desk.read("whole/killed.safetensors"), "the bytes differ");
}

#[test]
fn without_resume_an_old_state_is_forgotten() {
    let desk = Desk::new();
    let killed = line("killed.safetensors");
    kill_at(&desk, &killed, 7);
    let done = desk.run(&killed);
    done.result();
    let first = done.lines().into_iter().find(|line| line["event"] == "step").unwrap();
    assert_eq!(first["step"], 1);
    assert!(!desk.path("killed.safetensors.state").exists());
}

#[test]
fn ctrl_c_saves_the_state_and_exits_130() {
    let desk = Desk::new();
    // No state of its own accord: what is there afterwards, Ctrl+C has saved.
    let [killed, whole] = [line("killed.safetensors"), line("whole/killed.safetensors")]
        .map(|line| line.replace("save_every=5", "save_every=0"));
    desk.run(&whole).result();
    let mut running = desk.start(&killed);
    assert!(running.reaches(12), "ended before step 12");
    assert_eq!(running.interrupt().code(), Some(130));
    assert!(desk.path(STATE).is_file() && !desk.path("killed.safetensors").exists());

    let done = desk.run(&format!("{killed} --resume"));
    done.result();
    assert!((12..40).contains(&resumed_after(&done.notes())), "{}", done.notes());
    assert!(desk.read("killed.safetensors") == desk.read("whole/killed.safetensors"), "the bytes differ");
}

#[test]
fn everything_that_is_carried_from_step_to_step_is_resumed() {
    let desk = Desk::new();
    let line = |out: &str| {
        let more = "--set accumulate=2 --set ema=0.9 --set noise_offset=0.1 --set loss=huber --set debiased=true \
                    --set up_rate_ratio=2 --set text_lr=1e-4 --set patience=50 --set validate_every=3 --set keep_last=2 \
                    --set keep_every=4 --set sample_every=9";
        line(out).replace("prior=0", "prior=1").replace("targets=keys_values", "targets=keys_values,text")
            + &format!(" {more}")
    };
    desk.run(&line("whole/killed.safetensors")).result();
    let killed = line("killed.safetensors");
    kill_at(&desk, &killed, 14);
    let done = desk.run(&format!("{killed} --resume"));
    done.result();
    let step = resumed_after(&done.notes());
    assert!((10..40).contains(&step), "resumed after {step}");
    let under = |prefix: &str| -> BTreeSet<String> {
        desk.files().iter().filter_map(|name| Some(name.strip_prefix(prefix)?.to_owned())).collect()
    };
    let written = under("whole/killed.safetensors");
    assert!(written.iter().any(|name| name.ends_with("-best.safetensors")), "{written:?}");
    assert_eq!(under("killed.safetensors"), written);
    for name in written {
        let [resumed, whole] = [format!("killed.safetensors{name}"), format!("whole/killed.safetensors{name}")];
        assert!(desk.read(&resumed) == desk.read(&whole), "the bytes of {name} differ");
    }
}
