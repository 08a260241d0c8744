//! The log strip: what happened, in sentences.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::engine::Error;

/// Lines kept.
const MOST: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Note,
    Warning,
    Error,
}

#[derive(Clone, Debug)]
pub struct Line {
    pub at: SystemTime,
    pub weight: Weight,
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Log {
    pub lines: VecDeque<Line>,
}

impl Log {
    pub fn note(&mut self, text: impl Into<String>) {
        self.add(Weight::Note, text.into());
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        self.add(Weight::Warning, text.into());
    }

    pub fn error(&mut self, error: &Error) {
        self.add(Weight::Error, error.to_string().replace('\n', " "));
    }

    pub fn last(&self) -> Option<&Line> {
        self.lines.back()
    }

    fn add(&mut self, weight: Weight, text: String) {
        match weight {
            Weight::Note => tracing::info!("{text}"),
            Weight::Warning => tracing::warn!("{text}"),
            Weight::Error => tracing::error!("{text}"),
        }
        self.lines.push_back(Line { at: SystemTime::now(), weight, text });
        if self.lines.len() > MOST {
            self.lines.pop_front();
        }
    }
}
