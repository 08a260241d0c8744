//! Where the trigger token stands in a caption.
//!
//! In a caption `[trigger]` (ai-toolkit), `<sks>`, a bare `sks` (`DreamBooth`) and the token itself all become the
//! token. Where none occurs the token goes before the class word, else in front. Case does not matter, because
//! CLIP's tokenizer lowers it anyway.

use std::ops::Range;

use crate::engine::{Error, Result};

const STAND_INS: [&str; 3] = ["[trigger]", "<sks>", "sks"];

/// The new word and the known word it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// One printable word, such as `<sks>`.
    pub token: String,
    /// What the concept is an example of, such as `robot`; empty when nobody said.
    pub class_word: String,
}

impl Trigger {
    /// Refuses a token that a prompt could not hold as one word.
    pub fn new(token: &str, class_word: &str) -> Result<Self> {
        let problem = if token.is_empty() {
            "is empty"
        } else if token.contains(char::is_whitespace) {
            "has a space in it, so it would be several words"
        } else if token.escape_debug().to_string().contains("\\u{") || token.contains(char::is_control) {
            // The standard library tells printable characters from others only in its debug escapes.
            "has an invisible character in it, which nobody could type into a prompt"
        } else {
            return Ok(Self { token: token.to_owned(), class_word: class_word.trim().to_owned() });
        };
        Err(Error::usage(
            format!("The trigger token “{}” {problem}", token.escape_debug()),
            "Choose one new word in angle brackets, such as <sks> or <my-robot>",
        ))
    }
}

/// The training caption. `text` is the caption file's content; without one `template` is used, where `{token}` and
/// `{class}` are filled in.
pub fn caption(text: Option<&str>, template: &str, trigger: &Trigger) -> String {
    if let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) {
        return with_token(text, trigger);
    }
    let text = template.replace("{class}", &trigger.class_word).replace("{token}", "[trigger]");
    // Joined anew because an empty class word leaves two spaces.
    with_token(&text.split_whitespace().collect::<Vec<_>>().join(" "), trigger)
}

/// Whether `word` stands for a trigger: one of the usual stand-ins, or any `<word>`.
pub(super) fn stands_for_trigger(word: &str) -> bool {
    STAND_INS.iter().any(|known| known.eq_ignore_ascii_case(word)) || (word.starts_with('<') && word.ends_with('>'))
}

fn with_token(text: &str, trigger: &Trigger) -> String {
    let token = trigger.token.as_str();
    let [a, b, c] = STAND_INS;
    // The token before the stand-ins: it may contain one, as <my-sks> does.
    let known = [token, a, b, c];
    let mut out = String::new();
    let mut rest = text;
    while let Some(found) = find_word(rest, &known) {
        out.push_str(&rest[..found.start]);
        out.push_str(token);
        rest = &rest[found.end..];
    }
    if rest.len() < text.len() {
        return out + rest;
    }
    match find_word(text, &[&trigger.class_word]) {
        Some(class) => format!("{}{token} {}", &text[..class.start], &text[class.start..]),
        None => format!("{token} {text}").trim_end().to_owned(),
    }
}

/// The first place where one of `words` stands as a whole word.
fn find_word(text: &str, words: &[&str]) -> Option<Range<usize>> {
    text.char_indices().find_map(|(start, _)| {
        words.iter().filter(|word| !word.is_empty()).find_map(|word| {
            let end = start + folded_prefix(&text[start..], word)?;
            let splits = |at: usize| {
                let (before, after) = text.split_at(at);
                !(before.ends_with(letter) && after.starts_with(letter))
            };
            (splits(start) && splits(end)).then_some(start..end)
        })
    })
}

fn letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length in bytes of `word` at the start of `text`, whatever its case.
fn folded_prefix(text: &str, word: &str) -> Option<usize> {
    let mut rest = text.chars();
    for c in word.chars() {
        if !rest.next()?.to_lowercase().eq(c.to_lowercase()) {
            return None;
        }
    }
    Some(text.len() - rest.as_str().len())
}

