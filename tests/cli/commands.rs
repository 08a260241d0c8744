//! What holds for every command: exit codes, sentences, JSON, files that stay.

use std::process::Stdio;

use triptych::engine::io::lora_file::LoraFile;

use crate::command::{Desk, TRAIN, tensors};
use crate::{SAMPLE, train};

#[test]
fn a_wrong_command_exits_2_names_the_right_words_and_writes_nothing() {
    let desk = Desk::new();
    let train = format!("{TRAIN} --out x.safetensors");
    let cases: &[(&str, &str)] = &[
        ("brew", "brew"),
        ("methods paintings", "samplers"),
        ("inspect", "PATH"),
        ("sample --prompt x --out x.png --nonsense", "--nonsense"),
        ("sample --prompt x", "--out"),
        ("methods --device toaster", "Choose auto, cpu, gpu or gpu:N"),
        (&format!("{SAMPLE} --out x.png --sampler turbo"), "dpmpp_2m_karras, dpmpp_2m, unipc"),
        ("sample --prompt x --out x.png --steps 0", "Choose 1 to 999 steps"),
        (&format!("{SAMPLE} --out x.png --size 64"), "such as 512x768"),
        (&format!("{SAMPLE} --out x.png --size 63x64"), "multiples of 4"),
        (&format!("{SAMPLE} --out x.png --size 99999999996x99999999996"), "too large"),
        (&format!("{SAMPLE} --out x.png --count 0"), "a count from 1 to 1000"),
        (&format!("{SAMPLE} --out x.png --cfg nan"), "The guidance is not a number"),
        (&format!("{SAMPLE} --out x.png --seed first"), "--seed"),
        (&format!("{SAMPLE} --out x.png --adapter :0.5"), "FILE:strength"),
        (&format!("{train} --method dreambooth"), "Choose one of orthogonal, lora"),
        (&format!("{train} --set colour=red"), "Choose one of rank, alpha, basis"),
        (&format!("{train} --method lora --set basis=slots"), "rank_stabilised"),
        (&format!("{train} --set rank"), "field=value"),
        (&format!("{train} --set rank=-1"), "a whole number from 0 to 1024"),
        (&format!("{train} --set schedule=never"), "one of linear, cosine, constant"),
        (&format!("{train} --set flip=perhaps"), "true or false"),
        (&format!("{train} --set min_snr=NaN"), "a number from 0 to 100"),
        (&format!("{train} --steps 0"), "a whole number from 1"),
        (&format!("{train} --lr fast"), "lr cannot be “fast”"),
        (&format!("{train} --set targets=elbows"), "matches no layer"),
        (&format!("{train} --set background=red"), "six hexadecimal digits"),
        (&format!("{train} --set resolution=65"), "multiple of 16"),
        (&format!("{train} --set resolution=4096"), "at most 720"),
        (&format!("{train} --token 'two words'"), "several words"),
        ("merge --out x.safetensors", "F[:strength"),
        ("merge a.safetensors --method stew --out x.safetensors", "Choose one of sum"),
        ("merge a.safetensors --set normalise=loud --out x.safetensors", "one of off, whole, layer"),
        ("overlap a.safetensors", "2"),
    ];
    let before = desk.files();
    for (line, words) in cases {
        let done = desk.say(line);
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.stderr.contains(words) && done.stdout.is_empty(), "{words}: {done:?}");
        assert_eq!(desk.files(), before, "{line}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_window_without_a_display_says_what_works_without_one() {
    let desk = Desk::new();
    let mut command = desk.command("");
    for display in ["DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET"] {
        command.env_remove(display);
    }
    let output = command.output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No window could be opened") && said.contains("triptych demo"), "{said}");
    assert!(!said.contains(".rs:"), "{said}");
}

#[test]
fn what_is_not_there_or_something_else_exits_1_with_a_sentence() {
    let desk = Desk::new();
    desk.write("prose.txt", "It was a dark and stormy night; the rain fell in torrents.");
    desk.write("broken.toml", "rank = = 2");
    desk.write("nested.toml", "[rank]\nvalue = 2");
    let picture = "robot/idle.png";
    let train = format!("{TRAIN} --out x.safetensors");
    let cases: &[(&str, &str, &str)] = &[
        ("inspect nowhere", "There is nothing here", "nowhere"),
        ("inspect robot/idle.png", "not a whole safetensors file", picture),
        (&format!("{SAMPLE} --out x.png --model nowhere"), "There is no model here", "nowhere"),
        (&format!("{SAMPLE} --out x.png --model {picture}"), "not a whole safetensors file", picture),
        (&format!("{SAMPLE} --out x.png --model robot"), "This is not a model that is known here", "robot"),
        (&format!("{SAMPLE} --out x.png --adapter nowhere:0.5"), "Could not open", "nowhere"),
        (&format!("{SAMPLE} --out x.png --adapter robot"), "This is a folder", "robot"),
        (&format!("{SAMPLE} --out x.png --latents nowhere"), "Could not open", "nowhere"),
        (&format!("{SAMPLE} --out robot"), "The output is a folder", "robot"),
        ("train --concept nowhere --out x.safetensors", "There is no such concept folder", "nowhere"),
        (&format!("train --concept {picture} --out x.safetensors"), "A concept is a folder", picture),
        (&format!("{train} --config nowhere"), "Could not read", "nowhere"),
        (&format!("{train} --config broken.toml"), "cannot be read", "broken.toml"),
        (&format!("{train} --config nested.toml"), "rank is not a plain value", "nested.toml"),
        (&format!("{train} --project prose.txt"), "The project cannot be read", "prose.txt"),
        (&format!("{TRAIN} --method lora --out robot"), "The output is a folder", "robot"),
        ("merge nowhere --out x.safetensors", "Could not open", "nowhere"),
        ("spectrum prose.txt", "not a whole safetensors file", "prose.txt"),
        ("overlap prose.txt nowhere", "not a whole safetensors file", "prose.txt"),
    ];
    let before = desk.files();
    for (line, words, path) in cases {
        let failure = desk.run(line).failure();
        assert!(failure.contains(words) && failure.ends_with(path), "{line}\n{failure}");
        let prose = desk.say(line);
        assert_eq!((prose.code, prose.stdout.as_str()), (Some(1), ""), "{line}");
        assert!(prose.stderr.contains(words), "{prose:?}");
    }
    assert_eq!(desk.files(), before, "a failed command left files");
}

#[test]
fn json_is_one_object_a_line_and_the_result_is_the_last() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    train(&desk, "b", "").result();
    for line in [
        "methods",
        "inspect starter",
        "spectrum a.safetensors",
        "overlap a.safetensors b.safetensors",
        "merge a.safetensors b.safetensors --out both.safetensors",
        &format!("{SAMPLE} --out a.png"),
        &format!("{TRAIN} --steps 3 --out c.safetensors"),
    ] {
        let done = desk.run(line);
        let (result, lines) = (done.result(), done.lines());
        assert!(result["event"].is_null(), "{line}: the last line is {result}");
        assert!(lines[..lines.len() - 1].iter().all(|line| line["event"].is_string()), "{done:?}");
        let prose = desk.say(line);
        assert!(prose.code == Some(0) && !prose.stdout.trim_start().starts_with('{'), "{prose:?}");
    }
    let steps: Vec<_> = desk.run(&format!("{TRAIN} --steps 3 --out c.safetensors")).lines();
    let steps: Vec<_> = steps.iter().filter(|line| line["event"] == "step").map(|line| line["step"].clone()).collect();
    assert_eq!(steps, [1, 2, 3]);
}

