//! Numbers and names as people read them, in the window and on the command line.

use std::path::Path;

/// `8 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// `1 adapter`, `2 adapters`.
pub fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// `212 KB`, `1.4 GB`; what is there at all is at least `1 KB`.
pub fn bytes(bytes: u64) -> String {
    let x = bytes as f64;
    match bytes {
        0 => "0 KB".into(),
        1..1_000_000 => format!("{:.0} KB", (x / 1e3).max(1.0)),
        1_000_000..1_000_000_000 => format!("{:.1} MB", x / 1e6),
        _ => format!("{:.1} GB", x / 1e9),
    }
}

/// A file's name without its ending: what it is called where nobody gave it another name.
pub fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([7.6, 200.0, 7500.0].map(duration), ["8 s", "3 min 20 s", "2 h 05 min"]);
        assert_eq!([0, 7, 212_300].map(bytes), ["0 KB", "1 KB", "212 KB"]);
        assert_eq!([1_450_000, 1_400_000_000].map(bytes), ["1.4 MB", "1.4 GB"]);
        assert_eq!([0, 1, 2].map(|n| counted(n, "file")), ["0 files", "1 file", "2 files"]);
    }
}
