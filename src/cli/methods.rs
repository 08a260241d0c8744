//! `triptych methods`

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::json;

use crate::cli::{Shell, say};
use crate::engine::adapter::target;
use crate::engine::diffusion::SAMPLERS;
use crate::engine::field::Field;
use crate::engine::train::config;
use crate::engine::vision::{fields, probe};
use crate::engine::{Result, adapter, merge, preview};

#[derive(clap::Args)]
pub struct Args {
    /// Only these
    what: Option<What>,
    /// Tables without the fields, as the README has them
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Adapters,
    Classifiers,
    Merges,
    Samplers,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    if args.markdown {
        say(markdown().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let shows = |what: What| args.what.is_none_or(|only| only == what);
    let samplers: Vec<_> = SAMPLERS
        .iter()
        .map(|row| json!({ "name": row.name, "title": row.title, "paper": row.paper, "help": row.help }))
        .collect();
    let mut result = serde_json::Map::new();
    let mut text = String::new();
    if shows(What::Adapters) {
        result.insert("adapters".into(), json!(adapter::METHODS));
        result.insert("training".into(), json!(config::FIELDS));
        result.insert("targets".into(), json!(target::GROUPS));
        heading(&mut text, "Adapter methods (train --method NAME --set field=value)");
        for row in adapter::METHODS {
            entry(&mut text, row.name, row.title, row.help, row.paper);
            let _ = writeln!(
                text,
                "    numbers that train on a layer of i inputs and o outputs: {}; the file holds {}",
                row.count,
                row.file.words()
            );
            if let Some(gradient) = row.gradient {
                let _ = writeln!(text, "    gradient: {gradient}");
            }
            for field in row.fields {
                field_line(&mut text, field);
            }
        }
        heading(&mut text, "Fields of every training (train --set field=value)");
        for field in config::FIELDS {
            field_line(&mut text, field);
        }
        heading(&mut text, "Groups of layers (train --set targets=…)");
        for group in target::GROUPS {
            let _ = writeln!(text, "    {:<16} {}", group.name, group.help);
        }
    }
    if shows(What::Classifiers) {
        result.insert("classifiers".into(), json!({ "probe": probe::NAME, "fields": fields::FIELDS }));
        heading(&mut text, "Fields of teaching a classifier (train --data DIR --set field=value)");
        let _ = writeln!(text, "    --method {}, which is the default, or any adapter method", probe::NAME);
        for field in fields::FIELDS {
            field_line(&mut text, field);
        }
    }
    if shows(What::Merges) {
        result.insert("merges".into(), json!(merge::METHODS));
        heading(&mut text, "Merge methods (merge --method NAME --set field=value)");
        for row in merge::METHODS {
            entry(&mut text, row.name, row.title, row.help, row.paper);
            for field in row.fields {
                field_line(&mut text, field);
            }
        }
    }
    if shows(What::Samplers) {
        result.insert("samplers".into(), json!(samplers));
        heading(&mut text, "Samplers (sample --sampler NAME)");
        for row in SAMPLERS {
            entry(&mut text, row.name, row.title, row.help, row.paper);
        }
        result.insert("sampling".into(), json!(preview::FIELDS));
        heading(&mut text, "Fields of every sampler (sample --set field=value)");
        for field in preview::FIELDS {
            field_line(&mut text, field);
        }
    }
    shell.print(&result, || text)?;
    Ok(ExitCode::SUCCESS)
}

fn heading(text: &mut String, title: &str) {
    let gap = if text.is_empty() { "" } else { "\n" };
    let _ = writeln!(text, "{gap}{title}");
}

fn entry(text: &mut String, name: &str, title: &str, help: &str, paper: &str) {
    let _ = writeln!(text, "\n  {name} — {title}. {help}.\n    {paper}");
}

fn field_line(text: &mut String, field: &Field) {
    let default = if field.default.is_empty() { "empty" } else { field.default };
    let unit = if field.unit.is_empty() { String::new() } else { format!(" {}", field.unit) };
    let _ = writeln!(text, "    {:<16} {} [{}; default {default}{unit}]", field.name, field.help, field.kind);
}

/// The README's tables.
fn markdown() -> String {
    let mut text = String::from(
        "| adapter | method | numbers that train on a layer `i → o` | its file loads in |\n|---|---|---|---|\n",
    );
    for row in adapter::METHODS {
        let _ =
            writeln!(text, "| `{}` | {}, {} | {} | {} |", row.name, row.title, row.paper, row.count, row.file.words());
    }
    text += "\n| merge | method | |\n|---|---|---|\n";
    for row in merge::METHODS {
        let _ = writeln!(text, "| `{}` | {}, {} | {} |", row.name, row.title, row.paper, row.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_what_there_is() {
        let readme = include_str!("../../README.md");
        let shown = readme.split("<!-- methods -->\n").nth(1).expect("the README marks its tables");
        assert_eq!(shown.trim(), markdown().trim(), "put the output of `triptych methods --markdown` there");
    }
}
