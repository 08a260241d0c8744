//! Undo and redo of whole values.

use std::time::{Duration, Instant};

/// Changes of one kind closer together than this are one: a fader's way is one step back.
const ONE_GESTURE: Duration = Duration::from_millis(700);
/// What can be dragged; everything else is a step of its own.
const GESTURES: [&str; 2] = ["fader", "block"];
const DEPTH: usize = 200;

#[derive(Debug, Default)]
pub struct Undo<T> {
    past: Vec<T>,
    future: Vec<T>,
    last: Option<(&'static str, Instant)>,
}

impl<T> Undo<T> {
    pub fn new() -> Self {
        Self { past: Vec::new(), future: Vec::new(), last: None }
    }

    /// Remembers `before`, which is about to be changed by `what`.
    pub fn note(&mut self, before: T, what: &'static str, now: Instant) {
        let goes_on = GESTURES.contains(&what)
            && self.last.is_some_and(|(last, at)| last == what && now.duration_since(at) < ONE_GESTURE);
        self.last = Some((what, now));
        self.future.clear();
        if !goes_on {
            self.past.push(before);
            if self.past.len() > DEPTH {
                self.past.remove(0);
            }
        }
    }

    pub fn back(&mut self, now: T) -> Result<T, T> {
        step(&mut self.past, &mut self.future, &mut self.last, now)
    }

    pub fn forth(&mut self, now: T) -> Result<T, T> {
        step(&mut self.future, &mut self.past, &mut self.last, now)
    }

    pub fn can_go_back(&self) -> bool {
        !self.past.is_empty()
    }

    pub fn can_go_forth(&self) -> bool {
        !self.future.is_empty()
    }
}

/// The value to go to, or `now` again where there is none.
fn step<T>(from: &mut Vec<T>, to: &mut Vec<T>, last: &mut Option<(&'static str, Instant)>, now: T) -> Result<T, T> {
    *last = None;
    match from.pop() {
        Some(value) => {
            to.push(now);
            Ok(value)
        }
        None => Err(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gesture_is_one_step_and_comes_back() {
        let mut undo = Undo::new();
        let start = Instant::now();
        for (i, before) in [0, 1, 2].into_iter().enumerate() {
            undo.note(before, "fader", start + Duration::from_millis(100 * i as u64));
        }
        undo.note(3, "mute", start);
        assert_eq!(undo.back(4), Ok(3));
        assert_eq!(undo.back(3), Ok(0));
        assert_eq!(undo.back(0), Err(0));
        assert_eq!(undo.forth(0), Ok(3));
        undo.note(3, "solo", start);
        assert!(!undo.can_go_forth() && undo.can_go_back());
    }
}
