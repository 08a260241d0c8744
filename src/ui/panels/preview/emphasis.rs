//! Ctrl+Up and Ctrl+Down over a part of a prompt change how much it counts, as in A1111.

use std::ops::Range;

use egui::text::{CCursor, CCursorRange, CharIndex};
use egui::text_edit::TextEditState;
use egui::{Id, Key, Modifiers, Ui};

use crate::engine::model::prompt::{BRACKET, closing_weight};

const STEP: f64 = 0.1;

/// To be called before the text field `id` of `text` is shown: it would move its cursor by these keys.
pub fn keys(ui: &Ui, id: Id, text: &mut String) {
    if !ui.memory(|memory| memory.has_focus(id)) {
        return;
    }
    let [up, down] = ui.input_mut(|input| {
        [Key::ArrowUp, Key::ArrowDown].map(|key| input.count_and_consume_key(Modifiers::COMMAND, key) as f64)
    });
    let Some(mut state) = TextEditState::load(ui.ctx(), id).filter(|_| up + down > 0.0) else { return };
    let Some(range) = state.cursor.char_range().map(|range| range.as_sorted_char_range()) else { return };
    let Some((changed, kept)) = reweighed(text, range.start.0..range.end.0, (up - down) * STEP) else { return };
    *text = changed;
    let cursor = |at| CCursor::new(CharIndex(at));
    state.cursor.set_char_range(Some(CCursorRange::two(cursor(kept.start), cursor(kept.end))));
    state.store(ui.ctx(), id);
}

/// `text` with the weight of the characters in `selected`, or of the word they stand in, changed by `by`; and where those
/// are then.
fn reweighed(text: &str, selected: Range<usize>, by: f64) -> Option<(String, Range<usize>)> {
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    let part = text.get(byte(selected.start)..byte(selected.end))?;
    let mut start = byte(selected.start) + (part.len() - part.trim_start().len());
    let mut end = start + part.trim().len();
    if start == end {
        let edge = |c: char| c.is_whitespace() || "()[],.:;".contains(c);
        start = text[..start].char_indices().rfind(|&(_, c)| edge(c)).map_or(0, |(at, c)| at + c.len_utf8());
        end += text[end..].find(edge).unwrap_or(text.len() - end);
    }
    let part = text.get(start..end).filter(|part| !part.is_empty())?;
    let (before, weight, after) = enclosed(&text[..start], &text[end..]).unwrap_or((&text[..start], 1.0, &text[end..]));
    // Counted, so that no 1.2000000000000002 is written.
    let hundredths = ((weight + by) * 100.0).round() as i64;
    let (open, close) = match hundredths {
        100 => ("", String::new()),
        _ => ("(", format!(":{})", hundredths as f64 / 100.0)),
    };
    let first = before.chars().count() + open.len();
    Some((format!("{before}{open}{part}{close}{after}"), first..first + part.chars().count()))
}

/// What is around the bracket that a part stands in alone, and its weight.
fn enclosed<'a>(before: &'a str, after: &'a str) -> Option<(&'a str, f64, &'a str)> {
    let before = before.strip_suffix('(').filter(|before| !before.ends_with('\\'))?;
    if let Some(after) = after.strip_prefix(')') {
        return Some((before, BRACKET, after));
    }
    let (weight, after) = closing_weight(after.strip_prefix(':')?)?;
    Some((before, weight, after))
}

#[cfg(test)]
mod tests {
    use egui::TextEdit;
    use egui::accesskit::Role;
    use egui_kittest::Harness;
    use egui_kittest::kittest::Queryable as _;

    use super::*;

    #[track_caller]
    fn becomes(text: &str, part: &str, by: f64, expected: &str) {
        let start = text.find(part).map_or(0, |at| text[..at].chars().count());
        let (changed, kept) = reweighed(text, start..start + part.chars().count(), by).unwrap();
        assert_eq!(changed, expected, "{text}");
        let stays: String = changed.chars().skip(kept.start).take(kept.len()).collect();
        assert_eq!(stays, part.trim(), "{text}");
    }

    #[test]
    fn a_selection_gains_and_loses_weight() {
        becomes("a cat", "cat", 0.1, "a (cat:1.1)");
        becomes("ein müder (Bär:1.1)", "Bär", 0.1, "ein müder (Bär:1.2)");
        becomes("a (cat:1.1)", "cat", -0.1, "a cat");
        becomes("a (cat:1.25), red", "cat", -0.1, "a (cat:1.15), red");
        becomes("a (cat)", "cat", 0.1, "a (cat:1.2)");
        becomes("a cat on", " cat ", -0.1, "a (cat:0.9) on");
        becomes("\\(cat:1.2)", "cat", 0.1, "\\((cat:1.1):1.2)");
        becomes("(a cat:1.2)", "cat", 0.1, "(a (cat:1.1):1.2)");
        assert_eq!(reweighed("a big, cat", 4..4, 0.1).unwrap(), ("a (big:1.1), cat".into(), 3..6));
        assert_eq!(reweighed("", 0..0, 0.1), None);
        assert_eq!(reweighed(" , ", 1..1, 0.1), None);
    }

    #[test]
    fn the_keys_reach_the_field_that_has_the_focus() {
        let mut window = Harness::builder().build_ui_state(
            |ui, text: &mut String| {
                let id = ui.make_persistent_id("prompt");
                keys(ui, id, text);
                ui.add(TextEdit::multiline(text).id(id));
            },
            "cat".to_owned(),
        );
        window.key_press_modifiers(Modifiers::COMMAND, Key::ArrowUp);
        window.run();
        assert_eq!(window.state(), "cat", "nothing has the focus");
        window.get_by_role(Role::MultilineTextInput).focus();
        window.run();
        window.key_press_modifiers(Modifiers::COMMAND, Key::A);
        window.run();
        for expected in ["(cat:1.1)", "(cat:1.2)"] {
            window.key_press_modifiers(Modifiers::COMMAND, Key::ArrowUp);
            window.run();
            assert_eq!(window.state(), expected);
        }
        for _ in 0..2 {
            window.key_press_modifiers(Modifiers::COMMAND, Key::ArrowDown);
            window.run();
        }
        assert_eq!(window.state(), "cat");
    }
}
