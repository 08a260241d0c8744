//! A1111's prompt language (`modules/prompt_parser.py`, `parse_prompt_attention`).
//!
//! `(word)` weighs 1.1 times as much, `[word]` 1/1.1 times, `(word:1.3)` 1.3 times; they nest. `\(`, `\)`, `\[`, `\]` and
//! `\\` are the characters themselves, and `BREAK` starts a new chunk. What does not parse is text: a bracket that is never
//! closed weighs everything after it, one that was never opened is a character. Prompt editing (`[a:b:0.5]`, `[a|b]`) and
//! `AND` are not part of it: they are read as the words they are written with.

use crate::engine::model::tokenizer::{Piece, Word, pieces};

/// What round brackets multiply by; square ones divide by it.
pub const BRACKET: f64 = 1.1;
const BREAK: &str = "BREAK";

/// A stretch of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Span {
    Text(String, f64),
    /// An adapter's word by its index, whatever characters it has in it.
    Word(usize, f64),
    /// What follows starts a new chunk.
    Break,
}

/// The prompt with the weights of its parts. Neighbours of one weight are one text, as they were typed: they are read
/// together.
pub fn spans(text: &str, words: &[Word]) -> Vec<Span> {
    let mut reader = Reader::default();
    for piece in pieces(text, words) {
        match piece {
            Piece::Text(text) => reader.read(text),
            Piece::Word(word) => reader.spans.push(Span::Word(word, 1.0)),
        }
    }
    reader.finish()
}

#[derive(Default)]
struct Reader {
    spans: Vec<Span>,
    /// Where the open brackets' contents begin.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Reader {
    fn read(&mut self, text: &str) {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let after = &rest[first.len_utf8()..];
            rest = match first {
                '\\' => {
                    // A backslash before anything else vanishes.
                    let escaped = after.chars().next().filter(|c| "()[]\\".contains(*c));
                    self.text(&after[..escaped.map_or(0, char::len_utf8)]);
                    &after[escaped.map_or(0, char::len_utf8)..]
                }
                '(' => {
                    self.round.push(self.spans.len());
                    after
                }
                '[' => {
                    self.square.push(self.spans.len());
                    after
                }
                ':' if let (Some((weight, after)), Some(&start)) = (closing_weight(after), self.round.last()) => {
                    self.round.pop();
                    self.multiply(start, weight);
                    after
                }
                ')' if let Some(start) = self.round.pop() => {
                    self.multiply(start, BRACKET);
                    after
                }
                ']' if let Some(start) = self.square.pop() => {
                    self.multiply(start, 1.0 / BRACKET);
                    after
                }
                ':' | ')' | ']' => {
                    self.text(&rest[..1]);
                    after
                }
                _ => {
                    let end = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                    self.plain(&rest[..end]);
                    &rest[end..]
                }
            };
        }
    }

    /// Text that may hold breaks; the spaces around one go with it.
    fn plain(&mut self, mut text: &str) {
        while let Some(at) = find_break(text) {
            self.text(text[..at].trim_end());
            self.spans.push(Span::Break);
            text = text[at + BREAK.len()..].trim_start();
        }
        self.text(text);
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.spans.push(Span::Text(text.to_owned(), 1.0));
        }
    }

    fn multiply(&mut self, start: usize, by: f64) {
        for span in &mut self.spans[start..] {
            match span {
                Span::Text(_, weight) | Span::Word(_, weight) => *weight *= by,
                // A1111 weighs it too, and then takes it for a word.
                Span::Break => {}
            }
        }
    }

    fn finish(mut self) -> Vec<Span> {
        for start in std::mem::take(&mut self.round) {
            self.multiply(start, BRACKET);
        }
        for start in std::mem::take(&mut self.square) {
            self.multiply(start, 1.0 / BRACKET);
        }
        let mut merged: Vec<Span> = Vec::new();
        for span in self.spans {
            match (merged.last_mut(), span) {
                #[expect(clippy::float_cmp, reason = "the same product, not a measured number")]
                (Some(Span::Text(text, weight)), Span::Text(more, other)) if *weight == other => text.push_str(&more),
                (_, span) => merged.push(span),
            }
        }
        merged
    }
}

