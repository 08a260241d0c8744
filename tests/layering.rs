//! Who may use whom. A file may use the layers below its own and the rooms beside it, never a room above; two rooms of
//! one layer never use each other both ways; two methods of one folder never use each other at all.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The rooms of `src/engine`, lowest layer first. A new room gets its place here, or its files fail by name.
const LAYERS: &[&[&str]] = &[
    &["cache", "error", "event", "field", "pages", "random", "words"],
    &["device", "tuning"],
    &["ops", "io", "contact_sheet"],
    &["model"],
    &["adapter", "concept", "diffusion", "prepare", "similarity", "spectrum"],
    &["train", "merge", "parameters", "preview", "export", "convert", "project", "vision"],
    &["session", "inspect", "doctor"],
    &["queue"],
];

/// Above the engine: these may use all of it, and it may use none of them.
const FRONTS: &[&str] = &["cli", "ui"];

/// Folders of methods: each file that declares a registry row stands alone.
const METHOD_FOLDERS: &[&str] = &["adapter", "merge"];

const WINDOW_CRATES: &[&str] = &["egui", "egui_plot", "egui_tiles", "egui_wgpu", "eframe", "rfd"];

/// In two pieces, or this file would name itself.
const DEFAULT_DEVICE: &str = concat!("Device", "::default");

struct Source {
    /// From the repository's root, with `/`.
    path: String,
    /// Without comments.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
        Self { path: path.into(), code }
    }

    /// `src/engine/adapter/lora.rs` is `["adapter", "lora"]`, `src/engine/mod.rs` is `[]`; none outside the engine.
    fn module(&self) -> Option<Vec<&str>> {
        let mut module: Vec<&str> = self.path.strip_prefix("src/engine/")?.strip_suffix(".rs")?.split('/').collect();
        module.pop_if(|last| *last == "mod");
        Some(module)
    }

    fn is_method(&self) -> bool {
        let row = |line: &str| {
            let kind = line.split_once(": ").and_then(|(_, rest)| rest.split_once(" ="));
            line.trim_start().starts_with("pub const ") && kind.is_some_and(|(kind, _)| kind.ends_with("Method"))
        };
        let in_folder = self.module().is_some_and(|m| m.len() == 2 && METHOD_FOLDERS.contains(&m[0]));
        in_folder && self.code.lines().any(row)
    }

    /// Every path into the engine that the code names, from the engine's root: `["adapter", "basis", "Basis"]`.
    fn uses(&self) -> Vec<Vec<String>> {
        let mut uses = Vec::new();
        for (start, found) in self.code.match_indices("crate::engine::") {
            expand(&self.code[start + found.len()..], &[], &mut uses);
        }
        let module = self.module().unwrap_or_default();
        for (start, _) in self.code.match_indices("super::").filter(|&(i, _)| !self.code[..i].ends_with("super::")) {
            let rest = self.code[start..].trim_start_matches("super::");
            let ups = (self.code[start..].len() - rest.len()) / "super::".len();
            let base: Vec<String> = module.iter().rev().skip(ups).rev().map(|&part| part.to_owned()).collect();
            // Inside a nested module the count is off, so a word that is no room is taken for something local.
            let mut found = Vec::new();
            expand(rest, &base, &mut found);
            uses.extend(found.into_iter().filter(|path| layer(&path[0]).is_some()));
        }
        uses
    }
}

/// `a::{b, c::D}` as `[a, b]` and `[a, c, D]`. Gives back what follows.
fn expand<'a>(text: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.is_empty() && !rest.starts_with('}') {
            rest = expand(rest, prefix, paths);
            // Past "as Name" and the comma.
            rest = rest.find([',', '}']).map_or("", |end| rest[end..].trim_start_matches(',').trim_start());
        }
        return rest.strip_prefix('}').unwrap_or("");
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut path = prefix.to_vec();
    path.extend((end > 0).then(|| text[..end].to_owned()));
    match text[end..].strip_prefix("::") {
        Some(rest) if end > 0 => expand(rest, &path, paths),
        _ => {
            paths.extend((!path.is_empty()).then_some(path));
            &text[end..]
        }
    }
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn breaches(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut beside = BTreeSet::new();
    for source in sources {
        let path = &source.path;
        if source.code.contains(DEFAULT_DEVICE) {
            breaches.push(format!("{path} calls {DEFAULT_DEVICE}: take a &Device"));
        }
        let Some(module) = source.module() else {
            if !outside_engine(path) {
                breaches.push(format!("{path} is at an unknown place: add its folder to FRONTS, or move it"));
            }
            continue;
        };
        for word in words(&source.code).filter(|word| WINDOW_CRATES.contains(word)) {
            breaches.push(format!("{path} uses {word}: the engine knows no window"));
        }
        for front in FRONTS.iter().filter(|front| source.code.contains(&format!("crate::{front}"))) {
            breaches.push(format!("{path} uses crate::{front}: the engine knows no front end"));
        }
        let Some(&room) = module.first() else { continue };
        let Some(own) = layer(room) else {
            breaches.push(format!("{path} is at an unknown place: add “{room}” to LAYERS"));
            continue;
        };
        for used in source.uses() {
            let (other, full) = (&used[0], used.join("::"));
            if other == room {
                let one = sources.iter().find(|s| used.len() > 1 && s.module().is_some_and(|m| m == used[..2]));
                if source.is_method() && one.is_some_and(|one| one.path != *path && one.is_method()) {
                    breaches.push(format!("{path} uses {full}: methods of one folder stand alone"));
                }
            } else if let Some(theirs) = layer(other) {
                if theirs > own {
                    breaches.push(format!("{path} uses {full}, which is above it"));
                } else if theirs == own {
                    beside.insert((room.to_owned(), other.clone()));
                }
            } else if !other.starts_with(char::is_uppercase) {
                breaches.push(format!("{path} uses {full}, which has no layer: add “{other}” to LAYERS"));
            }
        }
    }
    for (one, other) in &beside {
        if one < other && beside.contains(&(other.clone(), one.clone())) {
            breaches.push(format!("{one} and {other} use each other: put one of them below"));
        }
    }
    breaches
}

