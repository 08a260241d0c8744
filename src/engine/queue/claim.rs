//! An order under way.

use std::fs;

use crate::engine::Result;
use crate::engine::error::Kind;
use crate::engine::io::lock::{self, Lock};
use crate::engine::queue::{Entry, Order, Queue, State};
use crate::engine::train::checkpoint;

/// The right to run an order; while it lives, nobody else is given the order. Dropped without [`Claim::finish`], the
/// order waits again.
pub struct Claim {
    pub id: String,
    /// As it was found.
    pub order: Order,
    queue: Queue,
    _lock: Lock,
}

impl Claim {
    pub(super) fn new(id: String, order: Order, queue: Queue, lock: Lock) -> Self {
        Self { id, order, queue, _lock: lock }
    }

    /// Writes down how it ended. A cancelled order waits again; any other error marks it as failed, with the sentence.
    pub fn finish<T>(self, result: &Result<T>) -> Result<()> {
        let _lock = self.queue.lock()?;
        let (state, error) = match result {
            Ok(_) => (State::Done, None),
            Err(error) if error.kind == Kind::Cancelled => (State::Waiting, None),
            Err(error) => (State::Failed, Some(error.to_string())),
        };
        // Read anew: meanwhile the file may have been moved, edited or deleted, and what people did there counts.
        let entry = self.queue.entries()?.into_iter().find(|entry| entry.id == self.id);
        if let Some(Entry { order: Ok(order), path, .. }) = entry {
            let begun = state != State::Done && checkpoint::folder(&order.out).is_dir();
            Order { state, error, resume: self.order.resume || begun, ..order }.write(&path)?;
        }
        // Nobody else opens it meanwhile: that needs the queue's lock. Where it cannot be removed it does no harm.
        let _ = fs::remove_file(lock::beside(&self.queue.running(&self.id)));
        Ok(())
    }
}
