//! A training as the window follows it: events, samples of the steps, its spectrum, its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::adapter::FileKind;
use crate::engine::adapter::mount::Strength;
use crate::engine::error::Kind;
use crate::engine::event::Event;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::png;
use crate::engine::preview::Request;
use crate::engine::project::AdapterEntry;
use crate::engine::spectrum::adapter::{LayerSpectrum, spectra};
use crate::engine::{Result, train, words};
use crate::ui::app::App;
use crate::ui::run::{Origin, RunState, Sample};
use crate::ui::work::{Post, Report, painter};

/// Steps of a sample's picture.
const SAMPLE_STEPS: usize = 12;
/// A training that took longer is announced when it ends.
const WORTH_A_NOTICE: f64 = 30.0;

impl App {
    /// Follows a training.
    pub(in crate::ui) fn heard_of_training(&mut self, event: Event) {
        let Some(run) = &mut self.studio.run else { return };
        run.hear(&event, Instant::now());
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
        self.measure(step, Arc::clone(&file));
        let (Some(run), Some(with)) = (&self.studio.run, self.studio.opened.ready()) else { return };
        if !run.belongs {
            return;
        }
        let request = Request {
            prompt: run.prompt.clone(),
            clip_skip: file.clip_skip(),
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

    pub(in crate::ui) fn training_ended(&mut self, result: Result<PathBuf>) {
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
                }
                format!("{name} is taught, in {}", words::duration(seconds))
            }
            Err(error) if error.kind == Kind::Cancelled => {
                run.state = RunState::Stopped;
                self.studio.queue.runs = false;
                self.studio.log.note("Training stopped; what it learnt is kept, and “Go on” continues from there");
                self.look_ahead();
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
        self.look_ahead();
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
    pub(super) fn keep_step(&self, step: usize) {
        let Some(run) = &self.studio.run else { return };
        let out = run.out.clone();
        let entry =
            AdapterEntry { name: run.name.clone(), file: self.studio.named(&out), concept: Some(run.concept.clone()) };
        self.post.spawn("keep", move |_| train::keep(&out, step).map(|()| (step, entry)), Report::Chosen);
    }

    pub(super) fn chosen(&mut self, chosen: Result<(usize, AdapterEntry)>) {
        match chosen {
            Ok((step, entry)) => {
                self.add_adapter(entry);
                self.studio.log.note(format!("Step {step} is the adapter now"));
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    /// Whole weights take longer to measure than the steps they would be seen in: the kept steps are, one at a time.
    fn measure(&mut self, step: usize, file: Arc<LoraFile>) {
        let Some(run) = self.studio.run.as_mut().filter(|run| run.leaves == FileKind::Difference) else { return };
        if std::mem::replace(&mut run.is_measuring, true) {
            return;
        }
        let began = run.started;
        self.post.spawn("spectrum", move |_| spectra(&file), move |layers| Report::Measured(began, step, layers));
    }

    pub(super) fn measured(&mut self, began: Instant, step: usize, layers: Result<Vec<LayerSpectrum>>) {
        let Some(run) = self.studio.run.as_mut().filter(|run| run.started == began) else { return };
        run.is_measuring = false;
        match layers {
            Ok(layers) => {
                let narrow = |layer: &LayerSpectrum| layer.singular_values.iter().map(|&s| s as f32).collect();
                let values: Vec<Vec<f32>> = layers.iter().map(narrow).collect();
                run.spectra
                    .hear(step, layers.iter().zip(&values).map(|(layer, s)| (layer.layer.as_str(), s.as_slice())));
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
