//! How the sources of a merge stand to each other before it: what is proven, and what is measured.

use burn::tensor::Device;
use serde::Serialize;

use crate::engine::Result;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::merge::certificate::{self, Certificate};
use crate::engine::spectrum::adapter::deltas;
use crate::engine::spectrum::{PairOverlap, overlaps};

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
pub fn meeting(files: &[&LoraFile], device: &Device) -> Result<Meeting> {
    let certificate = certificate::certify(files)?;
    let deltas = files.iter().map(|file| deltas(file)).collect::<Result<Vec<_>>>()?;
    let mut overlaps = overlaps(&deltas, device)?.into_iter();
    let mut pairs = Vec::new();
    for second in 1..files.len() {
        pairs.extend((0..second).zip(&mut overlaps).map(|(first, overlap)| Pair { first, second, overlap }));
    }
    Ok(Meeting { certificate, pairs })
}
