//! What may be asked of a run from outside while it is under way.

use std::sync::atomic::{AtomicBool, Ordering};

/// Shared with the thread that trains, which looks after each step. Pausing needs no wish: a watch that blocks pauses.
#[derive(Debug, Default)]
pub struct Wishes {
    save: AtomicBool,
    keep: AtomicBool,
}

/// What was wished for since the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wished {
    pub save: bool,
    pub keep: bool,
}

impl Wishes {
    /// The state to resume from, written now.
    pub fn save(&self) {
        self.save.store(true, Ordering::Relaxed);
    }

    /// The adapter as it is now, kept as a step of the way.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Takes them: each is fulfilled once.
    pub fn take(&self) -> Wished {
        Wished { save: self.save.swap(false, Ordering::Relaxed), keep: self.keep.swap(false, Ordering::Relaxed) }
    }
}
