//! Python's pickles (.ckpt, .pt, .pth, .bin), which are told apart and never opened.

use std::path::Path;

use crate::engine::Error;

const ENDINGS: [&str; 5] = ["ckpt", "pt", "pth", "bin", "pkl"];

/// PyTorch writes a zip of pickles; before 1.6 it wrote bare ones, of protocol 2 or later.
pub fn is_pickle(content: &[u8]) -> bool {
    content.starts_with(b"PK\x03\x04") || matches!(content, [0x80, 2..=5, ..]) && !is_header(content)
}

/// A safetensors header of 640 bytes begins like a pickle, and `{` follows its length.
fn is_header(content: &[u8]) -> bool {
    content.get(8) == Some(&b'{')
}

/// Whether a file is called what pickles are called.
pub fn is_named_so(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

pub fn refusal() -> Error {
    Error::new(
        "This is a pickle (as .ckpt, .pt and .bin files are), which can run any code on your computer when it is opened",
        "It was not opened: convert it to safetensors, or fetch the model as .safetensors",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_are_told_from_headers_that_begin_alike() {
        assert!(is_pickle(b"PK\x03\x04 archive/data.pkl"));
        assert!(is_pickle(b"\x80\x02}q\x00."));
        let header = [&640_u64.to_le_bytes()[..], b"{\"a\":", &[b' '; 700]].concat();
        assert!(!is_pickle(&header) && !is_pickle(b"") && !is_pickle(b"{}"));
        assert!(is_named_so(Path::new("a/model.CKPT")) && !is_named_so(Path::new("model.safetensors")));
    }
}
