//! One order after the other.

use crate::engine::error::Kind;
use crate::engine::event::{Event, Watch};
use crate::engine::model::StableDiffusion;
use crate::engine::queue::{Order, Queue};
use crate::engine::session::Session;
use crate::engine::{Error, Result};

/// How a run of the queue ended, by id.
#[derive(Debug, Default)]
pub struct Ran {
    pub done: Vec<String>,
    pub failed: Vec<(String, Error)>,
}

impl Queue {
    /// Teaches what waits until nothing does. A model stays open while the next order names the same one.
    pub fn run(&self, session: &Session, watch: &mut Watch<'_>) -> Result<Ran> {
        let mut open: Option<(String, StableDiffusion)> = None;
        let teach = |order: &Order, watch: &mut Watch<'_>| {
            let training = order.training()?;
            let concepts = order.concepts().map(|folder| session.concept(folder)).collect::<Result<Vec<_>>>()?;
            // The old one goes first: there may not be memory for two.
            let (name, model) = match open.take().filter(|(name, _)| *name == order.model) {
                Some(open) => open,
                None => (order.model.clone(), session.open_model(&order.model, watch)?),
            };
            let (_, model) = &*open.insert((name, model));
            session.train(model, &concepts, &training, watch).map(drop)
        };
        self.each(teach, watch)
    }

    /// Calls `teach` with one waiting order after the other, those among them that are added meanwhile. An order that
    /// fails is marked and the next one taken; when one is cancelled it waits again, and nothing more is taken.
    pub fn each(
        &self,
        mut teach: impl FnMut(&Order, &mut Watch<'_>) -> Result<()>,
        watch: &mut Watch<'_>,
    ) -> Result<Ran> {
        for entry in self.list()? {
            if let Err(error) = entry.order {
                watch(Event::warning(format!("{} is passed over: {error}", entry.id)))?;
            }
        }
        let mut ran = Ran::default();
        while let Some(claim) = self.take_next()? {
            let (id, order) = (claim.id.clone(), claim.order.clone());
            let result = watch(Event::note(format!("{id}: {} from {}", order.token, order.concept.display())))
                .and_then(|()| teach(&order, watch));
            claim.finish(&result)?;
            match result {
                Ok(()) => ran.done.push(id),
                Err(error) if error.kind == Kind::Cancelled => return Err(error),
                Err(error) => {
                    let said = watch(Event::warning(format!("{id} failed: {error}")));
                    ran.failed.push((id, error));
                    said?;
                }
            }
        }
        Ok(ran)
    }
}
