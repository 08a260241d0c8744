//! What a card says of an adapter, put into words once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::adapter;
use crate::engine::io::metadata as keys;
use crate::engine::words;
use crate::ui::cards::{AdapterCard, AdapterContent};

#[derive(Default)]
pub struct Summaries {
    known: HashMap<PathBuf, (Arc<AdapterContent>, Summary)>,
}

pub struct Summary {
    /// Under the name on the closed card.
    pub line: String,
    /// What and its value, on the open card.
    pub rows: Vec<(&'static str, String)>,
    pub base_hash: Option<String>,
    pub base: Option<String>,
    /// Mean singular values over the layers, largest first, the largest as 1.
    pub bars: Vec<f32>,
}

impl Summaries {
    /// `None` until the file is open.
    pub fn get(&mut self, card: &AdapterCard) -> Option<&Summary> {
        let content = card.content.ready()?;
        if !self.known.get(&card.path).is_some_and(|(known, _)| Arc::ptr_eq(known, content)) {
            self.known.insert(card.path.clone(), (Arc::clone(content), Summary::of(content)));
        }
        self.known.get(&card.path).map(|(_, summary)| summary)
    }

    /// Forgets those that are no longer shown.
    pub fn keep(&mut self, is_shown: impl Fn(&Path) -> bool) {
        self.known.retain(|path, _| is_shown(path));
    }
}

impl Summary {
    fn of(content: &AdapterContent) -> Self {
        let file = &content.file;
        let text = |key| content.value(key).map(str::to_owned);
        let method = match content.value(keys::METHOD) {
            Some(name) => adapter::method(name).map_or_else(|_| name.to_owned(), |row| row.title.to_owned()),
            None => "LoRA of another program".into(),
        };
        let ranks = file.ranks();
        let rank = match (ranks.first(), ranks.last()) {
            (Some(one), Some(other)) if one == other => Some(format!("rank {one}")),
            (Some(least), Some(most)) => Some(format!("ranks {least}–{most}")),
            _ => None,
        };
        let slot: Option<usize> = content.slot().and_then(|slot| slot.parse().ok());
        let parts = [
            Some(method.clone()),
            rank.clone(),
            slot.map(|slot| format!("slot {slot}")),
            Some(words::bytes(content.bytes)),
        ];
        let base = text(keys::BASE);
        let dtype = file.dtype.map(|dtype| format!("{dtype:?}").to_lowercase());
        let token = |token: &String| match file.layer_tokens.contains_key(token) {
            true => format!("{token} (per-layer vectors)"),
            false => token.clone(),
        };
        let tokens = file.tokens.keys().map(token).collect::<Vec<_>>().join(" ");
        let rows = [
            ("Method", Some(method)),
            ("Rank", rank.map(|rank| rank.split_once(' ').map_or(rank.clone(), |(_, number)| number.to_owned()))),
            ("Slot", Some(slot.map_or_else(|| "none".into(), |slot| slot.to_string()))),
            ("Made for", Some(base.clone().unwrap_or_else(|| "not said".into()))),
            ("Token", Some(tokens).filter(|tokens| !tokens.is_empty())),
            ("Layers", Some(file.modules().len().to_string())),
            ("Size", Some(words::bytes(content.bytes))),
            ("Numbers", dtype),
        ];
        Self {
            line: parts.into_iter().flatten().collect::<Vec<_>>().join(" · "),
            rows: rows.into_iter().filter_map(|(what, value)| Some((what, value?))).collect(),
            base_hash: text(keys::BASE_HASH),
            base,
            bars: bars(content),
        }
    }
}

fn bars(content: &AdapterContent) -> Vec<f32> {
    /// More would not be told apart.
    const MOST: usize = 16;
    let Ok(spectra) = &content.spectra else { return Vec::new() };
    let longest = spectra.iter().map(|layer| layer.singular_values.len()).max().unwrap_or(0).min(MOST);
    let value = |at: usize| spectra.iter().filter_map(|layer| layer.singular_values.get(at)).sum::<f64>();
    let sums: Vec<f64> = (0..longest).map(value).collect();
    let largest = sums.iter().copied().fold(0.0, f64::max);
    sums.iter().filter(|_| largest > 0.0).map(|sum| (sum / largest) as f32).collect()
}
