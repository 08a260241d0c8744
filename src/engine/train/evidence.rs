//! How much each weight under an adapter matters for its concept: `E[(∂L/∂W)²]` over its pictures, the diagonal of the
//! Fisher information with the denoising loss in the place of a log-likelihood.
//!
//! Squares are taken of one picture under one noise at a time: the square of a batch's mean would mix examples.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::engine::Result;
use crate::engine::adapter::mount::{Strength, mount};
use crate::engine::concept::latents::latents;
use crate::engine::concept::{Concept, Trigger, View};
use crate::engine::device::read;
use crate::engine::diffusion::{Schedule, loss};
use crate::engine::event::{Event, Watch};
use crate::engine::io::lora_file::{BIAS, LoraFile};
use crate::engine::io::{metadata, safetensors};
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Change, LayerId, Mounts, StableDiffusion};
use crate::engine::preview::Token;
use crate::engine::random::Philox;
use crate::engine::train::prompts::{self, Captions};

// Independent streams of random numbers, none of which a training uses.
const NOISE: u32 = 9;
const TIMESTEPS: u32 = 10;

/// An adapter and pictures of what it was taught.
pub struct Evidence<'a> {
    pub model: &'a StableDiffusion,
    pub adapter: &'a LoraFile,
    pub concept: &'a Concept,
    /// How captions read: `a 3d emoji of {token} {class}`.
    pub template: &'a str,
    /// Folder in which latents are kept.
    pub cache: Option<&'a Path>,
}

/// Hash over the pictures and their captions, and how many there are.
pub fn fingerprint(concept: &Concept) -> Result<serde_json::Value> {
    let pictures: Vec<_> =
        prompts::contents(&concept.images)?.into_iter().map(|(hash, picture)| json!([hash, picture.caption])).collect();
    let hash = safetensors::hex(&Sha256::digest(json!(pictures).to_string().as_bytes()));
    Ok(json!({ "sha256": hash, "pictures": pictures.len() }))
}

impl Evidence<'_> {
    /// `E[(∂L/∂W)²]` of every layer the adapter changes, row-major `[out, in]`, with the adapter in place at strength 1
    /// and each picture under `draws` noises.
    pub fn importance(&self, draws: usize, seed: u64, watch: &mut Watch<'_>) -> Result<BTreeMap<String, Vec<f32>>> {
        let Self { model, adapter, concept, .. } = self;
        let schedule = Schedule::new(&model.schedule)?;
        let view = View::whole(model.native_size());
        let views: Vec<_> = concept.images.iter().map(|picture| (&*picture.path, view)).collect();
        watch(Event::Stage { name: "preparing pictures".into(), total: views.len() })?;
        let mut done = 0;
        let latents = latents(model, &views, self.cache, &mut || {
            done += 1;
            watch(Event::Progress { done, total: views.len() })
        })?;
        let (prompts, words) = self.prompts()?;
        let clip_skip = adapter.clip_skip();
        model.text.check_skip(clip_skip).map_err(|error| error.at(&adapter.path))?;
        let mut base = Mounts::none();
        mount(&mut base, model, adapter, &Strength::default())?;
        let mut asked: Vec<(String, LayerId, [usize; 2])> = Vec::new();
        for (id, layer) in model.layer_ids() {
            let module = layer.module();
            if adapter.differences.get(&module).is_some_and(|difference| difference.bias.is_some()) {
                asked.push((format!("{module}{BIAS}"), id, [layer.out, 1]));
            }
            if adapter.pair(&module).is_some() {
                asked.push((module, id, [layer.out, layer.input()]));
            }
        }
        let mut squares: Vec<Option<Tensor<2>>> = vec![None; asked.len()];
        let (random, total) = (Philox::new(seed), draws * prompts.len());
        watch(Event::Stage { name: "weighing by pictures".into(), total })?;
        for (example, prompt) in prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, draws)).enumerate() {
            let mut mounts = base.clone();
            let leaves: Vec<Tensor<2>> =
                asked.iter().map(|(name, id, shape)| listen(&mut mounts, name, *id, *shape, model)).collect();
            let picture = latents.clone().narrow(0, example / draws, 1);
            let t = [random.stream(TIMESTEPS).below(example as u32, 0, schedule.len())];
            let noise = random.stream(NOISE).normal(example as u32, picture.shape().num_elements());
            let noise = Tensor::from_data(TensorData::new(noise, picture.dims()), &model.device);
            let context = model.context(std::slice::from_ref(prompt), &words, clip_skip, &mounts);
            let context = context.framed(&[view.framing(concept.images[example / draws].size)]);
            let noisy = loss::noised(&picture, &noise, &t, &schedule);
            let said = model.unet.forward(noisy, &[t[0] as f32], &context, &mounts);
            let gradients = loss::per_image(said, loss::target(&picture, &noise, &t, &schedule)).backward();
            for (sum, leaf) in squares.iter_mut().zip(&leaves) {
                let square = leaf.grad(&gradients).map(|gradient| gradient.powi_scalar(2));
                *sum = match (sum.take(), square) {
                    (Some(sum), Some(square)) => Some(sum + square),
                    (sum, square) => sum.or(square),
                };
            }
            watch(Event::Progress { done: example + 1, total })?;
        }
        let mean = |sum: Option<Tensor<2>>, [out, input]: [usize; 2]| match sum {
            Some(sum) => read(sum / total as f64),
            None => Ok(vec![0.0; out * input]),
        };
        asked.into_iter().zip(squares).map(|((name, _, shape), sum)| Ok((name, mean(sum, shape)?))).collect()
    }

    /// The pictures' captions, with the adapter's own word where it brings one.
    fn prompts(&self) -> Result<(Vec<Encoded>, Vec<Tensor<3>>)> {
        let of = |key: &str| self.adapter.metadata.get(key).map_or("", String::as_str);
        let class = Some(of(metadata::CLASS)).filter(|class| !class.is_empty());
        let class = class.or(self.concept.class_word.as_deref()).unwrap_or_default();
        let (own, words) = (of(metadata::TOKEN), self.adapter.words());
        let meaning = words.iter().find(|meaning| meaning.word == own).or(words.first());
        let token = meaning.map(|&meaning| Token::of(self.model, meaning)).transpose()?;
        let trigger = token.as_ref().map(|token| Trigger::new(&token.word.text, class)).transpose()?;
        let word = token.as_ref().map(|token| token.word.clone());
        let (template, trigger, words) = (self.template, trigger.as_ref(), word.as_slice());
        let captions = Captions { template, trigger, words, class_word: class };
        let prompts = captions.prompts(self.model, &self.concept.images)?;
        Ok((prompts, token.into_iter().map(|token| token.vectors).collect()))
    }
}

/// Mounts a tracked zero on a layer's weight or bias itself; its gradient is `∂L/∂W`.
fn listen(
    mounts: &mut Mounts,
    name: &str,
    id: LayerId,
    [out, input]: [usize; 2],
    model: &StableDiffusion,
) -> Tensor<2> {
    let leaf = Tensor::<2>::zeros([out, input], &model.device).autodiff().require_grad();
    let change = match name.ends_with(BIAS) {
        true => Change::Bias(leaf.clone().reshape([out])),
        false => Change::Weight(leaf.clone()),
    };
    mounts.add(id, change);
    leaf
}
