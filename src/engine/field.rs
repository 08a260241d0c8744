//! Settings that describe themselves: one table feeds forms, `--set`, help, README and error messages.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::engine::{Error, Result};

/// One setting of a method or of training.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Field {
    pub name: &'static str,
    pub title: &'static str,
    pub help: &'static str,
    /// Empty where the value is a bare number or word.
    pub unit: &'static str,
    /// As the user would type it.
    pub default: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Integer { min: i64, max: i64 },
    Number { min: f64, max: f64 },
    Choice(&'static [&'static str]),
    Flag,
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Number { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Self::Flag => write!(f, "true or false"),
            Self::Text => write!(f, "text"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Integer(i64),
    Number(f64),
    Flag(bool),
    Text(String),
}

/// A value for every field of a table, each checked against its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(BTreeMap<&'static str, Value>);

impl Settings {
    /// The defaults of `fields`, with `changes` applied. A name that no field has is an error that lists the names.
    pub fn new<'a>(fields: &[Field], changes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut values = BTreeMap::new();
        for field in fields {
            values.insert(field.name, parse(field, field.default)?);
        }
        for (name, text) in changes {
            let field = fields.iter().find(|field| field.name == name).ok_or_else(|| {
                let known = fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
                Error::usage(format!("There is no field “{name}”"), format!("Choose one of {known}"))
            })?;
            values.insert(field.name, parse(field, text)?);
        }
        Ok(Self(values))
    }

    /// The others than those that `left_out` names; to record, not to read from.
    #[must_use]
    pub fn without(&self, left_out: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(name, _)| !left_out(name)).map(|(name, value)| (*name, value.clone())).collect())
    }

    /// Whether this field has its default.
    pub fn is_usual(&self, field: &Field) -> bool {
        parse(field, field.default).is_ok_and(|usual| self.0.get(field.name) == Some(&usual))
    }

    pub fn integer(&self, name: &str) -> usize {
        match self.0.get(name) {
            Some(&Value::Integer(n)) => usize::try_from(n).unwrap_or(0),
            other => panic!("{name} is not a whole-number field: {other:?}"),
        }
    }

    pub fn number(&self, name: &str) -> f64 {
        match self.0.get(name) {
            Some(&Value::Number(x)) => x,
            other => panic!("{name} is not a number field: {other:?}"),
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        match self.0.get(name) {
            Some(&Value::Flag(on)) => on,
            other => panic!("{name} is not a flag field: {other:?}"),
        }
    }

    pub fn text(&self, name: &str) -> &str {
        match self.0.get(name) {
            Some(Value::Text(text)) => text,
            other => panic!("{name} is not a text field: {other:?}"),
        }
    }
}

/// The settings of two tables, with `changes` distributed to the one that knows them; a name that neither has is an error.
pub fn both(mine: &[Field], others: &[Field], changes: &[(String, String)]) -> Result<(Settings, Settings)> {
    let in_table = |table: &[Field], name: &str| table.iter().any(|field| field.name == name);
    let (of_mine, rest): (Vec<_>, Vec<_>) =
        changes.iter().map(|(name, value)| (name.as_str(), value.as_str())).partition(|(name, _)| in_table(mine, name));
    if let Some((name, _)) = rest.iter().find(|(name, _)| !in_table(others, name)) {
        let names = mine.iter().chain(others).map(|field| field.name).collect::<Vec<_>>().join(", ");
        return Err(Error::usage(format!("There is no field “{name}”"), format!("Choose one of {names}")));
    }
    Ok((Settings::new(mine, of_mine)?, Settings::new(others, rest)?))
}

/// As the user would type them.
impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| {
            let text = match value {
                Value::Integer(n) => n.to_string(),
                Value::Number(x) => x.to_string(),
                Value::Flag(on) => on.to_string(),
                Value::Text(text) => text.clone(),
            };
            (name, text)
        }))
    }
}

fn parse(field: &Field, text: &str) -> Result<Value> {
    let value = match field.kind {
        Kind::Integer { min, max } => text.parse().ok().filter(|n| (min..=max).contains(n)).map(Value::Integer),
        Kind::Number { min, max } => text.parse().ok().filter(|x| (min..=max).contains(x)).map(Value::Number),
        Kind::Flag => text.parse().ok().map(Value::Flag),
        Kind::Choice(words) => words.contains(&text).then(|| Value::Text(text.into())),
        Kind::Text => Some(Value::Text(text.into())),
    };
    value
        .ok_or_else(|| Error::usage(format!("{} cannot be “{text}”", field.name), format!("It must be {}", field.kind)))
}

/// A number or a flag where it reads back as the same text, for a file that is pleasant to edit.
pub fn plain(text: &str) -> toml::Value {
    let integer = text.parse().map(toml::Value::Integer);
    let number = text.parse().map(toml::Value::Float);
    let flag = text.parse().map(toml::Value::Boolean);
    let same = [integer.ok(), number.ok(), flag.ok()].into_iter().flatten().find(|value| value.to_string() == text);
    same.unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// A flat TOML table of fields, each value as the user would type it.
pub fn changes(table: &toml::Table) -> Result<Vec<(String, String)>> {
    let text = |(name, value): (&String, &toml::Value)| match value {
        toml::Value::String(text) => Ok((name.clone(), text.clone())),
        toml::Value::Table(_) | toml::Value::Array(_) | toml::Value::Datetime(_) => {
            Err(Error::new(format!("The field {name} is not a plain value"), "Write lines such as rank = 4"))
        }
        plain => Ok((name.clone(), plain.to_string())),
    };
    table.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field {
            name: "rank",
            title: "Rank",
            help: "",
            unit: "",
            default: "8",
            kind: Kind::Integer { min: 1, max: 256 },
        },
        Field {
            name: "scale",
            title: "Scale",
            help: "",
            unit: "",
            default: "alpha",
            kind: Kind::Choice(&["alpha", "rs"]),
        },
        Field {
            name: "lr",
            title: "Rate",
            help: "",
            unit: "",
            default: "1e-3",
            kind: Kind::Number { min: 0.0, max: 1.0 },
        },
    ];

    #[test]
    fn changes_are_checked_and_the_rest_are_defaults() {
        let settings = Settings::new(FIELDS, [("rank", "4")]).unwrap();
        assert_eq!(FIELDS.iter().map(|field| settings.is_usual(field)).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!((settings.integer("rank"), settings.text("scale"), settings.number("lr")), (4, "alpha", 1e-3));
        for (name, text) in [("rank", "0"), ("rank", "x"), ("scale", "beta"), ("lr", "NaN"), ("lr", "inf")] {
            let error = Settings::new(FIELDS, [(name, text)]).unwrap_err();
            assert!(error.what.contains(name) && error.advice.starts_with("It must be"), "{error}");
        }
        let error = Settings::new(FIELDS, [("rnak", "4")]).unwrap_err();
        assert!(error.advice.contains("rank, scale, lr"), "{error}");
    }
}
