//! The training loop: pictures in, adapter file out; saves, resumes, stops.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use crate::engine::adapter::{Adapter, target};
use crate::engine::diffusion::Schedule;
use crate::engine::event::{Event, Watch};
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::io::metadata::RUN;
use crate::engine::random::Philox;
use crate::engine::train::config::Config;
use crate::engine::train::data::{self, Data};
use crate::engine::train::job::Job;
use crate::engine::train::step::{Group, Outcome, Rates, Side, Trainee, read};
use crate::engine::train::{checkpoint, metadata};
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
        if self.out.is_dir() {
            return Err(Error::new("The output is a folder, but a file is to be written", "Name a file inside it")
                .at(&self.out));
        }
        let config = Config::new(&self.settings, self.model)?;
        let adapter = (self.method.build)(&self.method_settings, &self.context)?;
        let fingerprint = self.fingerprint()?;
        if self.resume && self.out.is_file() {
            let file = LoraFile::open(&self.out)?;
            if file.metadata.get(RUN) == Some(&fingerprint) {
                // Left where the run was killed between its last two acts.
                checkpoint::remove(&self.out)?;
                watch(Event::note("The run is already finished"))?;
                return Ok(Trained { file, losses: Vec::new(), parameters: 0 });
            }
        }
        let mut trainee = self.begin(&config, adapter.as_ref())?;
        let restored = match self.resume {
            true => checkpoint::load(&self.out, &mut trainee, &fingerprint, &self.model.device)?,
            false => None,
        };
        match (&restored, self.resume) {
            (Some(losses), _) => watch(Event::note(format!("Resuming after step {}", losses.len())))?,
            (None, true) => watch(Event::note("There is no saved state to resume from: starting afresh"))?,
            (None, false) => checkpoint::remove(&self.out)?,
        }
        let data = Data::prepare(self, &config, watch)?;
        let losses = self.train(&config, &data, &mut trainee, restored.unwrap_or_default(), &fingerprint, watch)?;

        let file = self.file(&config, &trainee, adapter.as_ref(), &fingerprint)?;
        file.save(&self.out)?;
        checkpoint::remove(&self.out)?;
        watch(Event::Saved { path: self.out.clone() })?;
        // What was written, with the hashes that saving adds.
        let parameters = trainee.parameters.iter().map(|p| p.value.shape().num_elements()).sum();
        Ok(Trained { file: LoraFile::open(&self.out)?, losses, parameters })
    }

    fn train(
        &self,
        config: &Config,
        data: &Data,
        trainee: &mut Trainee,
        mut losses: Vec<f32>,
        fingerprint: &str,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<f32>> {
        let schedule = Schedule::new(&self.model.schedule)?;
        let on_cpu = self.model.device == crate::engine::device::cpu();
        let readback = if on_cpu { 1 } else { GPU_READBACK };
        let mut last_save = Instant::now();
        let mut unread: Vec<Outcome> = Vec::new();
        watch(Event::Stage { name: "training".into(), total: config.steps })?;
        for step in losses.len()..config.steps {
            let batch = data.batch(self, config, &schedule, trainee, step);
            let mut outcome = trainee.gradients(self.model, &schedule, &batch);
            let gradients = std::mem::take(&mut outcome.gradients);
            unread.push(outcome);

            let done = step + 1;
            let due = config.save_every > 0 && done % config.save_every == 0
                || last_save.elapsed() > Duration::from_secs_f64(config.save_minutes * 60.0);
            let mut go_on = Ok(());
            // Before the update, which would spread a NaN to every layer and hide where it came from.
            if due || done == config.steps || unread.len() >= readback {
                for outcome in unread.drain(..) {
                    let event = report(&outcome, &mut losses, trainee, config)?;
                    go_on = go_on.and(watch(event));
                }
            }
            let rate = config.rate(step);
            let rates = Rates {
                adapter: config.lr * rate,
                token: config.token_lr * rate,
                decay: config.decay,
                clip: config.clip,
            };
            trainee.update(gradients, done, rates);
            if done < config.steps && (due || go_on.is_err()) {
                checkpoint::save(&self.out, trainee, &losses, fingerprint)?;
                last_save = Instant::now();
            }
            go_on?;
        }
        // The last losses were finite, but the update after them may not have been.
        match trainee.largest()? {
            (name, largest) if !largest.is_finite() => Err(unstable(losses.len(), name)),
            _ => Ok(losses),
        }
    }

    /// Factors and token before the first step.
    fn begin(&self, config: &Config, adapter: &dyn Adapter) -> Result<Trainee> {
        let mut trainee = Trainee { parameters: Vec::new(), layers: Vec::new(), token: None };
        let random = Philox::new(self.context.seed);
        for id in target::select(&config.targets, &self.model.layers)? {
            let layer = self.model.layer(id);
            let stream = INIT + u32::try_from(id.0).unwrap_or(u32::MAX - INIT);
            let factors = adapter.init(layer, &random.stream(stream))?;
            trainee.add_layer(id, &layer.module(), factors, self.model);
        }
        trainee.token = Some(trainee.add(self.trigger.token.clone(), data::start(self, config)?, Group::Token));
        Ok(trainee)
    }

    fn file(&self, config: &Config, trainee: &Trainee, adapter: &dyn Adapter, fingerprint: &str) -> Result<LoraFile> {
        let mut layers = BTreeMap::new();
        for layer in &trainee.layers {
            let of_model = self.model.layer(layer.id);
            let down = match &layer.down {
                Side::Frozen(down) => down.clone(),
                Side::Trained(index) => trainee.parameters[*index].value.clone(),
            };
            let rank = down.dims()[0];
            let (down_shape, up_shape) = (of_model.down_shape(rank), of_model.up_shape(rank));
            let up = read(trainee.parameters[layer.up].value.clone())?;
            let alpha = layer.scale * rank as f32;
            layers.insert(of_model.module(), LoraLayer { down: read(down)?, up, rank, alpha, down_shape, up_shape });
        }
        let mut tokens = BTreeMap::new();
        if let Some(index) = trainee.token {
            let parameter = &trainee.parameters[index];
            let width = parameter.value.dims()[1];
            let values = read(parameter.value.clone())?;
            tokens.insert(parameter.name.clone(), values.chunks(width).map(<[f32]>::to_vec).collect());
        }
        let mut file =
            LoraFile { path: self.out.clone(), layers, tokens, dtype: Some(config.dtype), ..LoraFile::default() };
        file.metadata = metadata::of(self, &file, config, adapter.basis(), fingerprint);
        Ok(file)
    }
}

/// Reads a step's losses back and keeps them.
fn report(outcome: &Outcome, losses: &mut Vec<f32>, trainee: &Trainee, config: &Config) -> Result<Event> {
    let first = |tensor: &Tensor<1>| read(tensor.clone()).map(|values| values.first().copied().unwrap_or(f32::NAN));
    let (loss, prior) = (first(&outcome.loss)?, outcome.prior.as_ref().map(first).transpose()?);
    let step = losses.len() + 1;
    if !loss.is_finite() || prior.is_some_and(|prior| !prior.is_finite()) {
        return Err(unstable(step, trainee.largest()?.0));
    }
    losses.push(loss);
    Ok(Event::Step { step, total: config.steps, loss, prior, rate: config.lr * config.rate(step - 1) })
}

fn unstable(step: usize, name: &str) -> Error {
    Error::new(
        format!("Training became unstable at step {step}: the numbers ran away, furthest in {name}"),
        "Lower lr and token_lr; the last saved state and any earlier file are untouched",
    )
}
