//! A concept as batches: which pictures, how noisy, under which prompts.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::engine::concept::latents;
use crate::engine::diffusion::Schedule;
use crate::engine::event::{Event, Watch};
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Mounts, Part};
use crate::engine::random::Philox;
use crate::engine::train::config::Config;
use crate::engine::train::job::Job;
use crate::engine::train::step::{Batch, Prior, Text, Trainee};
use crate::engine::{Error, Result};

// Independent streams of random numbers; 0 belongs to sampling.
const NOISE: u32 = 1;
const TIMESTEPS: u32 = 2;
const ORDER: u32 = 3;
const PRIOR: u32 = 4;
const STRANGERS: u32 = 5;
const OFFSET: u32 = 7;

/// A concept ready for the loop.
pub struct Data {
    /// Pictures, then mirror images.
    latents: Tensor<4>,
    prompts: Vec<Encoded>,
    /// Index into `prompts` for each picture.
    prompt_of: Vec<usize>,
    /// Index into `latents` for each place in an epoch: pictures as often as they repeat.
    items: Vec<usize>,
    /// Pictures that are in no epoch.
    held_out: Vec<usize>,
    /// Encoded prompts whose answers are to be kept.
    prior: Option<(Vec<Encoded>, Tensor<3>)>,
    /// The template's caption, whose word is to be replaced by made-up ones.
    stranger: Encoded,
    /// The token's vectors before training.
    start: Tensor<2>,
}

impl Data {
    /// Reads and encodes pictures and prompts.
    pub fn prepare(job: &Job<'_>, config: &Config, watch: &mut Watch<'_>) -> Result<Self> {
        for skipped in &job.concept.skipped {
            watch(Event::warning(format!("{} was left out: {}", skipped.path.display(), skipped.why)))?;
        }
        let pictures = &job.concept.images;
        let latents = latents::latents(job.model, pictures, config.preparation, job.cache.as_deref(), watch)?;
        let captions = job.captions(config.vectors);
        let mut prompts: Vec<Encoded> = Vec::new();
        let mut prompt_of = Vec::new();
        for encoded in captions.prompts(job.model, pictures)? {
            let index = prompts.iter().position(|known| *known == encoded).unwrap_or(prompts.len());
            if index == prompts.len() {
                prompts.push(encoded);
            }
            prompt_of.push(index);
        }
        let held_out = held_out(pictures.len(), config.held_out)?;
        let mirrors = if config.preparation.flip { 2 } else { 1 };
        let items = (0..mirrors * pictures.len())
            .filter(|i| !held_out.contains(&(i % pictures.len())))
            .flat_map(|i| std::iter::repeat_n(i, pictures[i % pictures.len()].repeats))
            .collect();
        let prior = match config.prior > 0.0 {
            true => {
                let texts = config.prior_prompts(&job.template, &job.trigger.class_word);
                if texts.is_empty() {
                    let advice = "Write prompts separated by semicolons, or leave it empty for the usual ones";
                    return Err(Error::usage("prior_prompts names no prompt", advice));
                }
                let encoded =
                    texts.iter().map(|text| job.model.tokenizer.encode(text, &[])).collect::<Result<Vec<_>>>()?;
                let context = job.model.condition(&encoded, &[], &Mounts::none());
                Some((encoded, context))
            }
            false => None,
        };
        let stranger = captions.prompt(job.model, None)?;
        Ok(Self { latents, prompts, prompt_of, items, held_out, prior, stranger, start: start(job, config)? })
    }

    /// A batch of a step, the `part`-th of those that are accumulated: a function of the seed, the step and the token as
    /// it stands. Together they draw what one batch of all their pictures would.
    pub fn batch(
        &self,
        job: &Job<'_>,
        config: &Config,
        schedule: &Schedule,
        trainee: &Trainee,
        (step, part): (usize, usize),
    ) -> Batch {
        let (device, random, b) = (&job.model.device, Philox::new(job.context.seed), config.batch);
        let offset = u32::try_from(step).unwrap_or(u32::MAX);
        let [_, c, h, w] = self.latents.dims();
        let (place, first) = ((step * config.accumulate + part) * b, part * b);
        let images: Vec<usize> = (place..place + b).map(|at| self.item(&random, at)).collect();
        let timesteps: Vec<usize> =
            (first..first + b).map(|j| random.stream(TIMESTEPS).below(offset, j as u32, schedule.len())).collect();
        let size = c * h * w;
        let noise = random.stream(NOISE).normal_from(offset, first * size, b * size);
        let mut noise = Tensor::from_data(TensorData::new(noise, [b, c, h, w]), device);
        if config.noise_offset > 0.0 {
            let shift = random.stream(OFFSET).normal_from(offset, first * c, b * c);
            noise = noise + Tensor::from_data(TensorData::new(shift, [b, c, 1, 1]), device) * config.noise_offset;
        }
        let weights = timesteps.iter().map(|&t| config.weight(schedule, t) as f32).collect();
        let text_learns = || trainee.layers.iter().any(|layer| job.model.layer(layer.id).part == Part::Text);
        let prior = self.prior.as_ref().map(|(known, contexts)| {
            let count = config.prior_batch - config.strangers;
            let draw = |j: usize| random.stream(PRIOR).below(offset, j as u32, known.len());
            let drawn: Vec<usize> = (part * count..(part + 1) * count).map(draw).collect();
            let mut prompts: Vec<Encoded> = drawn.iter().map(|&i| known[i].clone()).collect();
            let (mut parts, mut words) = (Vec::new(), Vec::new());
            if count > 0 {
                parts.push(contexts.clone().select(0, index(drawn, device)));
            }
            if config.strangers > 0 {
                let (strange, made_up) = self.strangers(config.strangers, trainee, &random, offset, part);
                parts.push(job.model.condition(&strange, &made_up, &Mounts::none()));
                prompts.extend(strange);
                words = made_up;
            }
            let prompts = text_learns().then_some((prompts, words));
            Prior { context: Tensor::cat(parts, 0), prompts, weight: config.prior }
        });
        let text = self.text(&images);
        Batch {
            latents: self.latents.clone().select(0, index(images, device)),
            noise,
            timesteps,
            text,
            weights,
            measure: config.measure,
            prior,
        }
    }

