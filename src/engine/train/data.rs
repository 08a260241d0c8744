//! Concepts as batches: which pictures, how noisy, under which prompts.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use crate::engine::concept::mask::Mask;
use crate::engine::diffusion::Schedule;
use crate::engine::event::{Event, Watch};
use crate::engine::model::pooled::index;
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Context, Framing, Mounts, StableDiffusion};
use crate::engine::random::Philox;
use crate::engine::train::config::Config;
use crate::engine::train::group::Group;
use crate::engine::train::job::{Job, Subject};
use crate::engine::train::order::{Drawn, Order};
use crate::engine::train::step::{Batch, Prior, Text, Trainee};
use crate::engine::{Error, Result};

// Independent streams of random numbers; 0 belongs to sampling, 3 to the order.
const NOISE: u32 = 1;
const TIMESTEPS: u32 = 2;
const PRIOR: u32 = 4;
const STRANGERS: u32 = 5;
const OFFSET: u32 = 7;

/// The concepts of a run ready for the loop.
pub struct Data {
    lessons: Vec<Lesson>,
    order: Order,
}

/// Images as they are filed, for one pass.
pub struct Seen {
    /// Their numbers among all that are drawn.
    pub draws: Range<usize>,
    /// Clean, `[b, 4, h, w]`.
    pub latents: Tensor<4>,
    pub text: Text,
    pub framings: Vec<Framing>,
}

/// One concept.
struct Lesson {
    groups: Vec<Group>,
    prompts: Vec<Encoded>,
    /// Index into `prompts` for each picture.
    prompt_of: Vec<usize>,
    /// Pictures that are in no epoch.
    held_out: Vec<usize>,
    /// Encoded prompts whose answers are to be kept.
    prior: Option<(Vec<Encoded>, Context)>,
    /// The template's caption, whose word is to be replaced by made-up ones.
    stranger: Encoded,
    /// The token's vectors before training, `[token_layers · n, width]`.
    start: Tensor<2>,
    /// Of its loss.
    weight: f32,
}

impl Data {
    /// Reads and encodes pictures and prompts.
    pub fn prepare(job: &Job<'_>, config: &Config, watch: &mut Watch<'_>) -> Result<Self> {
        let pictures = || job.subjects.iter().flat_map(|subject| &subject.concept.images);
        for skipped in job.subjects.iter().flat_map(|subject| &subject.concept.skipped) {
            watch(Event::warning(format!("{} was left out: {}", skipped.path.display(), skipped.why)))?;
        }
        if config.views.mask == Mask::File && pictures().all(|picture| picture.mask.is_none()) {
            watch(Event::warning(
                "No picture has a mask beside it (robot.mask.png beside robot.png): all count whole",
            ))?;
        }
        let total = pictures().map(|picture| config.views.of(picture.size).len()).sum();
        watch(Event::Stage { name: "preparing pictures".into(), total })?;
        let mut done = 0;
        let mut tell = || {
            done += 1;
            watch(Event::Progress { done, total })
        };
        let lessons = (0..job.subjects.len())
            .map(|nth| Lesson::prepare(job, config, nth, &mut tell))
            .collect::<Result<Vec<_>>>()?;
        for (lesson, subject) in lessons.iter().zip(&job.subjects) {
            if let Some(warning) = lesson.cut_captions(subject, job.model.tokenizer.room()) {
                watch(Event::warning(warning))?;
            }
        }
        let groups = lessons.iter().zip(&job.subjects).map(|(lesson, subject)| lesson.items(subject)).collect();
        Ok(Self { lessons, order: Order { groups, balance: config.balance } })
    }

