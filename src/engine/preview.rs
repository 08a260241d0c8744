//! From prompt to picture.

mod fields;
mod init;
mod mask;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use crate::engine::device::read;
use crate::engine::diffusion::sampler::{self, Denoiser};
use crate::engine::diffusion::schedule::Steps;
use crate::engine::diffusion::{Schedule, guidance};
use crate::engine::event::{Event, Watch};
use crate::engine::io::token_vectors::Meaning;
use crate::engine::model::chunks::Prompt;
use crate::engine::model::tokenizer::{self, Word};
use crate::engine::model::unet::MOST_PIXELS;
use crate::engine::model::{Context, Framing, Mounts, StableDiffusion};
use crate::engine::prepare::Drawing;
use crate::engine::random::Philox;
use crate::engine::words::counted;
use crate::engine::{Error, Result};

use init::Original;

pub use fields::FIELDS;
pub use init::{Init, STRENGTH};
pub use mask::Mask;

/// Latent pixels that one pass of the network takes at most; more pictures go one batch after the other.
const BATCH_PIXELS: usize = 8192;
/// All pictures of a request are held until the last is done.
const MOST_PICTURES: usize = 1000;

#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: String,
    pub negative: String,
    /// Which of the text encoder's layers is read, from the end: 1 is the last.
    pub clip_skip: usize,
    pub sampler: String,
    pub steps: usize,
    /// Guidance; 1 follows the prompt without it.
    pub cfg: f64,
    /// Picture `i` takes seed `seed + i`.
    pub seed: u64,
    /// `[width, height]` in pixels; `None` is the model's own.
    pub size: Option<[usize; 2]>,
    pub count: usize,
    /// Of [`FIELDS`], those that differ from their defaults.
    pub changes: BTreeMap<String, String>,
    /// A picture to start from, resized and cut to `size`.
    pub init: Option<Init>,
    /// Unit noise `[n, 4, h, w]` to start from instead of the seed's.
    pub start: Option<Start>,
}

#[derive(Clone, Debug)]
pub struct Start {
    pub values: Vec<f32>,
    pub shape: [usize; 4],
}

impl Request {
    /// Whether the negative prompt has a say.
    fn is_guided(&self) -> bool {
        (self.cfg - 1.0).abs() >= 1e-9
    }
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative: String::new(),
            clip_skip: 1,
            sampler: sampler::SAMPLERS[0].name.into(),
            steps: 20,
            cfg: 4.0,
            seed: 0,
            size: None,
            count: 1,
            changes: BTreeMap::new(),
            init: None,
            start: None,
        }
    }
}

/// A word of an adapter with its vectors.
#[derive(Clone, Debug)]
pub struct Token {
    pub word: Word,
    /// `[1, n, width]`, or `[layers, n, width]` where each cross-attention layer has its own.
    pub vectors: Tensor<3>,
}

impl Token {
    /// A file's word for a model; refused where its vectors are of another width, or for another number of layers.
    pub fn of(model: &StableDiffusion, meaning: Meaning<'_>) -> Result<Self> {
        let Meaning { word, vectors, layers, path } = meaning;
        let wrong = |what: String| Err(Error::new(what, "Choose the model the adapter was trained on").at(path));
        let (width, has) = (model.word_width(), model.unet.cross_attentions);
        let layers = match layers {
            Some(layers) if layers.len() != has => {
                let layers = counted(layers.len(), "cross-attention layer");
                return wrong(format!("The word {word} has vectors for {layers}, and this model has {has}"));
            }
            Some(layers) => layers,
            None => std::slice::from_ref(vectors),
        };
        if layers.iter().flatten().any(|vector| vector.len() != width) {
            return wrong(format!("The word {word} has vectors of another width than this model's {width}"));
        }
        let data = TensorData::new(layers.concat().concat(), [layers.len(), vectors.len(), width]);
        let word = Word { text: word.clone(), vectors: vectors.len() };
        Ok(Self { word, vectors: Tensor::from_data(data, &model.device) })
    }
}

