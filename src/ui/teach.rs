//! Training, as the window asks for it: from the form or the queue, with samples on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::adapter;
use crate::engine::adapter::mount::Strength;
use crate::engine::concept::{self, Trigger};
use crate::engine::error::Kind;
use crate::engine::event::Event;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::png;
use crate::engine::preview::Request;
use crate::engine::project::{AdapterEntry, ConceptEntry};
use crate::engine::queue::{Claim, Order, Queue, State};
use crate::engine::session::{self, Training};
use crate::engine::train::{self, checkpoint};
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::preflight::Preflight;
use crate::ui::run::{Origin, Run, RunState, Sample};
use crate::ui::studio::Studio;
use crate::ui::work::training::Job;
use crate::ui::work::{Post, Report, painter, training};

/// Samples on the way where the form does not say how many steps lie between them.
const SAMPLES: usize = 8;
/// Steps of a sample's picture.
const SAMPLE_STEPS: usize = 12;
/// A training that took longer is announced when it ends.
const WORTH_A_NOTICE: f64 = 30.0;

impl Studio {
    /// What the form asks for, with the folder it teaches.
    pub fn asked(&self) -> Result<(ConceptEntry, Training)> {
        let form = &self.project.training;
        let concept = self.project.concepts.iter().find(|entry| entry.folder == form.concept).ok_or_else(|| {
            Error::usage("No concept is chosen", "Choose one above, or drop a folder of pictures onto the window")
        })?;
        let method = adapter::method(&form.method)?;
        let mut changes: Vec<_> = form.changes.clone().into_iter().collect();
        let (_, settings) = session::settings(method, &changes)?;
        if !form.changes.contains_key("keep_every") {
            changes.push(("keep_every".into(), settings.integer("steps").div_ceil(SAMPLES).to_string()));
        }
        let training = Training {
            token: concept.token.clone(),
            class_word: Some(concept.class.clone()).filter(|class| !class.is_empty()),
            method,
            changes,
            slot: None,
            project: Some(self.path.clone()),
            seed: form.seed,
            out: self.out(concept, &form.method, &[]),
            resume: false,
            stamp: false,
            wishes: None,
        };
        Ok((concept.clone(), training))
    }

    /// Where the adapter of a concept goes: one file for each method, and never that of another concept or one of `taken`.
    fn out(&self, concept: &ConceptEntry, method: &str, taken: &[PathBuf]) -> PathBuf {
        let name: String = concept.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let name = if method == "orthogonal" { name } else { format!("{name}-{method}") };
        let folder = self.placed(Path::new("adapters"));
        let file = |n: usize| match n {
            1 => folder.join(format!("{name}.safetensors")),
            n => folder.join(format!("{name}-{n}.safetensors")),
        };
        let others = |path: &PathBuf| {
            let file = self.named(path);
            let entry = self.project.adapters.iter().find(|entry| entry.file == file);
            entry.is_some_and(|entry| entry.concept.as_ref().is_some_and(|folder| *folder != concept.folder))
        };
        (1..=taken.len() + self.project.adapters.len() + 1)
            .map(file)
            .find(|path| !taken.contains(path) && !others(path))
            .unwrap_or_else(|| file(1))
    }

    /// Whether a training of the form was stopped and can go on.
    pub fn can_go_on(&self) -> bool {
        self.asked().is_ok_and(|(_, training)| checkpoint::folder(&training.out).is_dir())
    }

    /// What a sample is asked for: the model's own words with the token in their place.
    fn sample_prompt(&self, token: &str, class: &str) -> String {
        let template =
            self.opened.ready().map_or_else(|| "{token} {class}".into(), |with| session::template(&with.model));
        concept::caption(None, &template, &Trigger { token: token.into(), class_word: class.into() })
    }
}