/// `1.3)` and what follows it; spaces may stand around the number.
pub fn closing_weight(text: &str) -> Option<(f64, &str)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c))?;
    let after = text[end..].trim_start().strip_prefix(')')?;
    let weight = text[..end].parse::<f64>().ok().filter(|weight| weight.is_finite())?;
    Some((weight, after))
}

/// A caption as a prompt that says the same, letter by letter.
pub fn literal(text: &str) -> String {
    text.chars().flat_map(|c| r"\()[]".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

/// The first `BREAK` that is a word of its own.
fn find_break(text: &str) -> Option<usize> {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(BREAK)
        .map(|(at, _)| at)
        .find(|&at| !text[..at].ends_with(letter) && !text[at + BREAK.len()..].starts_with(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str, weight: f64) -> Span {
        Span::Text(text.into(), weight)
    }

    #[track_caller]
    fn reads(prompt: &str, expected: &[Span]) {
        assert_eq!(spans(prompt, &[]), expected, "{prompt}");
    }

    /// The table of the function's own documentation.
    #[test]
    fn a1111s_examples() {
        reads("normal text", &[text("normal text", 1.0)]);
        reads("an (important) word", &[text("an ", 1.0), text("important", 1.1), text(" word", 1.0)]);
        reads("(unbalanced", &[text("unbalanced", 1.1)]);
        reads("\\(literal\\]", &[text("(literal]", 1.0)]);
        reads("(unnecessary)(parens)", &[text("unnecessaryparens", 1.1)]);
        reads(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                text("a ", 1.0),
                text("house", 1.573_000_000_000_000_4),
                text(" ", 1.1),
                text("on", 1.0),
                text(" a ", 1.1),
                text("hill", 0.55),
                text(", sun, ", 1.1),
                text("sky", 1.464_100_000_000_000_6),
                text(".", 1.1),
            ],
        );
    }

    #[test]
    fn what_does_not_parse_is_text() {
        reads("", &[]);
        reads("a) b] c", &[text("a) b] c", 1.0)]);
        reads("ratio 1:2, (a:b)", &[text("ratio 1:2, ", 1.0), text("a:b", 1.1)]);
        reads("a:1.5) b", &[text("a:1.5) b", 1.0)]);
        reads("(a:1.2.3)", &[text("a:1.2.3", 1.1)]);
        reads("(a:1e3)", &[text("a:1e3", 1.1)]);
        reads("(a:inf) (b:)", &[text("a:inf", 1.1), text(" ", 1.0), text("b:", 1.1)]);
        reads("back\\slash\\\\", &[text("backslash\\", 1.0)]);
        reads("[x", &[text("x", 1.0 / 1.1)]);
        reads("(:)", &[text(":", 1.1)]);
        reads("(a:+.5)(b:-1.)", &[text("a", 0.5), text("b", -1.0)]);
        reads("(ü:2)é", &[text("ü", 2.0), text("é", 1.0)]);
    }

    #[test]
    fn a_break_is_a_word_of_its_own_and_takes_the_spaces_around_it() {
        reads("a  BREAK\nb", &[text("a", 1.0), Span::Break, text("b", 1.0)]);
        reads("BREAKFAST, BREAK_ aBREAK break", &[text("BREAKFAST, BREAK_ aBREAK break", 1.0)]);
        reads("a,BREAK BREAK", &[text("a,", 1.0), Span::Break, Span::Break]);
        reads("(a BREAK b:2)", &[text("a", 2.0), Span::Break, text("b", 2.0)]);
    }

    #[test]
    fn words_of_adapters_are_weighed_and_never_read_as_brackets() {
        let words = [("<sks>", 1), ("(o:2)", 3)].map(|(text, vectors)| Word { text: text.into(), vectors });
        let expected = [
            text("a ", 1.0),
            text("fine ", 1.5),
            Span::Word(0, 1.5),
            text(" and ", 1.0),
            Span::Word(1, 1.0 / 1.1),
            text("!", 1.0),
        ];
        assert_eq!(spans("a (fine <sks>:1.5) and [(o:2)]!", &words), expected);
    }

    #[test]
    fn a_caption_is_read_as_it_is_written() {
        for caption in ["saber (fate), [a] cat", r"a \ b :) (word:1.3)"] {
            assert_eq!(spans(&literal(caption), &[]), [Span::Text(caption.into(), 1.0)]);
        }
        assert_eq!(spans("(a: 1.3 )", &[]), [Span::Text("a".into(), 1.3)]);
    }
}