/// Adapters in place and the words they bring.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    pub mounts: Mounts,
    pub tokens: Vec<Token>,
    /// At which layers of the text encoder, counted from the end, the adapters were taught.
    pub clip_skips: BTreeSet<usize>,
}

/// Finished pictures.
#[derive(Debug)]
pub struct Pictures {
    /// Final latents before the autoencoder, `[n, 4, h, w]`.
    pub latents: Tensor<4>,
    /// `[n, 3, h, w]` in 0…1.
    pub pixels: Tensor<4>,
}

impl Pictures {
    /// Each picture as RGB bytes, row by row.
    pub fn rgb(&self) -> Result<Vec<image::RgbImage>> {
        let [n, _, h, w] = self.pixels.dims();
        let values = self.values()?;
        let plane = h * w;
        Ok((0..n)
            .map(|i| {
                image::RgbImage::from_fn(w as u32, h as u32, |x, y| {
                    let at = |c: usize| values[(i * 3 + c) * plane + y as usize * w + x as usize];
                    image::Rgb([0, 1, 2].map(|c| (at(c) * 255.0).round() as u8))
                })
            })
            .collect())
    }

    /// Width and height of each.
    pub fn size(&self) -> [u32; 2] {
        let [_, _, h, w] = self.pixels.dims();
        [w, h].map(|side| side as u32)
    }

    /// Waits for the device; what is no number is no picture.
    fn values(&self) -> Result<Vec<f32>> {
        let values = read(self.pixels.clone())?;
        if values.iter().all(|x| x.is_finite()) {
            return Ok(values);
        }
        Err(Error::new(
            "The picture came out as NaN",
            "Lower the adapters' strengths, the weights in the prompt or the guidance, or use --device cpu",
        ))
    }
}

/// Makes the pictures of a request.
pub fn sample(
    model: &StableDiffusion,
    mounted: &Mounted,
    request: &Request,
    watch: &mut Watch<'_>,
) -> Result<Pictures> {
    let pictures = draw(model, mounted, request, watch)?;
    pictures.values()?;
    Ok(pictures)
}

