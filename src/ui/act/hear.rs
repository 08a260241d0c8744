//! What happens on a report of a thread.

use crate::engine::event::Event;
use crate::ui::app::App;
use crate::ui::facts::Facts;
use crate::ui::work::Report;

impl App {
    pub(in crate::ui) fn hear(&mut self, report: Report) {
        match report {
            Report::Shared(device) => self.shared = Some(device),
            // One that was asked for before the last comes too late.
            Report::Opened(opening, _) if opening != self.opening => {}
            Report::Opened(_, opened) => {
                if let Err(error) = &opened {
                    self.studio.log.error(error);
                }
                self.studio.facts = opened.as_ref().ok().map(|opened| Facts::of(&opened.model));
                self.studio.opened = opened.into();
                // What depends on the model's own weights is measured on this one.
                self.meeting_of.clear();
                self.meet();
                self.look_ahead();
                self.paint();
            }
            Report::Concept(folder, content) => {
                if let Err(error) = &content {
                    self.studio.log.error(error);
                }
                for card in self.studio.concepts.iter_mut().filter(|card| card.folder == folder) {
                    card.content = content.clone().into();
                }
            }
            Report::Adapter { path, content, gone } => {
                if let Err(error) = &content {
                    self.studio.log.error(error);
                }
                for card in self.studio.adapters.iter_mut().filter(|card| card.path == path) {
                    (card.content, card.gone) = (content.clone().into(), gone);
                }
                self.meeting_of.clear();
                self.meet();
                self.paint();
            }
            Report::Captioned(written) => self.captioned(written),
            Report::Crop(key, crop) => self.studio.crops.put(key, crop.into()),
            Report::Meeting(files, meeting) => {
                if files == self.meeting_of {
                    self.studio.meeting = Some((files, meeting));
                }
            }
            Report::Training(event) => {
                self.said(&event);
                self.heard_of_training(event);
            }
            Report::Kept(Ok((step, file))) => self.sample_step(step, file),
            Report::Measured(run, step, layers) => self.measured(run, step, layers),
            Report::Chosen(chosen) => self.chosen(chosen),
            Report::ProjectSaved(result) => self.saved(result),
            Report::ProjectSavedAs(result) => self.saved_as(result),
            Report::ProjectOpened(result) => self.project_opened(result),
            Report::Slots(result) => self.slots_changed(result),
            Report::Recipe(result) => self.recipe_opened(result),
            Report::Imported(imported) => self.imported(imported),
            Report::Prompt(result) => self.prompt_opened(result),
            Report::Begun(out, begun) => self.studio.begun = begun.then_some(out),
            Report::Taken(taken) => self.taken(taken),
            Report::Merging(event) => self.heard_of_merge(&event),
            Report::Queue(Ok(entries)) => self.studio.queue.entries = entries,
            Report::TrainingEnded(result) => self.training_ended(result),
            Report::Beginning(path, picture) => self.begun_with(&path, picture),
            Report::Glimpsed(glimpse) => self.glimpsed(glimpse),
            Report::Painted(painted) => self.painted(painted),
            Report::Preparing(preparing) => self.studio.preparing = preparing,
            Report::Do(command) => {
                let ctx = self.post.ctx().clone();
                self.act(command, &ctx);
            }
            Report::NoDialog(question) => self.studio.asking = Some(question),
            Report::Merged(result) => self.merged(result),
            Report::Done(Ok(text)) => self.studio.log.note(text),
            Report::Written(Ok(())) => {}
            Report::Sampled(Ok(sample)) => {
                if let Some(run) = &mut self.studio.run {
                    run.strip.push(sample);
                }
            }
            Report::Sampled(Err(error))
            | Report::Kept(Err(error))
            | Report::Queue(Err(error))
            | Report::Done(Err(error))
            | Report::Written(Err(error)) => self.studio.log.error(&error),
            Report::Said(event) => self.said(&event),
        }
    }

    pub(in crate::ui) fn said(&mut self, event: &Event) {
        match event {
            Event::Note { text } => self.studio.log.note(text),
            Event::Warning { text } => self.studio.log.warn(text),
            Event::Saved { path } => self.studio.log.note(format!("Saved {}", path.display())),
            _ => {}
        }
    }
}
