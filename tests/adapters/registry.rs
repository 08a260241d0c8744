//! Every row says what forms, help and README need of it.

use std::collections::BTreeSet;

use triptych::engine::adapter::{self, METHODS};
use triptych::engine::field::{Field, Kind, Settings};
use triptych::engine::model::Mounts;
use triptych::engine::train::config;

use crate::case::{alone, cases};
use crate::{apart, build};

#[test]
fn rows_are_complete() {
    for what in [|row: &adapter::Method| row.name, |row: &adapter::Method| row.title] {
        let different: BTreeSet<&str> = METHODS.iter().map(what).collect();
        assert_eq!(different.len(), METHODS.len(), "two methods share a name or title: {different:?}");
    }
    for row in METHODS {
        let texts = [row.name, row.title, row.paper, row.help, row.count];
        for text in texts.into_iter().chain(row.gradient) {
            assert!(!text.trim().is_empty() && text.trim() == text, "{}: {text:?}", row.name);
        }
        assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{} must be typed easily", row.name);
        assert!(row.count.contains('o') || row.count.contains('i'), "{}: no count {:?}", row.name, row.count);
        assert!(row.rate > 0.0 && row.rate.is_finite(), "{}: rate {}", row.name, row.rate);
        assert_eq!(adapter::method(row.name).unwrap().title, row.title);
        assert_eq!(row.takes_slot, build(row, &[]).basis().is_some(), "{}: a slot is for a basis", row.name);
        assert_fields(row.name, row.fields);
        // `--set` looks a name up in both tables: one that stands in both could never reach the training's.
        for field in row.fields {
            let taken = config::FIELDS.iter().any(|f| f.name == field.name);
            assert!(!taken, "{}.{} is a training field", row.name, field.name);
        }
    }
    let error = adapter::method("dreambooth").unwrap_err();
    assert!(METHODS.iter().all(|row| error.advice.contains(row.name)), "{error}");
}

fn assert_fields(method: &str, fields: &[Field]) {
    let names: BTreeSet<&str> = fields.iter().map(|field| field.name).collect();
    assert_eq!(names.len(), fields.len(), "{method}: two fields share a name");
    Settings::new(fields, []).unwrap_or_else(|e| panic!("{method}: a default is not valid: {e}"));
    for field in fields {
        let explained = [field.name, field.title, field.help].iter().all(|text| !text.trim().is_empty());
        assert!(explained, "{method}.{} explains nothing", field.name);
        let edges: Vec<String> = match field.kind {
            Kind::Integer { min, max } => vec![min.to_string(), max.to_string()],
            Kind::Number { min, max } => vec![min.to_string(), max.to_string()],
            Kind::Choice(words) => words.iter().map(ToString::to_string).collect(),
            Kind::Flag => vec!["true".into(), "false".into()],
            Kind::Text => Vec::new(),
        };
        for text in edges {
            Settings::new(fields, [(field.name, text.as_str())])
                .unwrap_or_else(|e| panic!("{method}.{} does not take its own {text}: {e}", field.name));
        }
    }
}

/// On every kind of layer, and untrained it changes nothing there.
#[test]
fn every_choice_builds_and_runs() {
    for row in METHODS {
        for field in row.fields {
            let texts: &[&str] = match field.kind {
                Kind::Choice(words) => words,
                Kind::Flag => &["true", "false"],
                _ => continue,
            };
            for &text in texts {
                let adapter = build(row, &[(field.name, text)]);
                for case in cases() {
                    let (x, base) = (case.x(), case.values(&Mounts::none(), &case.x()));
                    let context = format!("{} {}={text} on a {}", row.name, field.name, case.what);
                    let t = case.tensors(&case.start(adapter.as_ref()));
                    let error = apart(&case.values(&alone(&adapter, &t), &x), &base);
                    assert!(error < 1e-6, "{context}: {error}");
                    let t = case.trained(adapter.as_ref());
                    let effect = apart(&case.values(&alone(&adapter, &t), &x), &base);
                    assert!(effect > 0.01, "{context} changes nothing: {effect}");
                }
            }
        }
    }
}