    /// A batch of a step, the `part`-th of those that are accumulated: a function of the seed, the step and the tokens as
    /// they stand. Together they draw what one batch of all their pictures would.
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
        let Drawn { concept, group, rows } = self.order.batch(&random, b, step * config.accumulate + part);
        let lesson = &self.lessons[concept];
        let group = &lesson.groups[group];
        let [_, c, h, w] = group.latents.dims();
        let (first, size) = (part * b, c * h * w);
        let timesteps: Vec<usize> =
            (first..first + b).map(|j| random.stream(TIMESTEPS).below(offset, j as u32, schedule.len())).collect();
        let noise = random.stream(NOISE).normal_from(offset, first * size, b * size);
        let mut noise = Tensor::from_data(TensorData::new(noise, [b, c, h, w]), device);
        if config.noise_offset > 0.0 {
            let shift = random.stream(OFFSET).normal_from(offset, first * c, b * c);
            noise = noise + Tensor::from_data(TensorData::new(shift, [b, c, 1, 1]), device) * config.noise_offset;
        }
        let weights = timesteps.iter().map(|&t| config.weight(schedule, t) as f32 * lesson.weight).collect();
        let text_learns = || trainee.layers.iter().any(|layer| job.model.layer(layer.id).part.is_text());
        let framings: Vec<Framing> = rows.iter().map(|&row| group.rows[row].framing).collect();
        let prior = lesson.prior.as_ref().map(|(known, contexts)| {
            let count = config.prior_batch - config.strangers;
            let draw = |j: usize| random.stream(PRIOR).below(offset, j as u32, known.len());
            let drawn: Vec<usize> = (part * count..(part + 1) * count).map(draw).collect();
            let mut prompts: Vec<Encoded> = drawn.iter().map(|&i| known[i].clone()).collect();
            let (mut parts, mut words) = (Vec::new(), Vec::new());
            if count > 0 {
                parts.push(contexts.rows(&drawn));
            }
            if config.strangers > 0 {
                let token = &trainee.words(&trainee.values())[concept];
                let (strange, made_up) = lesson.strangers(config.strangers, token, &random, offset, part);
                parts.push(job.model.context(&strange, &made_up, config.clip_skip, &Mounts::none()));
                prompts.extend(strange);
                words = made_up;
            }
            let prompts = text_learns().then_some((prompts, words));
            let again = &framings[..config.prior_batch];
            Prior { context: Context::cat(&parts).framed(again), prompts, weight: config.prior }
        });
        let text = lesson.text(group, &rows);
        let rows = index(&rows, device);
        Batch {
            latents: group.latents.clone().select(0, rows.clone()),
            noise,
            timesteps,
            text,
            framings,
            weights,
            measure: config.measure,
            mask: group.masks.clone().map(|masks| masks.select(0, rows)),
            prior,
        }
    }

    /// `draws` images as they are filed, evenly taken from those held out or, with none,
    /// from all; in passes of at most `most` images of one size.
    pub fn steady(&self, draws: usize, most: usize) -> Vec<Seen> {
        let from: Vec<(usize, usize, usize)> = self
            .lessons
            .iter()
            .enumerate()
            .flat_map(|(l, lesson)| lesson.groups.iter().enumerate().map(move |(g, group)| (l, lesson, g, group)))
            .flat_map(|(l, lesson, g, group)| {
                let measured = |picture| lesson.held_out.is_empty() || lesson.held_out.contains(&picture);
                let rows = group.rows.iter().enumerate().filter(move |(_, row)| row.plain && measured(row.picture));
                rows.map(move |(at, _)| (l, g, at))
            })
            .collect();
        let drawn: Vec<_> = (0..draws).map(|draw| from[draw * from.len() / draws]).collect();
        let mut passes = Vec::new();
        let mut first = 0;
        for same in drawn.chunk_by(|a, b| a.0 == b.0 && a.1 == b.1) {
            for some in same.chunks(most) {
                let lesson = &self.lessons[some[0].0];
                let group = &lesson.groups[some[0].1];
                let rows: Vec<usize> = some.iter().map(|place| place.2).collect();
                let text = lesson.text(group, &rows);
                let framings = rows.iter().map(|&row| group.rows[row].framing).collect();
                let latents = group.latents.clone().select(0, index(&rows, &group.latents.device()));
                passes.push(Seen { draws: first..first + some.len(), latents, text, framings });
                first += some.len();
            }
        }
        passes
    }
}

