//! How the sources of a merge stand to each other before it: what is proven, and what is measured.

use serde::Serialize;

use crate::engine::Result;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::merge::certificate::{self, Certificate};
use crate::engine::spectrum::adapter::deltas;
use crate::engine::spectrum::{PairOverlap, overlap};

#[derive(Clone, Debug, Serialize)]
pub struct Meeting {
    pub certificate: Option<Certificate>,
    /// Every pair `first < second` of sources.
    pub pairs: Vec<Pair>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub first: usize,
    pub second: usize,
    pub overlap: PairOverlap,
}

/// Files of unlike bases are refused by name.
pub fn meeting(files: &[&LoraFile]) -> Result<Meeting> {
    let certificate = certificate::certify(files)?;
    let deltas = files.iter().map(|file| deltas(file)).collect::<Result<Vec<_>>>()?;
    let mut pairs = Vec::new();
    for second in 1..files.len() {
        for first in 0..second {
            pairs.push(Pair { first, second, overlap: overlap(&deltas[first], &deltas[second])? });
        }
    }
    Ok(Meeting { certificate, pairs })
}
