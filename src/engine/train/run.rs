//! The training loop: pictures in, adapter file out; saves, resumes, stops.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::engine::adapter::{self, Adapter, Method, target};
use crate::engine::concept::{self, Concept, Trigger, latents};
use crate::engine::diffusion::{Schedule, loss};
use crate::engine::event::{Event, Watch};
use crate::engine::field::Settings;
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::io::metadata::RUN;
use crate::engine::io::safetensors;
use crate::engine::model::tokenizer::{Encoded, Word};
use crate::engine::model::{Mounts, StableDiffusion};
use crate::engine::random::Philox;
use crate::engine::train::config::Config;
use crate::engine::train::step::{Batch, Group, Outcome, Prior, Rates, Side, Text, Trainee, read};
use crate::engine::train::{checkpoint, metadata};
use crate::engine::{Error, Result};

// Independent streams of random numbers; 0 belongs to sampling.
const NOISE: u32 = 1;
const TIMESTEPS: u32 = 2;
const ORDER: u32 = 3;
const PRIOR: u32 = 4;
const STRANGERS: u32 = 5;
const INIT: u32 = 1 << 16;

/// Steps between readbacks of the loss on a GPU: each waits for the queue to drain.
const GPU_READBACK: usize = 10;

/// Everything a run depends on.
pub struct Job<'a> {
    pub model: &'a StableDiffusion,
    pub concept: &'a Concept,
    pub trigger: Trigger,
    /// How captions read: `a 3d emoji of {token} {class}`.
    pub template: String,
    pub method: &'static Method,
    pub method_settings: Settings,
    pub settings: Settings,
    pub context: adapter::Context,
    pub out: PathBuf,
    pub resume: bool,
    /// Writes when and by what version the file was made.
    pub stamp: bool,
    /// Folder in which latents are kept.
    pub cache: Option<PathBuf>,
}

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
        let data = self.data(&config, watch)?;
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
            let batch = self.batch(config, data, &schedule, trainee, step);
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
        trainee.token = Some(trainee.add(self.trigger.token.clone(), self.start(config)?, Group::Token));
        Ok(trainee)
    }

    /// The token's vectors before training: the class word's, or anything's where there is none.
    fn start(&self, config: &Config) -> Result<Tensor<2>> {
        let word = if self.trigger.class_word.is_empty() { "thing" } else { &self.trigger.class_word };
        let ids = self.model.tokenizer.ids(word)?;
        let ids: Vec<u32> = ids.iter().rev().copied().cycle().take(config.vectors).collect();
        Ok(self.model.text.embed(&[ids]).squeeze_dim(0))
    }

    fn data(&self, config: &Config, watch: &mut Watch<'_>) -> Result<Data> {
        for skipped in &self.concept.skipped {
            watch(Event::warning(format!("{} was left out: {}", skipped.path.display(), skipped.why)))?;
        }
        let pictures = &self.concept.images;
        watch(Event::Stage { name: "preparing pictures".into(), total: pictures.len() })?;
        let latents = latents::latents(self.model, pictures, config.preparation, self.cache.as_deref())?;
        let words = [Word { text: self.trigger.token.clone(), vectors: config.vectors }];
        let mut prompts: Vec<Encoded> = Vec::new();
        let mut prompt_of = Vec::new();
        for picture in pictures {
            let text = concept::caption(picture.caption.as_deref(), &self.template, &self.trigger);
            let encoded = self.model.tokenizer.encode(&text, &words)?;
            let index = prompts.iter().position(|known| *known == encoded).unwrap_or(prompts.len());
            if index == prompts.len() {
                prompts.push(encoded);
            }
            prompt_of.push(index);
        }
        let mirrors = if config.preparation.flip { 2 } else { 1 };
        let items = (0..mirrors * pictures.len())
            .flat_map(|i| std::iter::repeat_n(i, pictures[i % pictures.len()].repeats))
            .collect();
        let prior = match config.prior > 0.0 {
            true => {
                let texts = config.prior_prompts(&self.template, &self.trigger.class_word);
                let encoded =
                    texts.iter().map(|text| self.model.tokenizer.encode(text, &[])).collect::<Result<Vec<_>>>()?;
                Some(self.model.condition(&encoded, &[], &Mounts::none()))
            }
            false => None,
        };
        let stranger = self.model.tokenizer.encode(&concept::caption(None, &self.template, &self.trigger), &words)?;
        Ok(Data { latents, prompts, prompt_of, items, prior, stranger, start: self.start(config)? })
    }

    /// The batch of a step: a function of the seed, the step and the token as it stands.
    fn batch(&self, config: &Config, data: &Data, schedule: &Schedule, trainee: &Trainee, step: usize) -> Batch {
        let (device, random, b) = (&self.model.device, Philox::new(self.context.seed), config.batch);
        let offset = u32::try_from(step).unwrap_or(u32::MAX);
        let [_, c, h, w] = data.latents.dims();
        let images: Vec<usize> = (step * b..(step + 1) * b).map(|at| data.item(&random, at)).collect();
        let timesteps: Vec<usize> =
            (0..b).map(|j| random.stream(TIMESTEPS).below(offset, j as u32, schedule.len())).collect();
        let noise = random.stream(NOISE).normal(offset, b * c * h * w);
        let index = |rows: Vec<usize>| {
            let n = rows.len();
            let rows: Vec<i32> = rows.into_iter().map(|i| i32::try_from(i).unwrap_or(0)).collect();
            Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), device)
        };
        let weights = timesteps
            .iter()
            .map(|&t| config.min_snr.map_or(1.0, |gamma| loss::min_snr_weight(schedule, t, gamma) as f32))
            .collect();
        let prior = data.prior.as_ref().map(|contexts| {
            let [n, _, _] = contexts.dims();
            let known = config.prior_batch - config.strangers;
            let drawn = (0..known).map(|j| random.stream(PRIOR).below(offset, j as u32, n)).collect();
            let mut parts = Vec::new();
            if known > 0 {
                parts.push(contexts.clone().select(0, index(drawn)));
            }
            if config.strangers > 0 {
                parts.push(self.strangers(config.strangers, data, trainee, &random, offset));
            }
            Prior { context: Tensor::cat(parts, 0), weight: config.prior }
        });
        let prompts = images.iter().map(|&i| data.prompt_of[i % data.prompt_of.len()]).collect();
        Batch {
            latents: data.latents.clone().select(0, index(images)),
            noise: Tensor::from_data(TensorData::new(noise, [b, c, h, w]), device),
            timesteps,
            text: Text::Prompts(data.prompts.clone(), prompts),
            weights,
            prior,
        }
    }

    /// The caption with a made-up word in the token's place: as far from the class word as the token has come, in a
    /// random direction. What the concept leaves alone there, it leaves alone under another concept's token.
    fn strangers(&self, count: usize, data: &Data, trainee: &Trainee, random: &Philox, offset: u32) -> Tensor<3> {
        let Some(token) = trainee.token.map(|index| trainee.parameters[index].value.clone()) else {
            return Tensor::zeros([0, 0, 0], &self.model.device);
        };
        let [vectors, width] = token.dims();
        let distance = (token - data.start.clone()).powi_scalar(2).sum_dim(1).sqrt();
        let noise = random.stream(STRANGERS).normal(offset, count * vectors * width);
        let words: Vec<Tensor<2>> = noise
            .chunks_exact(vectors * width)
            .map(|noise| {
                let noise =
                    Tensor::<2>::from_data(TensorData::new(noise.to_vec(), [vectors, width]), &self.model.device);
                let length = noise.clone().powi_scalar(2).sum_dim(1).sqrt();
                data.start.clone() + noise / length * distance.clone()
            })
            .collect();
        let prompts: Vec<Encoded> = (0..count)
            .map(|word| {
                let mut prompt = data.stranger.clone();
                prompt.marks.iter_mut().for_each(|mark| mark.word = word);
                prompt
            })
            .collect();
        self.model.condition(&prompts, &words, &Mounts::none())
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

    /// Changes whenever anything changes that the trained numbers depend on.
    fn fingerprint(&self) -> Result<String> {
        let pictures = self
            .concept
            .images
            .iter()
            .map(|picture| Ok(json!([concept::content_hash(&picture.path)?, picture.caption, picture.repeats])))
            .collect::<Result<Vec<_>>>()?;
        let inputs = json!({
            "base": self.model.hash,
            "method": self.method.name,
            "method_settings": self.method_settings,
            "settings": self.settings,
            "seed": self.context.seed,
            "slot": self.context.slot,
            "block": self.context.block,
            "token": self.trigger.token,
            "class": self.trigger.class_word,
            "template": self.template,
            "pictures": pictures,
        });
        Ok(safetensors::hex(&Sha256::digest(inputs.to_string().as_bytes())))
    }
}

/// A concept ready for the loop.
struct Data {
    /// Pictures, then mirror images.
    latents: Tensor<4>,
    prompts: Vec<Encoded>,
    /// Index into `prompts` for each picture.
    prompt_of: Vec<usize>,
    /// Index into `latents` for each place in an epoch: pictures as often as they repeat.
    items: Vec<usize>,
    /// Encoded prompts whose answers are to be kept.
    prior: Option<Tensor<3>>,
    /// The template's caption, whose word is to be replaced by made-up ones.
    stranger: Encoded,
    /// The token's vectors before training.
    start: Tensor<2>,
}

impl Data {
    /// The image at a place of the endless, each epoch newly shuffled sequence.
    fn item(&self, random: &Philox, at: usize) -> usize {
        let n = self.items.len();
        let epoch = u32::try_from(at / n).unwrap_or(u32::MAX);
        self.items[random.stream(ORDER).permutation(epoch, n)[at % n]]
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
