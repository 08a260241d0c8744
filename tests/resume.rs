//! A run that is killed and given again writes the same bytes as one that was left alone.

#![cfg(unix)]

mod command;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Instant;

use command::{Desk, TRAIN};
use triptych::engine::io::safetensors::Checkpoint;
use triptych::engine::random::Philox;

/// How many runs are killed at a random moment: `TRIPTYCH_KILLS`, or as many as nobody minds waiting for.
fn kills() -> u32 {
    std::env::var("TRIPTYCH_KILLS").map_or(4, |text| text.parse().unwrap_or_else(|e| panic!("TRIPTYCH_KILLS: {e}")))
}

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
fn buckets_sizes_versions_masks_and_concepts_resume_in_the_same_bytes() {
    let desk = Desk::new();
    for (name, width, height) in [("wide.png", 200, 90), ("tall.png", 60, 150), ("small.png", 20, 20)] {
        let pixel = |x: u32, y: u32| image::Rgba([x as u8, y as u8, 90, if x < width / 2 { 255 } else { 40 }]);
        image::RgbaImage::from_fn(width, height, pixel).save(desk.path("robot").join(name)).unwrap();
    }
    desk.copy("assets/concepts/kenney_male_person", "man");
    let shown = "--set fit=bucket --set upscale=false --set resolutions=64,48 --set variations=3 --set jitter=0.2 \
                 --concept man --class man --token <a> --token <b> --set concept_balance=equal --set rotate=15 --set hue=20 --set saturation=0.2 --set mask=alpha --set held_out=1 --batch 2";
    let with = |out: &str| format!("{} {shown}", line(out).replace("--batch 1", "").replace("prior=0", "prior=1"));
    let whole = desk.run(&with("whole/killed.safetensors")).result();
    let killed = with("killed.safetensors");
    kill_at(&desk, &killed, 20);
    let done = desk.run(&format!("{killed} --resume"));
    assert_eq!(done.result()["loss"], whole["loss"]);
    assert!(resumed_after(&done.notes()) >= 10, "{}", done.notes());
    assert!(desk.read("killed.safetensors") == desk.read("whole/killed.safetensors"), "the bytes differ");
}

#[test]
fn tokens_with_vectors_for_each_layer_resume_in_the_same_bytes() {
    let desk = Desk::new();
    desk.copy("assets/concepts/kenney_male_person", "man");
    let how = "--concept man --class man --token <a> --token <b> --set per_layer=true --set vectors=2 --set accumulate=2 \
               --set ema=0.9 --set recompute=on --set targets=keys_values,text";
    let with = |out: &str| {
        let line = line(out).replace("--set targets=keys_values", "").replace("--steps 40", "--steps 12");
        format!("{} {how}", line.replace("save_every=5", "save_every=2").replace("prior=0", "prior=1"))
    };
    let whole = desk.run(&with("whole/killed.safetensors")).result();
    let killed = with("killed.safetensors");
    kill_at(&desk, &killed, 6);
    let done = desk.run(&format!("{killed} --resume"));
    assert_eq!(done.result()["loss"], whole["loss"]);
    assert!(resumed_after(&done.notes()) >= 4, "{}", done.notes());
    assert!(desk.read("killed.safetensors") == desk.read("whole/killed.safetensors"), "the bytes differ");
    let file = desk.lora("killed.safetensors");
    for word in ["<a>", "<b>"] {
        let layers = &file.layer_tokens[word];
        assert!(layers.iter().all(|vectors| vectors.len() == 2 && *vectors != file.tokens[word]), "{word}");
    }
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

/// The whole life of a process is hit: opening, preparing pictures, steps, states, kept steps, the last file.
#[test]
fn killed_at_any_moment_it_ends_in_the_same_bytes_and_leaves_nothing_behind() {
    let line = format!("{TRAIN} --set save_every=1 --set keep_every=3 --steps 20 --out killed.safetensors --resume")
        .replace("prior=0", "prior=1");
    let whole = Desk::new();
    let begun = Instant::now();
    whole.run(&line).result();
    let (life, whole) = (begun.elapsed(), whole.contents());
    assert!(whole.contains_key("killed.safetensors.steps/000018.safetensors"));

    let random = Philox::new(0);
    let (mut killed, mut finished, mut torn, mut resumed) = (0, 0, 0, 0);
    while killed < kills() {
        // The cache of pictures is empty again.
        let desk = Desk::new();
        loop {
            let mut running = desk.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(life.mul_f32(random.uniform(killed + finished, 1)[0]));
            running.kill().unwrap();
            let status = running.wait().unwrap();
            if status.signal() != Some(9) {
                assert!(status.success(), "{status}");
                finished += 1;
                break;
            }
            killed += 1;
            torn += u32::from(!desk.half_written().is_empty());
            resumed += u32::from(desk.path(STATE).is_file());
            // Whatever bears its name is whole.
            for name in desk.files() {
                match whole.get(&name) {
                    Some(content) if name.ends_with(".safetensors") => assert!(desk.read(&name) == *content, "{name}"),
                    _ if name == STATE => drop(Checkpoint::open(&desk.path(&name)).unwrap()),
                    _ => {}
                }
            }
            if killed == kills() {
                break;
            }
        }
        // Whether there is a step left to do or none.
        desk.run(&line).result();
        assert_eq!(desk.half_written(), BTreeSet::new(), "after {killed} kills");
        let found = desk.contents();
        assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>(), "after {killed} kills");
        assert!(found == whole, "the bytes differ after {killed} kills");
    }
    println!(
        "{killed} kills in a life of {life:.1?}: {torn} left a file half written, {resumed} a state to go on from"
    );
}

#[test]
fn the_next_start_clears_what_a_killed_one_left_half_written() {
    let desk = Desk::new();
    let line = format!("{TRAIN} --method lora --steps 20 --out a.safetensors --resume");
    let left = [".triptych-a.part", "a.safetensors.state/.triptych-b.part", "a.safetensors.steps/.triptych-c.part"];
    // The file of a process that lives: it holds the lock.
    let alive = ".triptych-alive.part";
    desk.write(alive, "half");
    let lock = std::fs::File::open(desk.path(alive)).unwrap();
    lock.lock().unwrap();

    for name in &left {
        desk.write(name, "half");
    }
    assert_eq!(desk.half_written().len(), 4);
    let mut running = desk.start(&line);
    assert!(running.reaches(1));
    assert_eq!(desk.half_written(), [alive.to_owned()].into());
    running.kill();

    desk.run(&line).result();
    for name in &left {
        desk.write(name, "half");
    }
    assert_eq!(desk.run(&line).result()["steps"], 0, "it was finished");
    assert_eq!(desk.half_written(), [alive.to_owned()].into());
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
