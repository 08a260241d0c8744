//! Numbers that a merge method finds on the way, for the artist and the recipe.

use serde::Serialize;

/// A share, 1 for all of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Note {
    /// One word: `dropped`, `kept` …
    pub name: &'static str,
    /// What the number is, in words that fit before a percentage.
    pub what: &'static str,
    pub about: About,
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    Whole,
    /// Index of a source, from 0.
    Source(usize),
    /// A layer, by kohya's module name.
    Layer(String),
}

/// `part / whole` of each layer, and of all parts in all wholes.
pub fn shares(
    name: &'static str,
    what: &'static str,
    layers: impl IntoIterator<Item = (String, [f64; 2])>,
) -> Vec<Note> {
    let note = |about, [part, whole]: [f64; 2]| {
        let share = if whole > 0.0 { part / whole } else { 0.0 };
        Note { name, what, about, share }
    };
    let mut all = [0.0; 2];
    let mut notes = Vec::new();
    for (layer, [part, whole]) in layers {
        all = [all[0] + part, all[1] + whole];
        notes.push(note(About::Layer(layer), [part, whole]));
    }
    notes.push(note(About::Whole, all));
    notes
}

/// A line for each kind of number: the whole, each source, and the layer it is largest in.
pub fn sentences(notes: &[Note]) -> Vec<String> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for note in notes {
        if !names.contains(&(note.name, note.what)) {
            names.push((note.name, note.what));
        }
    }
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    names
        .into_iter()
        .map(|(name, what)| {
            let of = || notes.iter().filter(move |note| note.name == name);
            let whole = of().filter(|note| note.about == About::Whole).map(|note| percent(note.share));
            let sources = of().filter_map(|note| match note.about {
                About::Source(i) => Some(format!("{} of adapter {}", percent(note.share), i + 1)),
                _ => None,
            });
            let largest = of()
                .filter_map(|note| match &note.about {
                    About::Layer(layer) if note.share >= 5e-4 => Some((layer, note.share)),
                    _ => None,
                })
                .max_by(|a, b| a.1.total_cmp(&b.1))
                .map(|(layer, share)| format!("at most {} ({layer})", percent(share)));
            format!("{what}: {}", whole.chain(sources).chain(largest).collect::<Vec<_>>().join(", "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_one_line() {
        let note = |name, what, about, share| Note { name, what, about, share };
        let notes = [
            note("dropped", "Energy dropped", About::Layer("a".into()), 0.01),
            note("kept", "Kept", About::Source(0), 1.0),
            note("dropped", "Energy dropped", About::Layer("b".into()), 0.034),
            note("dropped", "Energy dropped", About::Whole, 0.02),
            note("kept", "Kept", About::Source(1), 0.5),
        ];
        assert_eq!(
            sentences(&notes),
            ["Energy dropped: 2.0 %, at most 3.4 % (b)", "Kept: 100.0 % of adapter 1, 50.0 % of adapter 2"]
        );
    }
}