/// The caption template that a model's README gives in backticks: the first `…{token}…` that says more than the
/// placeholder alone.
pub fn template_from_readme(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut rest = line;
        loop {
            let (inside, after) = rest.split_once('`')?.1.split_once('`')?;
            if inside.contains("{token}") && inside.trim() != "{token}" {
                return Some(inside.trim().to_owned());
            }
            rest = after;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "a 3d emoji of {token} {class}";

    fn robot(text: &str) -> String {
        caption(Some(text), TEMPLATE, &Trigger::new("<robo>", "robot").unwrap())
    }

    #[test]
    fn every_stand_in_becomes_the_token() {
        for text in ["a [trigger] walks", "a <sks> walks", "a sks walks", "a SKS walks", "a <Robo> walks"] {
            assert_eq!(robot(text), "a <robo> walks");
        }
        assert_eq!(robot("sks, then [trigger]; <sks>"), "<robo>, then <robo>; <robo>");
        assert_eq!(robot("sks-like, “sks”"), "<robo>-like, “<robo>”");
    }

    #[test]
    fn stand_ins_are_whole_words_only() {
        assert_eq!(robot("asks for husks_sks"), "<robo> asks for husks_sks");
        let bare = Trigger::new("ohwx", "man").unwrap();
        assert_eq!(caption(Some("an ohwx man, ohwxian"), TEMPLATE, &bare), "an ohwx man, ohwxian");
        assert_eq!(caption(Some("ohwxian"), TEMPLATE, &bare), "ohwx ohwxian");
    }

    #[test]
    fn a_token_that_contains_a_stand_in_stays_whole() {
        for token in ["<my-sks>", "sks-robot", "<sks>", "sks"] {
            let trigger = Trigger::new(token, "robot").unwrap();
            assert_eq!(caption(Some(&format!("a {token} robot")), TEMPLATE, &trigger), format!("a {token} robot"));
        }
    }

    #[test]
    fn without_a_stand_in_the_token_precedes_the_first_class_word_else_the_text() {
        assert_eq!(robot("A Robot and a robot"), "A <robo> Robot and a robot");
        assert_eq!(robot("robots in a row"), "<robo> robots in a row");
        assert_eq!(robot("  walking\n"), "<robo> walking");
        let face = Trigger::new("<f>", "ägyptian CAT face").unwrap();
        assert_eq!(caption(Some("one Ägyptian cat FACE"), TEMPLATE, &face), "one <f> Ägyptian cat FACE");
        let nameless = Trigger::new("<f>", " ").unwrap();
        assert_eq!(caption(Some("a face"), TEMPLATE, &nameless), "<f> a face");
    }

    #[test]
    fn no_text_means_the_template() {
        let trigger = Trigger::new("<robo>", "robot").unwrap();
        assert_eq!(caption(None, TEMPLATE, &trigger), "a 3d emoji of <robo> robot");
        assert_eq!(caption(Some(" \n"), TEMPLATE, &trigger), "a 3d emoji of <robo> robot");
        assert_eq!(caption(None, "a photo of a {class}", &trigger), "a photo of a <robo> robot");
        assert_eq!(caption(None, "", &trigger), "<robo>");
        let nameless = Trigger::new("<{class}>", "").unwrap();
        assert_eq!(caption(None, "{class} of {token} {class} in snow", &nameless), "of <{class}> in snow");
    }

    #[test]
    fn tokens_are_one_printable_word() {
        for good in ["<sks>", "ohwx", "<my-robot_2>", "<ロボット>", "<हिन्दी>", "it's", "a\\b"] {
            assert!(Trigger::new(good, "robot").is_ok(), "{good}");
        }
        for bad in ["", "two words", "<a\u{a0}b>", "tab\t", "\u{200b}", "<a\u{202e}b>", "nul\0", "bell\u{7}"] {
            let error = Trigger::new(bad, "robot").unwrap_err();
            assert!(error.what.starts_with("The trigger token “") && error.advice.contains("<sks>"), "{error}");
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn the_template_comes_from_backticks_in_the_readme() {
        let readme =
            "Use `{style}`.\n`{token}` is the new word. A concept: `a 3d emoji of {token} {class}`. `{token} b`";
        assert_eq!(template_from_readme(readme).as_deref(), Some(TEMPLATE));
        for none in ["", "no template {token}", "unclosed `a {token}", "```\n{token} x\n```", "`{token}`"] {
            assert_eq!(template_from_readme(none), None, "{none}");
        }
    }
}