/// The same, without waiting for the device at the end: whether they are pictures, [`Pictures::rgb`] finds out.
pub fn draw(model: &StableDiffusion, mounted: &Mounted, request: &Request, watch: &mut Watch<'_>) -> Result<Pictures> {
    if !request.cfg.is_finite() {
        return Err(Error::usage(
            "The guidance is not a number",
            "Choose one such as 4; 1 follows the prompt without it",
        ));
    }
    model.text.check_skip(request.clip_skip)?;
    let row = sampler::sampler(&request.sampler)?;
    let ways = fields::Ways::of(request)?;
    let schedule = ways.schedule(&model.schedule)?;
    let steps = row.steps(&schedule, ways.spacing, request.steps)?;
    let steps = match &request.init {
        Some(init) => steps.last(init.steps(request.steps)?),
        None => steps,
    };
    if ways.spacing.is_some() && row.keeps_spacing() {
        watch(Event::warning(format!("{} keeps its own spacing: what was chosen has no say", row.title)))?;
    }
    let shape = latent_shape(model, request)?;
    let original = request.init.as_ref().map(|init| Original::of(init, model, [shape[2], shape[3]])).transpose()?;
    let words: Vec<Word> = mounted.tokens.iter().map(|token| token.word.clone()).collect();
    for text in [&request.prompt, &request.negative] {
        for word in tokenizer::undefined_words(text, &words) {
            watch(Event::warning(format!("Nothing defines {word}: no adapter in use brings this word")))?;
        }
    }
    if let Some(skip) = mounted.clip_skips.iter().find(|skip| **skip != request.clip_skip) {
        let text =
            format!("An adapter was taught at clip skip {skip}, and this picture is read at {}", request.clip_skip);
        watch(Event::warning(text))?;
    }
    // Strengths rest from here on: what that costs, the first step saves.
    let mounts = mounted.mounts.clone().rest(&model.weights);
    let vectors: Vec<Tensor<3>> = mounted.tokens.iter().map(|token| token.vectors.clone()).collect();
    // Without guidance nobody reads the negative prompt: it must not lengthen the other.
    let negative = if request.is_guided() { &request.negative } else { "" };
    let [negative, prompt] = [negative, &request.prompt].map(|text| Prompt::new(text, &model.tokenizer, &words));
    let context = model.read(&[negative?, prompt?], &vectors, request.clip_skip, &mounts);

    let [n, _, h, w] = shape;
    let context = context.framed(&[Framing::whole([h, w].map(|side| side * model.vae.factor())); 2]);
    let chunk = at_once(n, [h, w]);
    let passes = row.passes(steps.timesteps.len());
    let total = n.div_ceil(chunk) * passes;
    watch(Event::Stage { name: "sampling".into(), total })?;
    let mut latents = Vec::new();
    for first in (0..n).step_by(chunk) {
        let count = chunk.min(n - first);
        let mut run = Run {
            model,
            mounts: &mounts,
            schedule: &schedule,
            steps: &steps,
            context: &context,
            request,
            rescale: ways.rescale,
            original: original.as_ref(),
            first,
            total,
            passed: first / chunk * passes,
            start: noise(model, request, first, count, shape),
            watch,
        };
        let start = run.start.clone();
        let picture = original.as_ref().map(|original| original.latents.clone().expand(start.dims()));
        latents.push(row.sample(&steps, start, picture, &mut run)?);
    }
    let latents = Tensor::cat(latents, 0);
    // One picture at a time: the decoder's activations are the largest of all.
    let pixels = (0..n)
        .map(|i| model.vae.decode(latents.clone().narrow(0, i, 1) / model.vae.config.scaling_factor))
        .collect::<Vec<_>>();
    let pixels = (Tensor::cat(pixels, 0) / 2.0 + 0.5).clamp(0.0, 1.0);
    let pixels = match &original {
        Some(original) => original.paste(pixels),
        None => pixels,
    };
    Ok(Pictures { latents, pixels })
}

/// What the kernels of a request depend on.
pub fn drawing(model: &StableDiffusion, request: &Request) -> Result<Drawing> {
    let [n, _, h, w] = latent_shape(model, request)?;
    let sides = if request.is_guided() { 2 } else { 1 };
    Ok(Drawing { pictures: at_once(n, [h, w]) * sides, size: [h, w] })
}

/// How many of `n` pictures go through the network together.
fn at_once(n: usize, [h, w]: [usize; 2]) -> usize {
    (BATCH_PIXELS / (h * w)).clamp(1, n)
}

fn latent_shape(model: &StableDiffusion, request: &Request) -> Result<[usize; 4]> {
    let channels = model.vae.config.latent_channels;
    if let Some(start) = &request.start {
        let [n, c, h, w] = start.shape;
        if c != channels || n == 0 || h == 0 || w == 0 || h * w > MOST_PIXELS {
            return Err(Error::new(
                format!("The given latents have the shape {:?}", start.shape),
                format!("They must be [n, {channels}, height, width], of at most {MOST_PIXELS} pixels each"),
            ));
        }
        return Ok(start.shape);
    }
    let factor = model.vae.factor();
    let [width, height] = request.size.unwrap_or(model.native_size());
    if width == 0 || height == 0 || !width.is_multiple_of(factor) || !height.is_multiple_of(factor) {
        return Err(Error::usage(
            format!("Pictures of {width}×{height} cannot be made"),
            format!("Width and height must be multiples of {factor}"),
        ));
    }
    if (width / factor).saturating_mul(height / factor) > MOST_PIXELS {
        return Err(Error::usage(
            format!("Pictures of {width}×{height} are too large for this model"),
            format!("Choose a size of at most {} pixels, width times height", MOST_PIXELS * factor * factor),
        ));
    }
    if !(1..=MOST_PICTURES).contains(&request.count) {
        let what = format!("{} pictures cannot be made at once", request.count);
        return Err(Error::usage(what, format!("Choose a count from 1 to {MOST_PICTURES}")));
    }
    Ok([request.count, channels, height / factor, width / factor])
}

