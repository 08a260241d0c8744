//! What a classifier sees in pictures.

use std::cmp::Ordering;
use std::path::PathBuf;

use serde::Serialize;

use crate::engine::device::read;
use crate::engine::event::{Event, Watch};
use crate::engine::vision::Adapted;
use crate::engine::vision::classifier::BATCH;
use crate::engine::{Error, Result};

/// One picture, the likeliest class first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    pub path: PathBuf,
    pub top: Vec<Guess>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guess {
    pub class: String,
    /// Its row of the head.
    pub index: usize,
    /// 0…1; those of all classes add up to 1.
    pub probability: f32,
}

/// The `top` likeliest classes of each picture.
pub fn classify(adapted: &Adapted<'_>, pictures: &[PathBuf], top: usize, watch: &mut Watch<'_>) -> Result<Vec<Seen>> {
    let total = pictures.len();
    watch(Event::Stage { name: "looking".into(), total })?;
    let mut seen = Vec::new();
    for some in pictures.chunks(BATCH) {
        let plain: Vec<_> = some.iter().map(|path| (path, false)).collect();
        let x = adapted.model.preparation.batch(&plain, &adapted.model.device)?;
        let logits = read(adapted.logits(x))?;
        for (path, logits) in some.iter().zip(logits.chunks(adapted.classes.len())) {
            let top = guesses(logits, top, &adapted.classes).map_err(|error| error.at(path))?;
            seen.push(Seen { path: path.clone(), top });
        }
        watch(Event::Progress { done: seen.len(), total })?;
    }
    Ok(seen)
}

fn guesses(logits: &[f32], top: usize, classes: &[String]) -> Result<Vec<Guess>> {
    let order = ranked(logits)?;
    let largest = f64::from(logits[order[0]]);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    let guess = |&index: &usize| Guess {
        class: classes[index].clone(),
        index,
        probability: ((f64::from(logits[index]) - largest).exp() / sum) as f32,
    };
    Ok(order.iter().take(top).map(guess).collect())
}

/// The classes, likeliest first; of equals the earlier.
pub fn ranked(logits: &[f32]) -> Result<Vec<usize>> {
    if logits.is_empty() || logits.iter().any(|x| !x.is_finite()) {
        let advice = "Train it again with a lower learning rate, or use another model";
        return Err(Error::new("The classifier's answer is not made of numbers", advice));
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal));
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_softmax_in_order() {
        let classes: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        // e^x in shares of 1 : 2 : 1, far from zero.
        let top = guesses(&[500.0, 500.0 + 2.0_f32.ln(), 500.0], 5, &classes).unwrap();
        assert_eq!(top.iter().map(|guess| &*guess.class).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert!((top[0].probability - 0.5).abs() < 1e-4 && (top[2].probability - 0.25).abs() < 1e-4, "{top:?}");
        assert_eq!(guesses(&[0.0, 1.0, 2.0], 1, &classes).unwrap().len(), 1);
        for broken in [&[f32::NAN, 0.0][..], &[f32::INFINITY, 0.0], &[]] {
            assert!(ranked(broken).is_err(), "{broken:?}");
        }
    }
}
