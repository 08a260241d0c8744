//! The most anonymous memory a process has held: what it asked for itself, without files that are mapped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Looks every few milliseconds until it is read.
pub struct Peak {
    largest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
}

impl Peak {
    pub fn watch() -> Self {
        let (largest, over) = (Arc::new(AtomicU64::new(anonymous())), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (Arc::clone(&largest), Arc::clone(&over));
        let look = move || {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
        };
        let watcher = std::thread::Builder::new().name("peak".into()).spawn(look).unwrap();
        Self { largest, over, watcher }
    }

    /// In bytes.
    pub fn read(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap();
        self.largest.load(Ordering::Relaxed)
    }
}

/// In bytes, now.
pub fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
