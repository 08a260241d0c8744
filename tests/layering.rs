//! Who may use whom. A file may use the layers below its own and the rooms beside it, never a room above; two rooms of
//! one layer never use each other both ways; two methods of one folder never use each other at all.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The rooms of `src/engine`, lowest layer first. A new room gets its place here, or its files fail by name.
const LAYERS: &[&[&str]] = &[
    &["error", "event", "field", "random"],
    &["device"],
    &["ops", "io", "contact_sheet"],
    &["model"],
    &["adapter", "concept", "diffusion", "similarity", "spectrum"],
    &["train", "merge", "preview", "export", "project", "vision"],
    &["session"],
];

/// Above the engine: these may use all of it, and it may use none of them.
const FRONTS: &[&str] = &["cli", "ui"];

/// Folders of methods: each file that declares a registry row stands alone.
const METHOD_FOLDERS: &[&str] = &["adapter", "merge"];

const WINDOW_CRATES: &[&str] = &["egui", "eframe", "rfd"];

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
        while !rest.trim_start().starts_with('}') && !rest.is_empty() {
            rest = expand(rest, prefix, paths).trim_start();
            rest = rest.strip_prefix(',').unwrap_or_else(|| rest.find([',', '}']).map_or("", |end| &rest[end..]));
        }
        return rest.trim_start().strip_prefix('}').unwrap_or("");
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
            let place = path.trim_end_matches(".rs").split('/').nth(1).unwrap_or_default();
            if path.starts_with("src/") && !FRONTS.contains(&place) && !["src/lib.rs", "src/main.rs"].contains(&&**path) {
                breaches.push(format!("{path} is at a place this test does not know: add it to FRONTS, or move it"));
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
            breaches.push(format!("{path} is in the room “{room}”, which has no layer: add it to LAYERS"));
            continue;
        };
        for used in source.uses() {
            let other = used[0].as_str();
            if other.starts_with(char::is_uppercase) || other == room {
                let sibling = |s: &&Source| used.len() > 1 && s.module().is_some_and(|m| m == used[..2]);
                if source.is_method() && sources.iter().find(sibling).is_some_and(|s| s.is_method() && s.path != *path) {
                    breaches.push(format!("{path} uses {}: methods of one folder stand alone", used.join("::")));
                }
                continue;
            }
            match layer(other) {
                None => breaches.push(format!("{path} uses “{other}”, which has no layer: add it to LAYERS")),
                Some(theirs) if theirs > own => {
                    breaches.push(format!("{path} uses {}, which is above {room}", used.join("::")));
                }
                Some(theirs) if theirs == own && beside.contains(&(other.to_owned(), room)) => {
                    breaches.push(format!("{path} uses {other}, which uses {room}: one of the two is below the other"));
                }
                Some(theirs) if theirs == own => drop(beside.insert((room.to_owned(), other_room(other)))),
                Some(_) => {}
            }
        }
    }
    breaches
}

/// The room's name as the table holds it.
fn other_room(name: &str) -> &'static str {
    LAYERS.iter().flat_map(|rooms| rooms.iter()).find(|room| **room == name).copied().unwrap_or_default()
}