/// One batch on its way.
struct Run<'a, 'w> {
    model: &'a StableDiffusion,
    mounts: &'a Mounts,
    schedule: &'a Schedule,
    steps: &'a Steps,
    /// Negative, then positive.
    context: &'a Context,
    request: &'a Request,
    /// φ of [`guidance::rescaled`].
    rescale: f64,
    original: Option<&'a Original>,
    /// Number of the batch's first picture.
    first: usize,
    /// Network passes in all, and so far.
    total: usize,
    passed: usize,
    /// The unit noise it began with.
    start: Tensor<4>,
    watch: &'a mut Watch<'w>,
}

/// Unit noise of `count` pictures from the `first` on.
fn noise(model: &StableDiffusion, request: &Request, first: usize, count: usize, shape: [usize; 4]) -> Tensor<4> {
    let [_, c, h, w] = shape;
    let size = c * h * w;
    let values = match &request.start {
        Some(start) => start.values[first * size..(first + count) * size].to_vec(),
        None => unit_noise(request.seed, 0, first..first + count, size),
    };
    Tensor::from_data(TensorData::new(values, [count, c, h, w]), &model.device)
}

/// Draw `offset` of each picture's own seed, as A1111 and stable-diffusion.cpp number them.
fn unit_noise(seed: u64, offset: u32, pictures: Range<usize>, size: usize) -> Vec<f32> {
    pictures.flat_map(|i| Philox::new(seed.wrapping_add(i as u64)).normal(offset, size)).collect()
}

impl Denoiser for Run<'_, '_> {
    fn denoise(&mut self, x: &Tensor<4>, i: usize) -> Result<Tensor<4>> {
        let (sigma, t) = (self.steps.sigmas[i], self.steps.timesteps[i] as f32);
        let [n, _, _, _] = x.dims();
        let context = |row: usize| self.context.rows(&vec![row; n]);
        let input = guidance::network_input(x.clone(), sigma);
        let forward = |input: Tensor<4>, context: Context| {
            let times = vec![t; input.dims()[0]];
            self.model.unet.forward(input, &times, &context, self.mounts)
        };
        // Without guidance the negative prompt has no say: half the work.
        let out = if self.request.is_guided() {
            let both = forward(Tensor::cat(vec![input.clone(), input], 0), Context::cat(&[context(0), context(1)]));
            let with = both.clone().narrow(0, n, n);
            let guided = guidance::guided(both.narrow(0, 0, n), with.clone(), self.request.cfg);
            if self.rescale > 0.0 { guidance::rescaled(guided, &with, self.rescale) } else { guided }
        } else {
            forward(input, context(1))
        };
        self.passed += 1;
        (self.watch)(Event::Progress { done: self.passed, total: self.total })?;
        Ok(guidance::denoised(x.clone(), out, sigma, self.schedule.prediction))
    }

    fn noise(&mut self, x: &Tensor<4>, i: usize) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let offset = u32::try_from(i + 1).unwrap_or(u32::MAX);
        let values = unit_noise(self.request.seed, offset, self.first..self.first + n, c * h * w);
        Tensor::from_data(TensorData::new(values, [n, c, h, w]), &x.device())
    }

    fn done(&mut self, i: usize, x: Tensor<4>) -> Result<Tensor<4>> {
        let Some(original) = self.original else { return Ok(x) };
        // What is kept is finished when the run is, whatever noise the model leaves at its end.
        let sigma = if i < self.steps.timesteps.len() { self.steps.sigmas[i] } else { 0.0 };
        Ok(original.keep(x, &self.start, sigma))
    }
}
