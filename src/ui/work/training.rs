//! A training on its own thread: paused, stopped and asked for samples from the window.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::engine::device;
use crate::engine::event::Event;
use crate::engine::queue::Claim;
use crate::engine::session::Training;
use crate::engine::train::{Wishes, checkpoint};
use crate::engine::words::stem;
use crate::engine::{Error, Result};
use crate::ui::work::{Opened, Post, Report, guarded};

/// Earlier adapters of one name that are kept.
const MOST_EARLIER: usize = 9999;

/// What is to be taught.
pub struct Job {
    pub with: Opened,
    /// Another model than the open one.
    pub model: Option<String>,
    /// Folders of the concepts, one for each lesson.
    pub concepts: Vec<PathBuf>,
    pub training: Training,
    /// The order it was taken from.
    pub claim: Option<Claim>,
}

/// Between the window and a training.
#[derive(Default)]
pub struct Control {
    pub wishes: Arc<Wishes>,
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
pub fn start(job: Job, control: Arc<Control>, post: &Post) {
    let work = move |post: &Post| {
        let Job { with, model, concepts, mut training, claim } = job;
        training.wishes = Some(Arc::clone(&control.wishes));
        // An order says itself whether it goes on; the form's training does wherever something is left to go on from.
        training.resume &= claim.is_some() || checkpoint::folder(&training.out).is_dir();
        let out = training.out.clone();
        accounted(claim, || {
            let Opened { session, model: open, .. } = &with;
            let other = model.map(|name| session.model(&name)).transpose()?;
            let concepts = concepts.iter().map(|folder| session.concept(folder)).collect::<Result<Vec<_>>>()?;
            if !training.resume {
                keep_earlier(&training.out)?;
            }
            let mut watch = |event: Event| {
                post.send(Report::Training(event));
                control.pass()
            };
            let mut train =
                || session.train(other.as_ref().unwrap_or(open), &concepts, &training, &mut watch).map(drop);
            if session.device.driver.is_some() { train() } else { with_a_core_free(train)? }
        })
        .map(|()| out)
    };
    post.spawn("training", work, Report::TrainingEnded);
}

/// Does an order's work and writes down how it ended, even where it broke: no order stays marked as running.
fn accounted<T>(claim: Option<Claim>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = guarded(work);
    let written = claim.map_or(Ok(()), |claim| claim.finish(&result));
    // Why the work failed is what counts.
    result.and_then(|value| written.map(|()| value))
}

/// On the CPU one core stays free, or the window would wait for its turn.
fn with_a_core_free<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    device::on_workers("training", device::cores().saturating_sub(1).max(1), work)
}

/// An adapter that is about to be taught anew stays as it was under another name.
fn keep_earlier(out: &Path) -> Result<()> {
    if !out.is_file() {
        return Ok(());
    }
    let folder = out.with_file_name("earlier");
    let stem = stem(out);
    let free = (1..=MOST_EARLIER).map(|n| folder.join(format!("{stem}-{n}.safetensors"))).find(|path| !path.exists());
    let Some(free) = free else { return Ok(()) };
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::copy(out, &free))
        .map_err(|e| Error::io("keep the earlier adapter", &free, &e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter;
    use crate::engine::queue::{Order, Queue, State};
    use crate::engine::session::Lesson;

    #[test]
    fn an_order_whose_training_broke_says_so_and_can_be_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::open(folder.path().join("queue"));
        let training = Training {
            lessons: vec![Lesson::new("<a>", None)],
            method: adapter::method("lora").unwrap(),
            changes: Vec::new(),
            slot: None,
            project: None,
            seed: 0,
            out: folder.path().join("a.safetensors"),
            resume: false,
            stamp: false,
            wishes: None,
        };
        let id = queue.add(&Order::new("starter", &[folder.path().to_path_buf()], &training).unwrap()).unwrap().id;
        let claim = queue.take_next().unwrap();
        assert!(claim.is_some());
        let error = accounted::<()>(claim, || panic!("index 3 of 2")).unwrap_err();
        assert!(error.what.contains("index 3 of 2"));
        let order = queue.list().unwrap().remove(0).order.unwrap();
        assert_eq!(order.state, State::Failed);
        assert!(order.error.unwrap().contains("index 3 of 2"));
        queue.retry(&id).unwrap();
        assert!(queue.take_next().unwrap().is_some());
    }
}
