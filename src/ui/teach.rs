//! Training, as the form asks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::adapter;
use crate::engine::concept::{self, Trigger};
use crate::engine::model::prompt;
use crate::engine::project::{ConceptEntry, Together};
use crate::engine::queue::Claim;
use crate::engine::session::{self, Lesson, Training};
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::preflight::Preflight;
use crate::ui::run::Run;
use crate::ui::studio::Studio;
use crate::ui::work::training::Job;
use crate::ui::work::{painter, training};

/// Samples on the way where the form does not say how many steps lie between them.
const SAMPLES: usize = 8;

impl Studio {
    /// What the form asks for, with the concepts it teaches.
    pub fn asked(&self) -> Result<(Vec<ConceptEntry>, Training)> {
        let form = &self.project.training;
        let entry = |folder: &Path| {
            self.project.concepts.iter().find(|entry| entry.folder == folder).cloned().ok_or_else(|| {
                Error::usage("No concept is chosen", "Choose one above, or drop a folder of pictures onto the window")
            })
        };
        let first = Together { concept: form.concept.clone(), repeats: form.repeats, weight: form.weight };
        let (mut concepts, mut lessons) = (Vec::new(), Vec::new());
        for Together { concept, repeats, weight } in std::iter::once(&first).chain(&form.together) {
            let entry = entry(concept)?;
            let class_word = Some(entry.class.clone()).filter(|class| !class.is_empty());
            lessons.push(Lesson { token: entry.token.clone(), class_word, repeats: *repeats, weight: *weight });
            concepts.push(entry);
        }
        session::check(&lessons)?;
        let method = adapter::method(&form.method)?;
        let mut changes: Vec<_> = form.changes.clone().into_iter().collect();
        let (_, settings) = session::settings(method, &changes)?;
        if !form.changes.contains_key("keep_every") {
            changes.push(("keep_every".into(), settings.integer("steps").div_ceil(SAMPLES).to_string()));
        }
        let training = Training {
            lessons,
            method,
            changes,
            slot: None,
            project: Some(self.path.clone()),
            seed: form.seed,
            out: self.out(&concepts, &form.method, &[]),
            resume: false,
            stamp: false,
            wishes: None,
        };
        Ok((concepts, training))
    }

    /// Where the adapter of these concepts goes: one file for each method, and never that of another concept or one of
    /// `taken`.
    pub(super) fn out(&self, concepts: &[ConceptEntry], method: &str, taken: &[PathBuf]) -> PathBuf {
        let name: String = together(concepts).chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let name = if method == "orthogonal" { name } else { format!("{name}-{method}") };
        let folder = self.placed(Path::new("adapters"));
        let file = |n: usize| match n {
            1 => folder.join(format!("{name}.safetensors")),
            n => folder.join(format!("{name}-{n}.safetensors")),
        };
        let others = |path: &PathBuf| {
            let file = self.named(path);
            let entry = self.project.adapters.iter().find(|entry| entry.file == file);
            entry.is_some_and(|entry| entry.concept.as_ref().is_some_and(|folder| *folder != concepts[0].folder))
        };
        (1..=taken.len() + self.project.adapters.len() + 1)
            .map(file)
            .find(|path| !taken.contains(path) && !others(path))
            .unwrap_or_else(|| file(1))
    }

    /// Whether a training of the form was stopped and can go on.
    pub fn can_go_on(&self) -> bool {
        self.asked().is_ok_and(|(_, training)| self.begun.as_ref() == Some(&training.out))
    }

    /// What a sample is asked for: the model's own words with the token in their place.
    fn sample_prompt(&self, token: &str, class: &str) -> String {
        let template =
            self.opened.ready().map_or_else(|| "{token} {class}".into(), |with| session::template(&with.model));
        prompt::literal(&concept::caption(None, &template, &Trigger { token: token.into(), class_word: class.into() }))
    }
}

impl App {
    /// Teaches what the form asks for; with `resume`, from where a stopped training of it was.
    pub(super) fn train(&mut self, resume: bool) {
        if self.studio.is_training() {
            return;
        }
        let refusal = self.studio.preflight.as_ref().and_then(Preflight::refusal);
        match self.studio.asked().and_then(|asked| refusal.map_or(Ok(asked), Err)) {
            Ok((concepts, training)) => {
                let folders = concepts.iter().map(|concept| self.studio.placed(&concept.folder)).collect();
                self.begin(&concepts, folders, None, Training { resume, ..training }, None);
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    /// Starts a training, of the form or of an order of the queue.
    pub(super) fn begin(
        &mut self,
        entries: &[ConceptEntry],
        concepts: Vec<PathBuf>,
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
        // Samples show the first of several.
        let concept = &entries[0];
        let prompt = self.studio.sample_prompt(&concept.token, &concept.class);
        let belongs = model.is_none() && training.project.as_ref() == Some(&self.studio.path);
        let key = self.studio.preflight.as_ref().filter(|_| claim.is_none()).map(|preflight| preflight.key.clone());
        let mut run = Run::new(together(entries), training.out.clone(), concept.folder.clone(), prompt, steps);
        (run.belongs, run.in_slots, run.key, run.token) = (belongs, in_slots, key, concept.token.clone());
        run.leaves = training.method.file;
        let control = Arc::clone(&run.control);
        self.studio.run = Some(run);
        self.studio.looked_at = None;
        self.studio.pace.clear();
        self.painter.drop_later(|tag| !matches!(tag, painter::Tag::Strip { .. }));
        training::start(Job { with, model, concepts, training, claim }, control, &self.post);
    }
}

/// What concepts are called together.
fn together(concepts: &[ConceptEntry]) -> String {
    concepts.iter().map(|concept| &*concept.name).collect::<Vec<_>>().join(" and ")
}
