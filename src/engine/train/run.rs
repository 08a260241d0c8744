//! The training loop: pictures in, adapter file out; saves, resumes, stops.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::adapter::{Adapter, Spot, target};
use crate::engine::diffusion::Schedule;
use crate::engine::event::{Event, Watch};
use crate::engine::io::atomic;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::metadata::{RUN, STEP};
use crate::engine::random::Philox;
use crate::engine::train::average::Average;
use crate::engine::train::checkpoint::Progress;
use crate::engine::train::config::Config;
use crate::engine::train::course::Course;
use crate::engine::train::data::{self, Data};
use crate::engine::train::job::{Job, Subject};
use crate::engine::train::live::Live;
use crate::engine::train::numbers::{Numbers, Unread};
use crate::engine::train::steady::Steady;
use crate::engine::train::step::{Group, Part, Rates, Trainee};
use crate::engine::train::wishes::{Wished, Wishes};
use crate::engine::train::{accumulate, checkpoint, keep, samples};
use crate::engine::{Error, Result};

/// Stream of the first layer's random numbers; those below belong to sampling and to the batches.
const INIT: u32 = 1 << 16;

/// Steps between readbacks of the loss on a GPU: each waits for the queue to drain.
const GPU_READBACK: usize = 10;

/// What a run leaves.
pub struct Trained {
    pub file: LoraFile,
    /// One for each step; empty when the run was finished already.
    pub losses: Vec<f32>,
    /// How many numbers were trained.
    pub parameters: usize,
}

impl Job<'_> {
    /// Trains, and writes `out` when it is whole. Returns at once if `resume` finds the finished file.
    pub fn run(&self, watch: &mut Watch<'_>) -> Result<Trained> {
        atomic::may_become_a_file(&self.out)?;
        // This run may not come to write into each of them again.
        for folder in [atomic::folder_of(&self.out), &checkpoint::folder(&self.out), &keep::folder(&self.out)] {
            atomic::sweep(folder);
        }
        let config = Config::new(&self.settings, self.method, self.model)?;
        let adapter: Arc<dyn Adapter> = (self.method.build)(&self.method_settings, &self.context)?.into();
        let fingerprint = self.fingerprint()?;
        if self.resume && self.out.is_file() {
            let file = LoraFile::open(&self.out)?;
            // A step that was made the adapter does not end a run that can still go on.
            let on_the_way = file.metadata.contains_key(STEP) && checkpoint::exists(&self.out);
            if file.metadata.get(RUN) == Some(&fingerprint) && !on_the_way {
                // Left where the run was killed between its last two acts.
                checkpoint::remove(&self.out)?;
                watch(Event::note("The run is already finished"))?;
                return Ok(Trained { file, losses: Vec::new(), parameters: 0 });
            }
        }
        let mut trainee = self.begin(&config, Arc::clone(&adapter))?;
        trainee.average = config.ema.map(|decay| Average::new(decay, trainee.values()));
        let restored =
            checkpoint::begin(&self.out, self.resume, &mut trainee, &fingerprint, &self.model.device, watch)?;
        if restored.is_none() {
            keep::remove(&self.out)?;
            samples::remove(&self.out)?;
        }
        if let Some(decay) = config.ema {
            let text = format!("Files, samples and validation are of the moving average with decay {decay}");
            watch(Event::note(text))?;
        }
        let data = Data::prepare(self, &config, watch)?;
        let Progress { losses, course } =
            Run::new(self, &config, &data, &fingerprint)?.train(&mut trainee, restored.unwrap_or_default(), watch)?;

        if let Some((step, _)) = course.best().filter(|_| losses.len() < config.steps) {
            // Ended early: the best is the result.
            keep::keep(&self.out, step)?;
        } else {
            let file = self.file(&config, &trainee.averaged(), &fingerprint, config.steps)?;
            if file.modules().is_empty() {
                let text = "No layer has learnt anything that the method keeps: the file holds the word alone";
                watch(Event::warning(text))?;
            }
            file.save(&self.out)?;
        }
        checkpoint::remove(&self.out)?;
        watch(Event::Saved { path: self.out.clone() })?;
        // What was written, with the hashes that saving adds.
        let parameters = trainee.parameters.iter().map(|p| p.value.shape().num_elements()).sum();
        Ok(Trained { file: LoraFile::open(&self.out)?, losses, parameters })
    }

    /// Every layer's tensors and the tokens before the first step.
    fn begin(&self, config: &Config, adapter: Arc<dyn Adapter>) -> Result<Trainee> {
        let mut trainee = Trainee::new(adapter);
        trainee.recompute = config.recompute;
        trainee.clip_skip = config.clip_skip;
        trainee.token_layers = config.token_layers;
        let random = Philox::new(self.context.seed);
        let targets = target::select(&config.targets, &self.model.layers)?;
        for (place, &id) in targets.iter().enumerate() {
            let layer = self.model.layer(id);
            let stream = INIT + u32::try_from(id.0).unwrap_or(u32::MAX - INIT);
            let spot = Spot {
                layer,
                weight: self.model.weight(id),
                depth: place as f32 / targets.len() as f32,
                random: random.stream(stream),
            };
            let tensors = trainee.adapter.begin(&spot)?;
            trainee.add_layer(id, &layer.module(), tensors, &self.model.device);
        }
        for layer in &trainee.layers {
            for (name, part) in layer.names.iter().zip(&layer.tensors) {
                if let Part::Trained(index) = part {
                    trainee.parameters[*index].pace = config.pace(self.model.layer(layer.id).part, name);
                }
            }
        }
        for Subject { trigger, .. } in &self.subjects {
            let start = data::start(self.model, &trigger.class_word, config)?;
            let index = trainee.add(trigger.token.clone(), start, Group::Token);
            trainee.tokens.push(index);
        }
        Ok(trainee)
    }
}

