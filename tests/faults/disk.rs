//! Disks with no room left: the sentence names the file, nothing is overwritten, nothing stays half written.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use crate::command::{Desk, Done, TRAIN};

/// `command` run by a shell that has prepared something first.
fn within(script: &str, command: &Command) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{script}\nexec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("TRIPTYCH_LOG");
    shell.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null()).output().unwrap()
}

/// A command whose files may not grow beyond so many blocks of 512 bytes.
fn cramped(desk: &Desk, line: &str, blocks: usize) -> Done {
    // Ignored, the signal becomes an error of the write, as on a full disk.
    let script = format!("trap '' XFSZ\nulimit -f {blocks}");
    let output = within(&script, desk.command(line).arg("--json"));
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(!stderr.contains("panicked"), "{line}\n{stderr}");
    Done { line: line.to_owned(), code: output.status.code(), stdout, stderr }
}

#[test]
fn a_write_that_fails_leaves_what_was_there() {
    let desk = Desk::new();
    let train = format!("{TRAIN} --method lora --steps 2 --token");
    desk.run(&format!("{train} <a> --out a.safetensors")).result();
    desk.run("sample --steps 1 --prompt x --dump start.safetensors --out b.png").result();
    for name in ["out.safetensors", "out.png"] {
        desk.write(name, "an earlier file");
    }
    let add = TRAIN.replacen("train", "queue add --queue q", 1);
    let sample = "sample --steps 1 --prompt x";
    let cases = [
        (format!("{train} <b> --out out.safetensors"), 8, "out.safetensors"),
        (format!("{train} <b> --set save_every=1 --out out.safetensors"), 8, "state.safetensors"),
        (format!("{train} <b> --set keep_every=1 --out out.safetensors"), 8, "000001.safetensors"),
        (format!("{TRAIN} --steps 1 --project p.toml --out out.safetensors"), 0, "p.toml"),
        (format!("{sample} --out out.png"), 0, "out.png"),
        (format!("{sample} --dump out.safetensors --out b.png"), 64, "out.safetensors"),
        ("merge a.safetensors --out out.safetensors".into(), 8, "out.safetensors"),
        ("merge a.safetensors --into starter --out model".into(), 64, "model/tokenizer/merges.txt"),
        (format!("{add} --out later.safetensors"), 0, "q/0010-later.toml"),
    ];
    for (line, blocks, file) in cases {
        let before = desk.contents();
        let failure = cramped(&desk, &line, blocks).failure();
        assert!(failure.contains("Could not write: ") && failure.ends_with(file), "{line}: {failure}");
        assert!(failure.contains("nothing was overwritten"), "{line}: {failure}");
        assert_eq!(desk.half_written(), BTreeSet::new(), "{line}");
        let mut after = desk.contents();
        // Locks stay where they are: they hold nothing.
        after.retain(|name, content| before.contains_key(name) || !content.is_empty());
        assert!(after == before, "{line}: {:?}", after.keys().collect::<Vec<_>>());
    }
}

#[test]
fn with_room_again_a_run_goes_on_to_the_same_bytes() {
    let desk = Desk::new();
    let line = format!("{TRAIN} --steps 6 --set save_every=2 --out a.safetensors");
    desk.run(&line.replace("--out ", "--out whole/")).result();
    // Not even the first state finds room.
    let resumed = format!("{line} --resume");
    let failure = cramped(&desk, &resumed, 8).failure();
    assert!(failure.ends_with("state.safetensors"), "{failure}");
    assert!(!desk.path("a.safetensors").exists());
    desk.run(&resumed).result();
    assert!(desk.read("a.safetensors") == desk.read("whole/a.safetensors"), "the bytes differ");
    assert_eq!(desk.half_written(), BTreeSet::new());
}

/// A real one, where this account may mount something.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_called_one() {
    let mounts = "unshare --user --map-root-user --mount mount -t tmpfs none /tmp";
    if !Command::new("sh").args(["-c", mounts]).stderr(Stdio::null()).status().unwrap().success() {
        println!("skipped: no mounts of one's own");
        return;
    }
    let desk = Desk::new();
    std::fs::create_dir(desk.path("small")).unwrap();
    let line = format!("{TRAIN} --method lora --steps 2 --out small/a.safetensors");
    let command = desk.command(&line);
    let inside = "mount -t tmpfs -o size=16k none small && echo 'an earlier file' > small/a.safetensors || exit 9
        \"$0\" \"$@\"; code=$?
        ls -A small; cat small/a.safetensors; exit $code";
    let script =
        format!("exec unshare --user --map-root-user --mount sh -c '{}' \"$0\" \"$@\"", inside.replace('\'', "'\\''"));
    let output = within(&script, &command);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("Could not write: No space left on device"), "{stderr}");
    assert!(stderr.contains("Free some disk space and try again; nothing was overwritten"), "{stderr}");
    assert!(stdout.ends_with("a.safetensors\nan earlier file\n"), "{stdout}");
    assert!(!stdout.contains(".part"), "{stdout}");
}

/// What was asked for is lost, unlike where nobody reads it.
#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let desk = Desk::new();
    for more in ["", "--json"] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = desk.command("methods").args(more.split_whitespace()).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("The result could not be printed") && !stderr.contains("panicked"), "{stderr}");
    }
}
