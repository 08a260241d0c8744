//! Small works on files, one after the other as they were asked for: no lock and no slow disk holds a frame, and what
//! was saved, moved and listed happened in that order.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::engine::Result;
use crate::ui::work::{Post, Report, guarded};

type Errand = Box<dyn FnOnce() + Send>;

pub struct Errands {
    post: Post,
    /// Taken when no more will come.
    sender: Option<Sender<Errand>>,
    thread: Option<JoinHandle<()>>,
}

impl Errands {
    #[expect(clippy::disallowed_methods, reason = "a bounded channel would hold the frame that asks")]
    pub fn start(post: &Post) -> Self {
        let (sender, receiver) = channel::<Errand>();
        let work = move || receiver.into_iter().for_each(|errand| errand());
        let thread = std::thread::Builder::new().name("errands".into()).spawn(work).ok();
        Self { post: post.clone(), sender: Some(sender), thread }
    }

    /// Does `work` after what was asked for before, and reports what `report` makes of it.
    pub fn run<T: 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        report: impl FnOnce(Result<T>) -> Report + Send + 'static,
    ) {
        let post = self.post.clone();
        let errand: Errand = Box::new(move || post.send(report(guarded(work))));
        let sent = self.sender.as_ref().map(|sender| sender.send(errand));
        // Without its thread, late is better than never.
        if let Some(Err(unsent)) = sent {
            (unsent.0)();
        }
    }
}

impl Drop for Errands {
    /// Waits until all is written.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A panic in an errand was its report.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Error;

    #[test]
    fn errands_are_done_in_their_order_and_all_of_them() {
        let (post, reports) = Post::new(&egui::Context::default());
        let errands = Errands::start(&post);
        for i in 0..50 {
            let work = move || match i {
                7 => panic!("errand 7"),
                8 => Err(Error::new("errand 8", "")),
                _ => Ok(format!("errand {i}")),
            };
            errands.run(work, Report::Done);
        }
        drop(errands);
        let said: Vec<String> = reports
            .try_iter()
            .map(|report| match report {
                Report::Done(Ok(text)) => text,
                Report::Done(Err(error)) => error.what,
                _ => String::new(),
            })
            .collect();
        assert_eq!(said.len(), 50, "{said:?}");
        assert!((0..50).all(|i| said[i].contains(&format!("errand {i}"))), "{said:?}");
    }
}
