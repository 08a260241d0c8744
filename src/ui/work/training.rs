//! A training on its own thread: paused, stopped and asked for samples from the window.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::engine::event::Event;
use crate::engine::session::Training;
use crate::engine::{Error, Result};
use crate::ui::work::{Opened, Post, Report};

/// Between the window and a training.
#[derive(Default)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    paused: bool,
    stopped: bool,
}

impl Control {
    pub fn pause(&self, paused: bool) {
        self.lock().paused = paused;
        self.changed.notify_all();
    }

    /// At the next safe point; what was learnt is kept for going on.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Waits while paused; an error stops.
    fn pass(&self) -> Result<()> {
        let mut state = self.lock();
        while state.paused && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped { Err(Error::cancelled()) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts; events come as [`Report::Training`], the end as [`Report::TrainingEnded`].
pub fn start(with: Opened, concept: PathBuf, training: Training, control: Arc<Control>, post: &Post) {
    let work = move |post: &Post| {
        let Opened { session, model } = with;
        let concept = session.concept(&concept)?;
        let mut watch = |event: Event| {
            post.send(Report::Training(event));
            control.pass()
        };
        let mut train = || session.train(&model, &concept, &training, &mut watch).map(|_| training.out.clone());
        if session.device.driver.is_some() {
            return train();
        }
        // On the CPU one core stays free, or the window would wait for its turn.
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(cores.saturating_sub(1).max(1))
            .thread_name(|i| format!("training {i}"))
            .build()
            .map_err(|e| Error::new(format!("No threads could be started ({e})"), "Close other programs"))?;
        pool.install(train)
    };
    post.spawn("training", work, Report::TrainingEnded);
}
