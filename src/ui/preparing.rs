//! What a GPU goes through before it can be used: stages of known length, told beside its name.

use crate::engine::event::Event;
use crate::engine::ops::self_test;
use crate::engine::prepare;

/// Stages of the engine, and how they read.
const STAGES: [(&str, &str); 2] = [(self_test::STAGE, "Testing kernels"), (prepare::STAGE, "Preparing kernels")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preparing {
    pub title: &'static str,
    pub done: usize,
    pub total: usize,
}

impl Preparing {
    /// What follows on an event. Every other stage ends it.
    pub fn after(now: Option<Self>, event: &Event) -> Option<Self> {
        match event {
            Event::Stage { name, total } => {
                let &(_, title) = STAGES.iter().find(|(stage, _)| stage == name)?;
                Some(Self { title, done: 0, total: *total })
            }
            Event::Progress { done, .. } => now.map(|now| Self { done: *done, ..now }),
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_of_until_the_picture_itself_begins() {
        let stage = |name: &str| Event::Stage { name: name.into(), total: 3 };
        let progress = |done| Event::Progress { done, total: 3 };
        let mut now = None;
        let mut told = |event: &Event| {
            now = Preparing::after(now, event);
            now.map(|now| (now.title, now.done))
        };
        assert_eq!(told(&progress(1)), None);
        assert_eq!(told(&stage(self_test::STAGE)), Some(("Testing kernels", 0)));
        assert_eq!(told(&stage(prepare::STAGE)), Some(("Preparing kernels", 0)));
        assert_eq!(told(&progress(2)), Some(("Preparing kernels", 2)));
        assert_eq!(told(&Event::note("x")), Some(("Preparing kernels", 2)));
        assert_eq!(told(&stage("sampling")), None);
        assert_eq!(told(&progress(1)), None);
    }
}
