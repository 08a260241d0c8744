//! The training loop: pictures in, adapter file out; saves, resumes, stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use crate::engine::adapter::{Adapter, Spot, Stored, target};
use crate::engine::device::read;
use crate::engine::diffusion::Schedule;
use crate::engine::event::{Event, Watch};
use crate::engine::io::lora_file::{Difference, LoraFile, LoraLayer, Matrix};
use crate::engine::io::metadata::RUN;
use crate::engine::model::StableDiffusion;
use crate::engine::random::Philox;
use crate::engine::train::config::Config;
use crate::engine::train::data::{self, Data};
use crate::engine::train::job::Job;
use crate::engine::train::step::{Group, Outcome, Rates, TrainedLayer, Trainee};
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
        let config = Config::new(&self.settings, self.method, self.model)?;
        let adapter: Arc<dyn Adapter> = (self.method.build)(&self.method_settings, &self.context)?.into();
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
        let mut trainee = self.begin(&config, Arc::clone(&adapter))?;
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

        let file = self.file(&config, &trainee, &fingerprint)?;
        if file.modules().is_empty() {
            watch(Event::warning("No layer has learnt anything that the method keeps: the file holds the word alone"))?;
        }
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
        let random = Philox::new(self.context.seed);
        let on_cpu = self.model.device == crate::engine::device::cpu();
        let readback = if on_cpu { 1 } else { GPU_READBACK };
        let mut last_save = Instant::now();
        let mut unread: Vec<Outcome> = Vec::new();
        watch(Event::Stage { name: "training".into(), total: config.steps })?;
        for step in losses.len()..config.steps {
            if let Some(awake) = trainee.adapter.awake(step, trainee.layers.len(), &random) {
                trainee.wake(&awake);
            }
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
            trainee.update(gradients, rates);
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

    /// Every layer's tensors and the token before the first step.
    fn begin(&self, config: &Config, adapter: Arc<dyn Adapter>) -> Result<Trainee> {
        let mut trainee = Trainee::new(adapter);
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
        trainee.token = Some(trainee.add(self.trigger.token.clone(), data::start(self, config)?, Group::Token));
        Ok(trainee)
    }

    fn file(&self, config: &Config, trainee: &Trainee, fingerprint: &str) -> Result<LoraFile> {
        let mut file = LoraFile { path: self.out.clone(), dtype: Some(config.dtype), ..LoraFile::default() };
        let values = trainee.values();
        for trained in &trainee.layers {
            store(&mut file, trainee, trained, &values, self.model)?;
        }
        if let Some(index) = trainee.token {
            let parameter = &trainee.parameters[index];
            let width = parameter.value.dims()[1];
            let values = read(parameter.value.clone())?;
            file.tokens.insert(parameter.name.clone(), values.chunks(width).map(<[f32]>::to_vec).collect());
        }
        file.metadata = metadata::of(self, &file, config, trainee.adapter.basis(), fingerprint);
        Ok(file)
    }
}

/// What a layer learnt, in the form its method leaves.
fn store(
    file: &mut LoraFile,
    trainee: &Trainee,
    trained: &TrainedLayer,
    values: &[Tensor<2>],
    model: &StableDiffusion,
) -> Result<()> {
    let layer = model.layer(trained.id);
    let tensors = Trainee::tensors(trained, values);
    match trainee.adapter.store(&tensors, model.weight(trained.id))? {
        Stored::Lora { down, up, rank, alpha, bias } => {
            let (down_shape, up_shape) = (layer.down_shape(rank), layer.up_shape(rank));
            file.layers.insert(layer.module(), LoraLayer { down, up, rank, alpha, down_shape, up_shape });
            if bias.is_some() {
                file.differences.insert(layer.module(), Difference { bias, ..Difference::default() });
            }
        }
        Stored::Difference(weight) => {
            let shape = layer.down_shape(layer.out);
            file.differences.insert(layer.module(), Difference { weight, shape, bias: None });
        }
        Stored::Own => {
            let parts = trained
                .names
                .iter()
                .zip(&tensors)
                .map(|(&name, tensor)| {
                    Ok((name.to_owned(), Matrix { values: read(tensor.clone())?, shape: tensor.dims() }))
                })
                .collect::<Result<BTreeMap<_, _>>>()?;
            file.own.insert(layer.module(), parts);
        }
        Stored::Nothing => {}
    }
    Ok(())
}

/// Reads a step's losses back and keeps them.
fn report(outcome: &Outcome, losses: &mut Vec<f32>, trainee: &Trainee, config: &Config) -> Result<Event> {
    let first = |tensor: &Tensor<1>| read(tensor.clone()).map(|values| values.first().copied().unwrap_or(f32::NAN));
    let also = |tensor: &Option<Tensor<1>>| tensor.as_ref().map(first).transpose();
    let (loss, prior, charged) = (first(&outcome.loss)?, also(&outcome.prior)?, also(&outcome.charged)?);
    let step = losses.len() + 1;
    if !loss.is_finite() || prior.iter().chain(&charged).any(|loss| !loss.is_finite()) {
        return Err(unstable(step, trainee.largest()?.0));
    }
    losses.push(loss);
    Ok(Event::Step { step, total: config.steps, loss, prior, charged, rate: config.lr * config.rate(step - 1) })
}

fn unstable(step: usize, name: &str) -> Error {
    Error::new(
        format!("Training became unstable at step {step}: the numbers ran away, furthest in {name}"),
        "Lower lr and token_lr; the last saved state and any earlier file are untouched",
    )
}
