//! Teaching a classifier: a data set in, what it has learnt out; saves, resumes, stops.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::engine::device::{self, read};
use crate::engine::event::{Event, Watch};
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::metadata::RUN;
use crate::engine::io::{Checkpoint, atomic, peft, png};
use crate::engine::random::Philox;
use crate::engine::train::checkpoint::{self, Progress};
use crate::engine::train::numbers::{Numbers, Unread};
use crate::engine::train::order::{Balance, Order};
use crate::engine::train::step::{Rates, Trainee};
use crate::engine::train::{beside, file};
use crate::engine::vision::confusion::Confusion;
use crate::engine::vision::job::Job;
use crate::engine::vision::lesson::{Pictures, head};
use crate::engine::vision::{Learnt, learnt};
use crate::engine::{Error, Result};

/// A stream of its own: which pictures are mirrored.
const MIRROR: u32 = u32::from_be_bytes(*b"flip");

/// Steps between readbacks of the loss on a GPU: each waits for the queue to drain.
const GPU_READBACK: usize = 10;

/// What teaching leaves.
pub struct Taught {
    /// One for each step; empty when the run was finished already.
    pub losses: Vec<f32>,
    /// How many numbers were trained.
    pub parameters: usize,
    /// Layers with an adapter.
    pub layers: usize,
    /// On the pictures kept out, with its picture; `None` when the run was finished already.
    pub confusion: Option<(Confusion, PathBuf)>,
}