#[test]
fn nobody_reading_the_result_is_no_fault() {
    let desk = Desk::new();
    for line in ["methods", &format!("{TRAIN} --steps 2 --out a.safetensors --json")] {
        let mut child = desk.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !stderr.contains("panicked"), "{line}: {stderr}");
    }
    assert!(desk.path("a.safetensors").is_file());
}

#[test]
fn what_was_at_out_stays_when_a_command_fails() {
    let desk = Desk::new();
    train(&desk, "a", "").result();
    desk.edit("a.safetensors", |tensors| {
        tensors.remove("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight").unwrap();
    });
    for name in ["keep.safetensors", "keep.png"] {
        desk.write(name, "what was there before");
    }
    for line in [
        &format!("{TRAIN} --steps 2 --set rank=9 --out keep.safetensors"),
        "train --concept nowhere --out keep.safetensors",
        "merge a.safetensors --out keep.safetensors",
        &format!("{SAMPLE} --adapter a.safetensors --out keep.png --dump keep.safetensors"),
        &format!("{SAMPLE} --cfg 1e39 --out keep.png --dump keep.safetensors"),
    ] {
        desk.run(line).failure();
        for name in ["keep.safetensors", "keep.png"] {
            assert_eq!(desk.read(name), b"what was there before", "{line}");
        }
    }
    // A command that succeeds replaces it by the whole new file.
    desk.run(&format!("{TRAIN} --steps 2 --out keep.safetensors")).result();
    assert!(
        LoraFile::open(&desk.path("keep.safetensors")).is_ok() && !tensors(&desk.path("keep.safetensors")).0.is_empty()
    );
}
