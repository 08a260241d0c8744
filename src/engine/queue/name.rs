//! File names of the queue: `0010-robot.toml` is number 10, `robot`.

use std::path::Path;

use crate::engine::words::stem;

/// Between two numbers, so that an order can be put between others without renaming them.
pub const GAP: u32 = 10;

/// Numbers from here on are taken for part of a name, such as a date's.
const NUMBERS: u32 = 1_000_000;

/// Number and id; a name without a number is all id.
pub fn parse(path: &Path) -> (Option<u32>, String) {
    let stem = stem(path);
    let parts = stem.split_once('-').and_then(|(number, id)| Some((number.parse().ok()?, id)));
    match parts.filter(|(number, id)| *number < NUMBERS && !id.is_empty()) {
        Some((number, id)) => (Some(number), id.to_owned()),
        None => (None, stem),
    }
}

pub fn file(number: u32, id: &str) -> String {
    format!("{number:04}-{id}.toml")
}

/// A short name that every file system takes, made from a path.
pub fn id_of(out: &Path) -> String {
    let plain = |c: char| if c.is_alphanumeric() || c == '_' { c } else { '-' };
    let id: String = stem(out).to_lowercase().chars().map(plain).take(40).collect();
    let id = id.trim_matches('-');
    if id.is_empty() { "order".into() } else { id.to_owned() }
}

/// The next round number.
pub fn next(number: u32) -> u32 {
    (number / GAP + 1) * GAP
}