impl Job<'_> {
    /// Teaches, and writes `out` and `OUT.confusion.png` when it is whole. Returns at once if `resume` finds the finished
    /// file.
    pub fn run(&self, watch: &mut Watch<'_>) -> Result<Taught> {
        let fingerprint = self.fingerprint()?;
        if self.may_begin(&fingerprint)? {
            checkpoint::remove(&self.out)?;
            watch(Event::note("The run is already finished"))?;
            return Ok(Taught { losses: Vec::new(), parameters: 0, layers: 0, confusion: None });
        }
        for skipped in &self.data.skipped {
            watch(Event::warning(format!("{} is left out. {}", skipped.path.display(), skipped.why)))?;
        }
        let split = self.data.split(self.settings.number("held_out"), self.context.seed);
        let (training, held_out) = (split.training.len(), split.held_out.len());
        let classes = self.data.classes.len();
        watch(Event::note(format!("{classes} classes: {training} pictures to learn from, {held_out} kept out")))?;
        let mut trainee = self.begin()?;
        let restored =
            checkpoint::begin(&self.out, self.resume, &mut trainee, &fingerprint, &self.model.device, watch)?;
        let pictures =
            |places: &[usize]| Pictures::new(self.model, places.iter().map(|&i| &self.data.items[i]).collect());
        let (mut training, mut held_out) = (pictures(&split.training), pictures(&split.held_out));
        if self.method.is_none() {
            training.look(self.settings.flag("flip"), watch)?;
            held_out.look(false, watch)?;
        }
        let so_far = restored.unwrap_or_default();
        let losses = self.train(&mut trainee, &training, &held_out, so_far, &fingerprint, watch)?;

        let measured = held_out.measure(&trainee)?;
        let pairs = held_out.items.iter().map(|item| item.class).zip(measured.taken_for);
        let confusion = Confusion::new(&self.data.classes, pairs);
        let picture = beside(&self.out, ".confusion.png");
        self.learnt(&trainee, &fingerprint)?.save(&self.out, self.model)?;
        png::write(&picture, &confusion.picture(), &BTreeMap::new())?;
        checkpoint::remove(&self.out)?;
        watch(Event::Saved { path: self.out.clone() })?;
        let share = 100.0 * confusion.accuracy();
        watch(Event::note(format!("{share:.1} % of the pictures kept out are right: {}", picture.display())))?;
        Ok(Taught {
            losses,
            parameters: trainee.parameters.iter().map(|p| p.value.shape().num_elements()).sum(),
            layers: trainee.layers.len(),
            confusion: Some((confusion, picture)),
        })
    }

    /// Whether it is finished already; an error where `out` could never be written.
    fn may_begin(&self, fingerprint: &str) -> Result<bool> {
        let is_file = learnt::is_file(&self.out);
        let there = if is_file { self.out.clone() } else { self.out.join(peft::WEIGHTS) };
        let finished =
            || Ok::<_, Error>(Checkpoint::open(&there)?.metadata().get(RUN).is_some_and(|run| run == fingerprint));
        if self.resume && there.is_file() && finished()? {
            return Ok(true);
        }
        if is_file {
            atomic::may_become_a_file(&self.out)?;
        } else if self.out.exists() {
            let advice = "Choose a name that is not taken yet, or one that ends in .safetensors, which may be replaced";
            return Err(Error::new("There is something of this name already", advice).at(&self.out));
        }
        for folder in [atomic::folder_of(&self.out), &checkpoint::folder(&self.out)] {
            atomic::sweep(folder);
        }
        Ok(false)
    }

    /// The losses of all steps.
    fn train(
        &self,
        trainee: &mut Trainee,
        training: &Pictures<'_>,
        held_out: &Pictures<'_>,
        mut so_far: Progress,
        fingerprint: &str,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<f32>> {
        let (settings, random) = (&self.settings, Philox::new(self.context.seed));
        let (steps, batch) = (settings.integer("steps"), settings.integer("batch"));
        let order = Order { groups: vec![vec![(0..training.items.len()).collect()]], balance: Balance::Pictures };
        let readback = if self.model.device == device::cpu() { 1 } else { GPU_READBACK };
        let every = |name: &str, done: usize| settings.integer(name) > 0 && done.is_multiple_of(settings.integer(name));
        let save_after = Duration::from_secs_f64(settings.number("save_minutes") * 60.0);
        watch(Event::Stage { name: "training".into(), total: steps })?;
        let (mut last_save, mut unread) = (Instant::now(), Vec::new());
        for step in so_far.losses.len()..steps {
            if let Some(awake) = trainee.adapter.awake(step, trainee.layers.len(), &random) {
                trainee.wake(&awake);
            }
            let rows = order.batch(&random, batch, step).rows;
            let mirror = random.stream(MIRROR).uniform(step as u32, batch);
            let mirrored = |draw: f32| settings.flag("flip") && draw < 0.5;
            let shown: Vec<_> = rows.into_iter().zip(mirror.into_iter().map(mirrored)).collect();
            let (numbers, gradients) = Unread::of(training.gradients(trainee, &shown)?);
            unread.push(numbers);

            let done = step + 1;
            let measures = every("validate_every", done);
            let saves = every("save_every", done) || last_save.elapsed() > save_after;
            let mut go_on = Ok(());
            if measures || saves || done == steps || unread.len() >= readback {
                for numbers in Numbers::read(std::mem::take(&mut unread))? {
                    go_on = go_on.and(watch(self.report(numbers, &mut so_far.losses, trainee)?));
                }
            }
            let lr = self.lr() * cosine(step, steps);
            let rates =
                Rates { adapter: lr, token: 0.0, decay: settings.number("decay"), clip: settings.number("clip") };
            trainee.update(gradients, rates);
            if measures && go_on.is_ok() {
                go_on = watch(Event::Steady { step: done, loss: held_out.measure(trainee)?.loss });
            }
            if done < steps && (saves || go_on.is_err()) {
                checkpoint::save(&self.out, trainee, &so_far, fingerprint)?;
                last_save = Instant::now();
            }
            go_on?;
        }
        // The last losses were finite, but the update after them may not have been.
        match trainee.largest()? {
            (name, largest) if !largest.is_finite() => Err(unstable(so_far.losses.len(), name)),
            _ => Ok(so_far.losses),
        }
    }

    /// Keeps a step's loss and tells of it.
    fn report(&self, numbers: Numbers, losses: &mut Vec<f32>, trainee: &Trainee) -> Result<Event> {
        let (step, total) = (losses.len() + 1, self.settings.integer("steps"));
        if !numbers.finite() {
            return Err(unstable(step, trainee.largest()?.0));
        }
        let Numbers { loss, prior, charged, gradient } = numbers;
        losses.push(loss);
        Ok(Event::Step { step, total, loss, prior, charged, gradient, rate: self.lr() * cosine(step - 1, total) })
    }

    fn learnt(&self, trainee: &Trainee, fingerprint: &str) -> Result<Learnt> {
        let values = trainee.values();
        let mut changes = LoraFile { path: self.out.clone(), dtype: Some(self.dtype()), ..LoraFile::default() };
        for trained in &trainee.layers {
            let (layer, weight) = (&self.model.layers[trained.id.0], &self.model.weights[trained.id.0]);
            file::store(&mut changes, trainee, trained, &values, layer, weight)?;
        }
        changes.metadata = self.metadata(trainee.adapter.as_ref(), fingerprint);
        let head = head(&values);
        Ok(Learnt {
            head_weight: read(head.weight_oi)?,
            head_bias: read(head.bias)?,
            classes: self.data.classes.clone(),
            changes,
        })
    }
}

/// What the rate is multiplied by at `step`, counted from 0.
fn cosine(step: usize, steps: usize) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos())
}

fn unstable(step: usize, name: &str) -> Error {
    Error::new(
        format!("Training became unstable at step {step}: the numbers ran away, furthest in {name}"),
        "Lower lr; the last saved state and any earlier file are untouched",
    )
}
