//! The queue as the window asks for it: orders are added, moved and taken where the window is not held up.

use std::path::PathBuf;

use crate::engine::Result;
use crate::engine::project::ConceptEntry;
use crate::engine::queue::{self, Claim, Order, Queue, State};
use crate::engine::session::{Lesson, Training};
use crate::ui::act::model_name;
use crate::ui::app::App;
use crate::ui::work::Report;

impl App {
    /// Writes the form as an order of the queue.
    pub(super) fn enqueue(&self) {
        let (concepts, training) = match self.studio.asked() {
            Ok(asked) => asked,
            Err(error) => return self.post.send(Report::Done(Err(error))),
        };
        let model = model_name(&self.studio.project.model, &self.studio.path);
        let entries = self.studio.queue.entries.iter().filter_map(|entry| entry.order.as_ref().ok());
        let waiting: Vec<PathBuf> = entries
            .filter(|order| matches!(order.state, State::Waiting | State::Running))
            .map(|order| order.out.clone())
            .collect();
        let out = self.studio.out(&concepts, training.method.name, &waiting);
        let folders: Vec<_> = concepts.iter().map(|concept| self.studio.placed(&concept.folder)).collect();
        let training = Training { out, ..training };
        let queue = self.queue();
        let work = move || {
            let entry = queue?.add(&Order::new(&model, &folders, &training)?)?;
            Ok(format!("{} waits in the queue", entry.id))
        };
        self.errands.run(work, Report::Done);
        self.list_queue();
    }

    /// Takes the next order of the queue, if nothing is taught at the moment.
    pub(in crate::ui) fn run_queue(&mut self) {
        if self.studio.is_training() {
            return;
        }
        self.studio.queue.runs = true;
        let queue = self.queue();
        self.errands.run(move || queue?.take_next(), Report::Taken);
        self.list_queue();
    }

    pub(super) fn taken(&mut self, taken: Result<Option<Claim>>) {
        match taken {
            // Let go of, it waits again.
            Ok(Some(_)) if self.studio.is_training() => self.list_queue(),
            Ok(Some(claim)) => self.begin_order(claim),
            Ok(None) => {
                self.studio.queue.runs = false;
                self.studio.log.note("The queue is empty");
            }
            Err(error) => {
                self.studio.queue.runs = false;
                self.studio.log.error(&error);
            }
        }
    }

    fn begin_order(&mut self, claim: Claim) {
        let order = claim.order.clone();
        match order.training() {
            Ok(training) => {
                let entry = |(folder, lesson): (&PathBuf, &Lesson)| {
                    let folder = self.studio.named(folder);
                    let known = self.studio.project.concepts.iter().find(|entry| entry.folder == folder);
                    known.cloned().unwrap_or_else(|| ConceptEntry {
                        name: claim.id.clone(),
                        folder,
                        token: lesson.token.clone(),
                        class: lesson.class_word.clone().unwrap_or_default(),
                    })
                };
                let entries: Vec<_> = order.concepts().zip(&training.lessons).map(entry).collect();
                let folders = order.concepts().cloned().collect();
                let open = model_name(&self.studio.project.model, &self.studio.path);
                let model = Some(order.model.clone()).filter(|model| *model != open);
                self.begin(&entries, folders, model, training, Some(claim));
            }
            Err(error) => {
                self.studio.log.error(&error);
                self.errands.run(move || claim.finish::<()>(&Err(error)), Report::Written);
                self.run_queue();
            }
        }
    }

    pub(super) fn change_queue(&self, change: impl FnOnce(&Queue) -> Result<()> + Send + 'static) {
        let queue = self.queue();
        self.errands.run(move || change(&queue?), Report::Written);
        self.list_queue();
    }

    /// Reads the queue's folder: another program may have changed it.
    pub(in crate::ui) fn list_queue(&self) {
        if let Ok(queue) = self.queue() {
            self.errands.run(move || queue.list(), Report::Queue);
        }
    }

    fn queue(&self) -> Result<Queue> {
        let folder = self.queue_folder.clone().map_or_else(queue::default_folder, Ok)?;
        Ok(Queue::open(folder))
    }
}