impl Lesson {
    fn prepare(job: &Job<'_>, config: &Config, nth: usize, tell: &mut impl FnMut() -> Result<()>) -> Result<Self> {
        let subject = &job.subjects[nth];
        let pictures = &subject.concept.images;
        let groups = Group::all(job.model, pictures, &config.views, job.cache.as_deref(), tell)?;
        let words = job.words(config.vectors);
        let captions = subject.captions(&job.template, &words);
        let mut prompts: Vec<Encoded> = Vec::new();
        let mut prompt_of = Vec::new();
        for encoded in captions.prompts(job.model, pictures)? {
            let index = prompts.iter().position(|known| *known == encoded).unwrap_or(prompts.len());
            if index == prompts.len() {
                prompts.push(encoded);
            }
            prompt_of.push(index);
        }
        let prior = match config.prior > 0.0 {
            true => {
                let texts = config.prior_prompts(&job.template, &subject.trigger.class_word);
                if texts.is_empty() {
                    let advice = "Write prompts separated by semicolons, or leave it empty for the usual ones";
                    return Err(Error::usage("prior_prompts names no prompt", advice));
                }
                let encoded =
                    texts.iter().map(|text| job.model.tokenizer.encode(text, &[])).collect::<Result<Vec<_>>>()?;
                let context = job.model.context(&encoded, &[], config.clip_skip, &Mounts::none());
                Some((encoded, context))
            }
            false => None,
        };
        Ok(Self {
            groups,
            prompts,
            prompt_of,
            held_out: held_out(pictures.len(), config.held_out)?,
            prior,
            stranger: captions.prompt(job.model, None)?,
            start: start(job.model, &subject.trigger.class_word, config)?,
            weight: subject.weight,
        })
    }

    /// A sentence about captions that are longer than the text encoder reads.
    fn cut_captions(&self, subject: &Subject<'_>, room: usize) -> Option<String> {
        let dropped = |picture: usize| self.prompts[self.prompt_of[picture]].dropped;
        let mut cut = subject.concept.images.iter().enumerate().filter(|(picture, _)| dropped(*picture) > 0);
        let (first, picture) = cut.next()?;
        let more = match cut.count() {
            0 => String::new(),
            1 => "; so does 1 more".into(),
            more => format!("; so do {more} more"),
        };
        let (tokens, path) = (room + dropped(first), picture.path.display());
        Some(format!("The caption of {path} has {tokens} tokens, of which the first {room} are learnt{more}"))
    }

    /// The rows of each group in an epoch: those of a picture as often as it repeats.
    fn items(&self, subject: &Subject<'_>) -> Vec<Vec<usize>> {
        let of = |group: &Group| {
            let rows = group.rows.iter().enumerate().filter(|(_, row)| !self.held_out.contains(&row.picture));
            let repeats = |picture: usize| subject.concept.images[picture].repeats.saturating_mul(subject.repeats);
            rows.flat_map(|(at, row)| std::iter::repeat_n(at, repeats(row.picture))).collect()
        };
        self.groups.iter().map(of).collect()
    }

    /// The prompts of these rows: only those, each once.
    fn text(&self, group: &Group, rows: &[usize]) -> Text {
        let of_image: Vec<usize> = rows.iter().map(|&row| self.prompt_of[group.rows[row].picture]).collect();
        let distinct: Vec<usize> = of_image.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let prompts = distinct.iter().map(|&prompt| self.prompts[prompt].clone()).collect();
        let places = of_image.iter().map(|prompt| distinct.partition_point(|other| other < prompt)).collect();
        Text::Prompts(prompts, places)
    }

    /// The caption with a made-up word in the token's place: as far from the class word as the token has come, in a
    /// random direction. What the concept leaves alone there, it leaves alone under another concept's token.
    fn strangers(
        &self,
        count: usize,
        token: &Tensor<3>,
        random: &Philox,
        offset: u32,
        part: usize,
    ) -> (Vec<Encoded>, Vec<Tensor<3>>) {
        let [layers, vectors, width] = token.dims();
        let (rows, token) = (layers * vectors, token.clone().flatten::<2>(0, 1));
        let distance = (token.clone() - self.start.clone()).powi_scalar(2).sum_dim(1).sqrt();
        let size = count * rows * width;
        let noise = random.stream(STRANGERS).normal_from(offset, part * size, size);
        let words: Vec<Tensor<3>> = noise
            .chunks_exact(rows * width)
            .map(|noise| {
                let noise = Tensor::<2>::from_data(TensorData::new(noise.to_vec(), [rows, width]), &token.device());
                let length = noise.clone().powi_scalar(2).sum_dim(1).sqrt();
                (self.start.clone() + noise / length * distance.clone()).reshape([layers, vectors, width])
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

/// A token's vectors before training, `[token_layers · n, width]`: the class word's, or anything's where there is none, the
/// same for every layer.
pub fn start(model: &StableDiffusion, class_word: &str, config: &Config) -> Result<Tensor<2>> {
    let word = if class_word.is_empty() { "thing" } else { class_word };
    let ids = model.tokenizer.ids(word)?;
    let ids: Vec<u32> = ids.iter().rev().copied().cycle().take(config.vectors).collect();
    Ok(model.embed_word(&ids).repeat_dim(0, config.token_layers))
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