impl App {
    /// Teaches what the form asks for, or goes on with it.
    pub(super) fn train(&mut self, resume: bool) {
        if self.studio.is_training() {
            return;
        }
        let refusal = self.studio.preflight.as_ref().and_then(Preflight::refusal);
        match self.studio.asked().and_then(|asked| refusal.map_or(Ok(asked), Err)) {
            Ok((concept, training)) => {
                let folder = self.studio.placed(&concept.folder);
                self.begin(concept, folder, None, Training { resume, ..training }, None);
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    fn begin(
        &mut self,
        concept: ConceptEntry,
        folder: PathBuf,
        model: Option<String>,
        training: Training,
        claim: Option<Claim>,
    ) {
        let Some(with) = self.studio.opened.ready().cloned() else {
            self.studio.queue.runs = false;
            self.studio.log.error(&Error::new("No model is open", "Wait until it is, or open another"));
            return;
        };
        let settings = session::settings(training.method, &training.changes);
        let steps = settings.as_ref().map_or(0, |(_, settings)| settings.integer("steps"));
        let has_basis = training.method.fields.iter().any(|field| field.name == "basis");
        let in_slots = has_basis && settings.is_ok_and(|(method, _)| method.text("basis") == "slots");
        let prompt = self.studio.sample_prompt(&concept.token, &concept.class);
        let belongs = model.is_none() && training.project.as_ref() == Some(&self.studio.path);
        let key = self.studio.preflight.as_ref().filter(|_| claim.is_none()).map(|preflight| preflight.key.clone());
        let mut run = Run::new(concept.name, training.out.clone(), concept.folder, prompt, steps);
        (run.belongs, run.in_slots, run.key, run.token) = (belongs, in_slots, key, concept.token);
        let control = Arc::clone(&run.control);
        self.studio.run = Some(run);
        self.studio.looked_at = None;
        self.studio.pace.clear();
        self.painter.drop_later(|tag| !matches!(tag, painter::Tag::Strip { .. }));
        training::start(Job { with, model, concept: folder, training, claim }, control, &self.post);
    }

    /// Writes the form as an order of the queue.
    pub(super) fn enqueue(&mut self) {
        let added = self.studio.asked().and_then(|(concept, training)| {
            let model = super::act::model_name(&self.studio.project.model, &self.studio.path);
            let waiting: Vec<PathBuf> = self
                .studio
                .queue
                .entries
                .iter()
                .filter_map(|entry| entry.order.as_ref().ok())
                .filter(|order| matches!(order.state, State::Waiting | State::Running))
                .map(|order| order.out.clone())
                .collect();
            let out = self.studio.out(&concept, training.method.name, &waiting);
            let training = Training { out, ..training };
            let order = Order::new(&model, &self.studio.placed(&concept.folder), &training)?;
            self.queue()?.add(&order)
        });
        match added {
            Ok(entry) => self.studio.log.note(format!("{} waits in the queue", entry.id)),
            Err(error) => self.studio.log.error(&error),
        }
        self.list_queue();
    }

    /// Takes the next order of the queue, if nothing is taught at the moment.
    pub(super) fn run_queue(&mut self) {
        if self.studio.is_training() {
            return;
        }
        let taken = self.queue().and_then(|queue| queue.take_next());
        match taken {
            Ok(Some(claim)) => {
                self.studio.queue.runs = true;
                self.begin_order(claim);
            }
            Ok(None) => {
                self.studio.queue.runs = false;
                self.studio.log.note("The queue is empty");
            }
            Err(error) => {
                self.studio.queue.runs = false;
                self.studio.log.error(&error);
            }
        }
        self.list_queue();
    }

    fn begin_order(&mut self, claim: Claim) {
        let order = claim.order.clone();
        match order.training() {
            Ok(training) => {
                let folder = self.studio.named(&order.concept);
                let known = self.studio.project.concepts.iter().find(|entry| entry.folder == folder);
                let concept = known.cloned().unwrap_or_else(|| ConceptEntry {
                    name: claim.id.clone(),
                    folder,
                    token: order.token.clone(),
                    class: order.class.clone().unwrap_or_default(),
                });
                let open = super::act::model_name(&self.studio.project.model, &self.studio.path);
                let model = Some(order.model.clone()).filter(|model| *model != open);
                self.begin(concept, order.concept, model, training, Some(claim));
            }
            Err(error) => {
                self.studio.log.error(&error);
                if let Err(error) = claim.finish::<()>(&Err(error)) {
                    self.studio.log.error(&error);
                }
                self.run_queue();
            }
        }
    }

    pub(super) fn change_queue(&mut self, change: impl FnOnce(&Queue) -> Result<()>) {
        if let Err(error) = self.queue().and_then(|queue| change(&queue)) {
            self.studio.log.error(&error);
        }
        self.list_queue();
    }

    /// Reads the queue's folder on a thread: another program may have changed it.
    pub(super) fn list_queue(&self) {
        if let Ok(queue) = self.queue() {
            self.post.spawn("queue", move |_| queue.list(), Report::Queue);
        }
    }

    fn queue(&self) -> Result<Queue> {
        let folder = self.queue_folder.clone().map_or_else(crate::engine::queue::default_folder, Ok)?;
        Ok(Queue::open(folder))
    }

    /// Follows a training.
    pub(super) fn heard_of_training(&mut self, event: Event) {
        let Some(run) = &mut self.studio.run else { return };
        run.hear(&event, std::time::Instant::now());
        if matches!(event, Event::Stage { .. } | Event::Step { step: 1, .. }) {
            // Its slot has been taken in the project's file: saving brings it here.
            self.touch();
        }
        match event {
            Event::Kept { step, path } => {
                let work = move |_: &Post| Ok((step, Arc::new(LoraFile::open(&path)?)));
                self.post.spawn("sample", work, Report::Kept);
            }
            Event::Sampled { step, prompt, path } => {
                let work = move |post: &Post| {
                    let look = painter::texture(&png::read(&path)?, post.ctx());
                    Ok(Sample { step, look: Some(look), from: Origin::Training { prompt } })
                };
                self.post.spawn("sample", work, Report::Sampled);
            }
            _ => {}
        }
    }

    /// Paints the sample of a kept step: from the file, as everybody else will see it.
    pub(super) fn sample_step(&mut self, step: usize, file: Arc<LoraFile>) {
        let (Some(run), Some(with)) = (&self.studio.run, self.studio.opened.ready()) else { return };
        if !run.belongs {
            return;
        }
        let request = Request {
            prompt: run.prompt.clone(),
            steps: SAMPLE_STEPS,
            seed: self.studio.project.preview.seed,
            ..Request::default()
        };
        let mix = vec![(file, Strength::default())];
        self.painter.later(vec![painter::Order {
            tag: painter::Tag::Strip { step },
            with: with.clone(),
            mix,
            request,
        }]);
    }

    pub(super) fn training_ended(&mut self, result: Result<PathBuf>) {
        let Some(run) = &mut self.studio.run else { return };
        let (name, seconds) = (run.name.clone(), run.started.elapsed().as_secs_f64());
        let (measured, token, belongs) = (run.step_seconds, run.token.clone(), run.belongs);
        let key = run.key.take();
        let text = match result {
            Ok(out) => {
                run.state = RunState::Done;
                let (concept, prompt) = (run.concept.clone(), run.prompt.clone());
                let entry = AdapterEntry { name: name.clone(), file: self.studio.named(&out), concept: Some(concept) };
                if belongs {
                    self.add_adapter(entry);
                    // A prompt of the artist's own words stays; one without any taught word would show nothing new.
                    let open = self.studio.adapters.iter().filter_map(|card| card.content.ready());
                    let mut words = open.flat_map(|content| content.file.tokens.keys()).chain([&token]);
                    if !words.any(|word| self.studio.project.preview.prompt.contains(word.as_str())) {
                        self.studio.project.preview.prompt = prompt;
                    }
                }
                if let (Some(key), Some(seconds)) = (key, measured) {
                    self.studio.preferences.step_seconds.insert(key, seconds);
                    self.save_preferences();
                    self.look_ahead();
                }
                format!("{name} is taught, in {}", crate::ui::widgets::words::duration(seconds))
            }
            Err(error) if error.kind == Kind::Cancelled => {
                run.state = RunState::Stopped;
                self.studio.queue.runs = false;
                self.studio.log.note("Training stopped; what it learnt is kept, and “Go on” continues from there");
                self.list_queue();
                return;
            }
            Err(error) => {
                self.studio.log.error(&error);
                let text = format!("Teaching {name} failed: {}", error.what);
                run.state = RunState::Failed(error);
                text
            }
        };
        self.studio.log.note(text.clone());
        if seconds > WORTH_A_NOTICE {
            notice(text);
        }
        self.list_queue();
        if self.studio.queue.runs {
            self.run_queue();
        }
    }

    /// Makes a kept step the adapter.
    pub(super) fn keep_step(&mut self, step: usize) {
        let Some(run) = &self.studio.run else { return };
        let out = run.out.clone();
        let entry =
            AdapterEntry { name: run.name.clone(), file: self.studio.named(&out), concept: Some(run.concept.clone()) };
        match train::keep(&out, step) {
            Ok(()) => {
                self.add_adapter(entry);
                self.studio.log.note(format!("Step {step} is the adapter now"));
            }
            Err(error) => self.studio.log.error(&error),
        }
    }
}

/// A desktop notice. Where nothing shows notices, the log strip has said it already.
fn notice(text: String) {
    let show = move || notify_rust::Notification::new().appname("Triptych").summary("Triptych").body(&text).show().ok();
    std::thread::Builder::new().name("notice".into()).spawn(show).ok();
}
