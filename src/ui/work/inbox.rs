//! What waits for a thread that does one thing after the other: newer requests replace older ones, and what may come
//! later waits behind both.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub struct Inbox<T> {
    /// Done in order; a newer request replaces them all.
    now: VecDeque<(T, Instant)>,
    pub later: VecDeque<(T, Instant)>,
    /// Goes up with every request that is to be done now.
    pub number: u64,
    /// Goes up when what may come later is forgotten: work on its way then does not come back.
    pub drops: u64,
    pub closed: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self { now: VecDeque::new(), later: VecDeque::new(), number: 0, drops: 0, closed: false }
    }
}

impl<T> Inbox<T> {
    pub fn replace(&mut self, orders: impl IntoIterator<Item = T>, at: Instant) {
        self.number += 1;
        self.now = orders.into_iter().map(|order| (order, at)).collect();
    }

    /// The next order, and whether it is one of now.
    fn take(&mut self) -> Option<(T, Instant, bool)> {
        if let Some((order, at)) = self.now.pop_front() {
            return Some((order, at, true));
        }
        self.later.pop_front().map(|(order, at)| (order, at, false))
    }

    /// Interrupted work comes first again.
    pub fn put_back(&mut self, order: T, at: Instant) {
        self.later.push_front((order, at));
    }
}

/// An inbox that both threads see.
pub struct Shared<T> {
    inbox: Mutex<Inbox<T>>,
    changed: Condvar,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { inbox: Mutex::default(), changed: Condvar::new() }
    }
}

impl<T> Shared<T> {
    pub fn lock(&self) -> MutexGuard<'_, Inbox<T>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it, and wakes whoever waits for work.
    pub fn change(&self, change: impl FnOnce(&mut Inbox<T>)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// Waits for work; `None` when the window is gone. Beside it, since when it is asked for, the number of the last
    /// request, and whether it is to be done now.
    pub fn next(&self) -> Option<(T, Instant, u64, bool)> {
        let mut inbox = self.lock();
        loop {
            if inbox.closed {
                return None;
            }
            let number = inbox.number;
            if let Some((order, at, urgent)) = inbox.take() {
                return Some((order, at, number, urgent));
            }
            inbox = self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(inbox: &mut Inbox<u8>) -> Option<(u8, bool)> {
        inbox.take().map(|(order, _, urgent)| (order, urgent))
    }

    #[test]
    fn the_latest_request_replaces_the_ones_before() {
        let (mut inbox, at) = (Inbox::default(), Instant::now());
        inbox.replace([1, 2], at);
        let number = inbox.number;
        inbox.replace([3, 4], at);
        assert_ne!(inbox.number, number, "what is made now must notice");
        assert_eq!([(); 3].map(|()| take(&mut inbox)), [Some((3, true)), Some((4, true)), None]);
    }

    #[test]
    fn interrupted_work_comes_again_after_what_interrupted_it() {
        let (mut inbox, at) = (Inbox::default(), Instant::now());
        inbox.later.extend([(7, at), (8, at)]);
        assert_eq!(take(&mut inbox), Some((7, false)));
        inbox.replace([1], at);
        inbox.put_back(7, at);
        let order = [(); 4].map(|()| take(&mut inbox));
        assert_eq!(order, [Some((1, true)), Some((7, false)), Some((8, false)), None]);
    }
}
