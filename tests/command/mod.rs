//! The program as a user runs it: a folder of its own, commands as lines, exit codes and what was printed.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot prepare its files has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::safetensors::{self, Checkpoint, Tensor};

/// The smallest training that is a real one: a few steps take less than a second.
pub const TRAIN: &str =
    "train --concept robot --class robot --batch 1 --set rank=2 --set prior=0 --set targets=keys_values";

/// A folder to work in, with three pictures of a concept in `robot/`.
pub struct Desk(TempDir);

/// A finished command.
#[derive(Debug)]
pub struct Done {
    pub line: String,
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Desk {
    pub fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(desk.path("robot")).unwrap();
        for name in ["idle.png", "idle.txt", "jump.png", "jump.txt", "walk0.png", "walk0.txt"] {
            std::fs::copy(tree("assets/concepts/kenney_robot").join(name), desk.path("robot").join(name)).unwrap();
        }
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn lora(&self, name: &str) -> LoraFile {
        LoraFile::open(&self.path(name)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Copies a folder of the repository here.
    pub fn copy(&self, from: &str, to: &str) {
        copy(&tree(from), &self.path(to));
    }

    /// Rewrites a safetensors file with other tensors.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let (mut tensors, metadata) = tensors(&self.path(name));
        change(&mut tensors);
        safetensors::save(&self.path(name), &tensors, &metadata).unwrap();
    }

    /// Every file below, the program's cache left out.
    pub fn files(&self) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        list(self.0.path(), self.0.path(), &mut files);
        files.retain(|name| !name.starts_with("cache"));
        files
    }

    /// [`Desk::files`] with what is in them.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        self.files().into_iter().map(|name| (name.clone(), self.read(&name))).collect()
    }

    /// Files that were never finished, those in the program's cache among them.
    pub fn half_written(&self) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        list(self.0.path(), self.0.path(), &mut files);
        files.retain(|name| name.ends_with(".part"));
        files
    }

    /// `train --token '<my robot>'`: words, with quotes around those that hold spaces. Runs on the CPU.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_triptych"));
        for (i, part) in line.split('\'').enumerate() {
            match i % 2 {
                0 => command.args(part.split_whitespace()),
                _ => command.arg(part),
            };
        }
        command.args(["--device", "cpu"]).current_dir(&self.0).stdin(Stdio::null());
        // What computing left behind on this machine must not decide a test.
        command.env("XDG_CACHE_HOME", self.path("cache")).env("HOME", self.path("cache")).env_remove("TRIPTYCH_LOG");
        command
    }

    /// Runs a command with --json.
    pub fn run(&self, line: &str) -> Done {
        self.finish(line, &["--json"])
    }

    /// What a command that has to fail says. Whatever was there is there unchanged, and nothing else but a project that a
    /// training has opened.
    pub fn refuses(&self, line: &str) -> String {
        let before = self.contents();
        let failure = self.run(line).failure();
        let after = self.contents();
        let mut changed: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        changed.retain(|name| before.get(*name) != after.get(*name));
        changed.retain(|name| before.contains_key(*name) || *name != "triptych.toml" && !name.ends_with(".toml.lock"));
        assert_eq!(changed, BTreeSet::new(), "{line} failed and changed files: {failure}");
        failure
    }

    /// Runs a command that speaks to people.
    pub fn say(&self, line: &str) -> Done {
        self.finish(line, &[])
    }

    fn finish(&self, line: &str, more: &[&str]) -> Done {
        let output = self.command(line).args(more).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(!stderr.contains("panicked"), "{line}\n{stderr}");
        Done { line: line.to_owned(), code: output.status.code(), stdout, stderr }
    }

    /// Starts a command with --json and leaves it running.
    pub fn start(&self, line: &str) -> Running {
        let mut child = self.command(line).arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }
}

/// A command under way.
pub struct Running {
    pub child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Reads on until step `wanted` has been reported; false if the command ended before.
    pub fn reaches(&mut self, wanted: u64) -> bool {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).unwrap() == 0 {
                return false;
            }
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["step"].as_u64().is_some_and(|step| step >= wanted) {
                return true;
            }
        }
    }
}

#[cfg(unix)]
impl Running {
    /// SIGKILL: no time to do anything.
    pub fn kill(mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }

    /// Ctrl+C.
    pub fn interrupt(mut self) -> ExitStatus {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap()
    }
}

impl Done {
    /// Each line of stdout; every one must be a JSON object.
    pub fn lines(&self) -> Vec<Value> {
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => value,
            other => panic!("{}: not one JSON object: {line} ({other:?})", self.line),
        };
        self.stdout.lines().map(parse).collect()
    }

    /// The result of a command that succeeded.
    pub fn result(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}\n{}{}", self.line, self.stdout, self.stderr);
        self.lines().pop().unwrap_or_else(|| panic!("{}: no result", self.line))
    }

    /// `what`, `do` and `path` of a command that failed with a sentence, in one text.
    pub fn failure(&self) -> String {
        assert_eq!(self.code, Some(1), "{}\n{}{}", self.line, self.stdout, self.stderr);
        let last = self.lines().pop().unwrap_or_else(|| panic!("{}: nothing on stdout", self.line));
        let error = last["error"].as_object().unwrap_or_else(|| panic!("{}: {last}", self.line));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["do", "path", "what"], "{}", self.line);
        let [what, advice] = ["what", "do"].map(|key| error[key].as_str().unwrap());
        assert!(!what.is_empty() && !advice.is_empty(), "{}: {last}", self.line);
        assert!(self.stderr.contains(what) && self.stderr.contains(advice), "{}\n{}", self.line, self.stderr);
        format!("{what}. {advice}. {}", error["path"].as_str().unwrap_or_default())
    }

    /// Texts of all notes and warnings.
    pub fn notes(&self) -> String {
        self.lines().iter().filter_map(|line| line["text"].as_str()).map(|text| format!("{text}\n")).collect()
    }
}

/// A path of the repository.
pub fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// All tensors of a file, and its metadata.
pub fn tensors(path: &Path) -> (BTreeMap<String, Tensor>, BTreeMap<String, String>) {
    let file = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    let tensor = |name: &String| {
        let entry = &file.entries()[name];
        (name.clone(), Tensor::new(entry.dtype, &entry.shape, &file.f32(name).unwrap()))
    };
    (file.entries().keys().map(tensor).collect(), file.metadata().clone())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy(&from, &to) } else { std::fs::copy(&from, &to).map(drop).unwrap() }
    }
}

fn list(folder: &Path, root: &Path, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => list(&path, root, files),
            path => {
                files.insert(path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"));
            }
        }
    }
}