/// Front ends, tests, examples and benches.
fn outside_engine(path: &str) -> bool {
    match path.strip_prefix("src/") {
        Some(rest) => {
            let place = rest.split('/').next().unwrap_or_default().trim_end_matches(".rs");
            FRONTS.contains(&place) || ["lib.rs", "main.rs"].contains(&rest)
        }
        None => true,
    }
}

fn read(folder: &str, sources: &mut Vec<Source>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    for path in names.iter().map(|name| format!("{folder}/{name}")) {
        if root.join(&path).is_dir() {
            read(&path, sources);
        } else if path.ends_with(".rs") {
            sources.push(Source::new(&path, &fs::read_to_string(root.join(&path)).expect("a source file is text")));
        }
    }
}

#[test]
fn every_file_uses_only_what_is_below_it() {
    let mut sources = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        read(folder, &mut sources);
    }
    for folder in METHOD_FOLDERS {
        let rows = |source: &Source| source.is_method() && source.module().is_some_and(|m| m[0] == *folder);
        assert!(sources.iter().any(rows), "no registry row found in {folder}/: is_method no longer reads them");
    }
    let breaches = breaches(&sources);
    assert!(breaches.is_empty(), "\n  {}\n", breaches.join("\n  "));
}

#[test]
fn each_kind_of_breach_is_caught_and_nothing_else() {
    const ROW: &str = "pub const METHOD: Method = Method { name: \"x\" };";
    let caught = |files: &[(&str, &str)]| {
        breaches(&files.iter().map(|(path, text)| Source::new(path, text)).collect::<Vec<_>>())
    };
    let lora = ("src/engine/adapter/lora.rs", ROW);
    let cases: &[(&str, &str, &str)] = &[
        ("src/engine/io/a.rs", "use crate::engine::{\n    Error,\n    merge::{sum as s, ties},\n};", "merge::sum"),
        ("src/engine/model/a.rs", "fn f() { crate::engine::train::run::start() }", "train::run::start, which is above"),
        ("src/engine/model/mod.rs", "use super::session;", "session, which is above"),
        (
            "src/engine/adapter/oft.rs",
            &format!("use crate::engine::adapter::{{basis, lora::Lora}};\n{ROW}"),
            "stand alone",
        ),
        ("src/engine/adapter/oft.rs", &format!("use super::lora;\n{ROW}"), "stand alone"),
        ("src/engine/train/a.rs", "use egui::Ui;", "knows no window"),
        ("src/engine/train/a.rs", "use crate::ui::App;", "knows no front end"),
        ("src/cli/train.rs", concat!("let device = Device", "::default();"), "take a &Device"),
        ("tests/a.rs", concat!("x.unwrap_or_else(Device", "::default)"), "take a &Device"),
        ("src/engine/cellar/a.rs", "", "src/engine/cellar/a.rs is at an unknown place"),
        ("src/utils.rs", "", "src/utils.rs is at an unknown place"),
        ("src/engine/train/a.rs", "use crate::engine::cellar::Wine;", "add “cellar” to LAYERS"),
    ];
    for &(path, text, expected) in cases {
        let found = caught(&[lora, (path, text)]);
        assert!(found.iter().any(|breach| breach.contains(expected)), "{path}: {text}\n{found:?}");
    }
    let each_other = caught(&[
        ("src/engine/train/a.rs", "use crate::engine::merge::Recipe;"),
        ("src/engine/merge/b.rs", "use crate::engine::train::Config;"),
    ]);
    assert_eq!(each_other, ["merge and train use each other: put one of them below"]);
    let allowed = caught(&[
        lora,
        (
            "src/engine/adapter/oft.rs",
            &format!("// not egui\nuse crate::engine::adapter::basis::{{self, Basis}};\n{ROW}"),
        ),
        ("src/engine/adapter/basis.rs", "use crate::engine::{Error, Result};\nmod tests { use super::*; }"),
        ("src/engine/train/run.rs", "use super::step;\nuse crate::engine::adapter::lora::Lora;"),
        ("src/cli/train.rs", "use crate::engine::{session, train};"),
    ]);
    assert_eq!(allowed, [""; 0]);
}