    /// The prompts of these images: only those, each once.
    fn text(&self, images: &[usize]) -> Text {
        let of_image: Vec<usize> = images.iter().map(|&i| self.prompt_of[i % self.prompt_of.len()]).collect();
        let distinct: Vec<usize> = of_image.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let prompts = distinct.iter().map(|&prompt| self.prompts[prompt].clone()).collect();
        let places = of_image.iter().map(|prompt| distinct.partition_point(|other| other < prompt)).collect();
        Text::Prompts(prompts, places)
    }

    /// Clean latents and prompts of some of `draws` images as they are filed, evenly taken from those held out or, with
    /// none, from all.
    pub fn steady(&self, draws: usize, some: Range<usize>) -> (Tensor<4>, Text) {
        let all: Vec<usize> = (0..self.prompt_of.len()).collect();
        let from = if self.held_out.is_empty() { &all } else { &self.held_out };
        let images: Vec<usize> = some.map(|draw| from[draw * from.len() / draws]).collect();
        let text = self.text(&images);
        (self.latents.clone().select(0, index(images, &self.latents.device())), text)
    }

    /// The caption with a made-up word in the token's place: as far from the class word as the token has come, in a
    /// random direction. What the concept leaves alone there, it leaves alone under another concept's token.
    fn strangers(
        &self,
        count: usize,
        trainee: &Trainee,
        random: &Philox,
        offset: u32,
        part: usize,
    ) -> (Vec<Encoded>, Vec<Tensor<2>>) {
        let token = trainee.token.map_or_else(|| self.start.clone(), |index| trainee.parameters[index].value.clone());
        let [vectors, width] = token.dims();
        let distance = (token - self.start.clone()).powi_scalar(2).sum_dim(1).sqrt();
        let size = count * vectors * width;
        let noise = random.stream(STRANGERS).normal_from(offset, part * size, size);
        let words: Vec<Tensor<2>> = noise
            .chunks_exact(vectors * width)
            .map(|noise| {
                let noise =
                    Tensor::<2>::from_data(TensorData::new(noise.to_vec(), [vectors, width]), &self.start.device());
                let length = noise.clone().powi_scalar(2).sum_dim(1).sqrt();
                self.start.clone() + noise / length * distance.clone()
            })
            .collect();
        let prompts: Vec<Encoded> = (0..count)
            .map(|word| {
                let mut prompt = self.stranger.clone();
                prompt.marks.iter_mut().for_each(|mark| mark.word = word);
                prompt
            })
            .collect();
        (prompts, words)
    }

    /// The image at a place of the endless, each epoch newly shuffled sequence.
    fn item(&self, random: &Philox, at: usize) -> usize {
        let n = self.items.len();
        let epoch = u32::try_from(at / n).unwrap_or(u32::MAX);
        self.items[random.stream(ORDER).permutation(epoch, n)[at % n]]
    }
}

fn index(rows: Vec<usize>, device: &Device) -> Tensor<1, Int> {
    let n = rows.len();
    let rows: Vec<i32> = rows.into_iter().map(|i| i32::try_from(i).unwrap_or(0)).collect();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}

/// `held` of `n` pictures, evenly spaced: neighbours in a folder are often alike.
fn held_out(n: usize, held: usize) -> Result<Vec<usize>> {
    if held >= n {
        return Err(Error::usage(
            format!("held_out keeps {held} pictures out of training, and the concept has {n}"),
            format!("Choose at most {}", n - 1),
        ));
    }
    Ok((0..held).map(|i| (2 * i + 1) * n / (2 * held)).collect())
}

/// The token's vectors before training: the class word's, or anything's where there is none.
pub fn start(job: &Job<'_>, config: &Config) -> Result<Tensor<2>> {
    let word = if job.trigger.class_word.is_empty() { "thing" } else { &job.trigger.class_word };
    let ids = job.model.tokenizer.ids(word)?;
    let ids: Vec<u32> = ids.iter().rev().copied().cycle().take(config.vectors).collect();
    Ok(job.model.text.embed(&[ids]).squeeze_dim(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_pictures_are_spread_and_leave_some() {
        assert_eq!(held_out(10, 0).unwrap(), [0_usize; 0]);
        assert_eq!(held_out(10, 2).unwrap(), [2, 7]);
        assert_eq!(held_out(3, 2).unwrap(), [0, 2]);
        assert!(held_out(3, 3).unwrap_err().advice.contains("at most 2"));
    }
}
