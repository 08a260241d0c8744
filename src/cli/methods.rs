//! `triptych methods`

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::json;

use crate::cli::Shell;
use crate::engine::adapter::target;
use crate::engine::diffusion::SAMPLERS;
use crate::engine::field::Field;
use crate::engine::train::config;
use crate::engine::{Result, adapter, merge};

#[derive(clap::Args)]
pub struct Args {
    /// Only these
    what: Option<What>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Adapters,
    Merges,
    Samplers,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
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