/// A job under way.
struct Run<'a> {
    job: &'a Job<'a>,
    config: &'a Config,
    data: &'a Data,
    fingerprint: &'a str,
    schedule: Schedule,
    steady: Option<Steady>,
}

/// What a step does besides training.
struct Due {
    /// By plan or by wish.
    files: Wished,
    steady: bool,
    look: bool,
    sample: bool,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job<'a>, config: &'a Config, data: &'a Data, fingerprint: &'a str) -> Result<Self> {
        let schedule = Schedule::new(&job.model.schedule)?;
        let steady = (config.validate_every > 0).then(|| Steady::new(data, &schedule, config.batch));
        Ok(Self { job, config, data, fingerprint, schedule, steady })
    }

    fn train(&self, trainee: &mut Trainee, mut so_far: Progress, watch: &mut Watch<'_>) -> Result<Progress> {
        let Self { job, config, .. } = *self;
        let random = Philox::new(job.context.seed);
        let on_cpu = job.model.device == crate::engine::device::cpu();
        let readback = if on_cpu { 1 } else { GPU_READBACK };
        if !on_cpu && so_far.losses.len() < config.steps {
            let first = self.data.batch(job, config, &self.schedule, trainee, (so_far.losses.len(), 0));
            trainee.prepare(job.model, &first, watch)?;
        }
        watch(Event::Stage { name: "training".into(), total: config.steps })?;
        let begun = Instant::now();
        // A watch may take its time, or pause the run by blocking: none of that is training.
        let told = Cell::new(Duration::ZERO);
        let mut tell = |event: Event| {
            let start = Instant::now();
            let answer = watch(event);
            told.set(told.get() + start.elapsed());
            answer
        };
        let (mut last_save, mut live) = (begun, Live::new(config.spectrum_every));
        let mut unread: Vec<Unread> = Vec::new();
        for step in so_far.losses.len()..config.steps {
            if self.is_over(&so_far.course) {
                break;
            }
            if let Some(awake) = trainee.adapter.awake(step, trainee.layers.len(), &random) {
                trainee.wake(&awake);
            }
            let (numbers, gradients) = Unread::of(accumulate::mean(config.accumulate, |part| {
                let batch = self.data.batch(job, config, &self.schedule, trainee, (step, part));
                trainee.gradients(job.model, &self.schedule, &batch)
            }));
            unread.push(numbers);

            let done = step + 1;
            let look = live.due(done, config.steps, begun.elapsed().saturating_sub(told.get()));
            let due = self.due(done, last_save, look);
            let mut go_on = Ok(());
            // Before the update, which would spread a NaN to every layer and hide where it came from.
            if due.any() || done == config.steps || unread.len() >= readback {
                for numbers in Numbers::read(std::mem::take(&mut unread))? {
                    let event = report(numbers, &mut so_far.losses, trainee, config)?;
                    go_on = go_on.and(tell(event));
                }
            }
            let rate = config.rate(step);
            let rates = Rates {
                adapter: config.lr * rate,
                token: config.token_lr * rate,
                decay: config.decay,
                clip: config.clip,
            };
            trainee.update(gradients, rates);
            if due.files.keep {
                let path = self.keep(done, trainee, keep::file)?;
                go_on = go_on.and(tell(Event::Kept { step: done, path }));
                for step in keep::thin(&job.out, config.keep_last)? {
                    go_on = go_on.and(tell(Event::Dropped { step }));
                }
            }
            // What decides anything is measured even where the run is to stop: going on, it would not come again.
            if let Some(steady) = self.steady.as_ref().filter(|_| due.steady && (go_on.is_ok() || config.keeps_best()))
            {
                let start = Instant::now();
                let loss = steady.loss(job.model, &trainee.averaged())?;
                tracing::debug!("the steady loss of step {done} took {:?}", start.elapsed());
                go_on = go_on.and(tell(Event::Steady { step: done, loss }));
                if config.keeps_best() && so_far.course.push(done, loss) {
                    let path = self.keep(done, trainee, keep::best_file)?;
                    keep::forget_worse(&job.out, done)?;
                    go_on = go_on.and(tell(Event::Best { step: done, loss, path }));
                }
            }
            if due.sample && go_on.is_ok() {
                go_on = samples::make(job, config, &trainee.averaged(), done, &mut tell);
            }
            if due.look
                && go_on.is_ok()
                && let Some(spectrum) = live.look(done, &trainee.averaged(), job.model)?
            {
                go_on = tell(Event::Spectrum(spectrum));
            }
            if done < config.steps && (due.files.save || go_on.is_err()) {
                checkpoint::save(&job.out, trainee, &so_far, self.fingerprint)?;
                last_save = Instant::now();
            }
            go_on?;
        }
        tracing::debug!("looks at spectra took {:?} of {:?}", live.spent, begun.elapsed().saturating_sub(told.get()));
        // The last losses were finite, but the update after them may not have been.
        stable(so_far.losses.len(), trainee)?;
        if let Some((best, _)) = so_far.course.best().filter(|_| so_far.losses.len() < config.steps) {
            let done = so_far.losses.len();
            watch(Event::note(format!(
                "Ended after step {done}: the steady loss has not fallen since step {best}, whose adapter is the result"
            )))?;
        }
        Ok(so_far)
    }

    /// Whether patience has run out.
    fn is_over(&self, course: &Course) -> bool {
        self.config.patience.is_some_and(|patience| course.stalls(patience))
    }

    /// What is to be done after step `done`.
    fn due(&self, done: usize, last_save: Instant, look: bool) -> Due {
        let config = self.config;
        let wished = self.job.wishes.as_deref().map(Wishes::take).unwrap_or_default();
        let every = |n: usize| n > 0 && done.is_multiple_of(n);
        let long_ago = last_save.elapsed() > Duration::from_secs_f64(config.save_minutes * 60.0);
        Due {
            files: Wished {
                save: wished.save || every(config.save_every) || long_ago,
                keep: wished.keep || every(config.keep_every),
            },
            steady: every(config.validate_every),
            look,
            sample: every(config.sample_every),
        }
    }

    /// Writes the adapter as it is now into the file that `name` names.
    fn keep(&self, step: usize, trainee: &Trainee, name: fn(&Path, usize) -> PathBuf) -> Result<PathBuf> {
        stable(step, trainee)?;
        let path = name(&self.job.out, step);
        self.job.file(self.config, &trainee.averaged(), self.fingerprint, step)?.save(&path)?;
        Ok(path)
    }
}

impl Due {
    /// Whether the device has to be waited for anyway.
    fn any(&self) -> bool {
        self.files.save || self.files.keep || self.steady || self.look || self.sample
    }
}

/// Keeps a step's loss and tells of it.
fn report(numbers: Numbers, losses: &mut Vec<f32>, trainee: &Trainee, config: &Config) -> Result<Event> {
    let step = losses.len() + 1;
    if !numbers.finite() {
        return Err(unstable(step, trainee.largest()?.0));
    }
    let Numbers { loss, prior, charged, gradient } = numbers;
    losses.push(loss);
    let rate = config.lr * config.rate(step - 1);
    Ok(Event::Step { step, total: config.steps, loss, prior, charged, gradient, rate })
}

/// Whether the adapter after a step is made of numbers.
fn stable(step: usize, trainee: &Trainee) -> Result<()> {
    match trainee.largest()? {
        (name, largest) if !largest.is_finite() => Err(unstable(step, name)),
        _ => Ok(()),
    }
}

fn unstable(step: usize, name: &str) -> Error {
    Error::new(
        format!("Training became unstable at step {step}: the numbers ran away, furthest in {name}"),
        "Lower lr and token_lr; the last saved state and any earlier file are untouched",
    )
}
