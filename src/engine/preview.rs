//! From prompt to picture.

use burn::tensor::{Tensor, TensorData};

use crate::engine::device::read;
use crate::engine::diffusion::sampler::{self, Denoiser};
use crate::engine::diffusion::schedule::Steps;
use crate::engine::diffusion::{Schedule, guidance};
use crate::engine::event::{Event, Watch};
use crate::engine::io::token_vectors::Meaning;
use crate::engine::model::tokenizer::{self, Word};
use crate::engine::model::unet::MOST_PIXELS;
use crate::engine::model::{Context, Mounts, StableDiffusion};
use crate::engine::random::Philox;
use crate::engine::words::counted;
use crate::engine::{Error, Result};

/// Latent pixels that one pass of the network takes at most; more pictures go one batch after the other.
const BATCH_PIXELS: usize = 8192;
/// All pictures of a request are held until the last is done.
const MOST_PICTURES: usize = 1000;

#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: String,
    pub negative: String,
    pub sampler: String,
    pub steps: usize,
    /// Guidance; 1 follows the prompt without it.
    pub cfg: f64,
    /// Picture `i` takes seed `seed + i`.
    pub seed: u64,
    /// `[width, height]` in pixels; `None` is the model's own.
    pub size: Option<[usize; 2]>,
    pub count: usize,
    /// Unit noise `[n, 4, h, w]` to start from instead of the seed's.
    pub start: Option<Start>,
}

#[derive(Clone, Debug)]
pub struct Start {
    pub values: Vec<f32>,
    pub shape: [usize; 4],
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative: String::new(),
            sampler: sampler::SAMPLERS[0].name.into(),
            steps: 20,
            cfg: 4.0,
            seed: 0,
            size: None,
            count: 1,
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
        let (width, has) = (model.text.config.hidden_size, model.unet.cross_attentions);
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
        let values = read(self.pixels.clone())?;
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
}

/// Makes the pictures of a request.
pub fn sample(
    model: &StableDiffusion,
    mounted: &Mounted,
    request: &Request,
    watch: &mut Watch<'_>,
) -> Result<Pictures> {
    if !request.cfg.is_finite() {
        return Err(Error::usage(
            "The guidance is not a number",
            "Choose one such as 4; 1 follows the prompt without it",
        ));
    }
    let row = sampler::sampler(&request.sampler)?;
    let schedule = Schedule::new(&model.schedule)?;
    let steps = schedule.steps(row.spacing, request.steps)?;
    let shape = latent_shape(model, request)?;
    let words: Vec<Word> = mounted.tokens.iter().map(|token| token.word.clone()).collect();
    for text in [&request.prompt, &request.negative] {
        for word in tokenizer::undefined_words(text, &words) {
            watch(Event::warning(format!("Nothing defines {word}: no adapter in use brings this word")))?;
        }
    }
    // Strengths rest from here on: what that costs, the first step saves.
    let mounts = mounted.mounts.clone().rest(&model.weights);
    let vectors: Vec<Tensor<3>> = mounted.tokens.iter().map(|token| token.vectors.clone()).collect();
    let encoded = [&request.negative, &request.prompt].map(|text| model.tokenizer.encode(text, &words));
    let [negative, prompt] = encoded;
    let context = model.context(&[negative?, prompt?], &vectors, &mounts);

    let [n, _, h, w] = shape;
    let chunk = (BATCH_PIXELS / (h * w)).clamp(1, n);
    watch(Event::Stage { name: "sampling".into(), total: n.div_ceil(chunk) * request.steps })?;
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
            first,
            total: n.div_ceil(chunk) * request.steps,
            before: first / chunk * request.steps,
            watch,
        };
        let noise = run.start(count, shape);
        latents.push(row.sample(&steps, noise, &mut run)?);
    }
    let latents = Tensor::cat(latents, 0);
    // One picture at a time: the decoder's activations are the largest of all.
    let pixels = (0..n)
        .map(|i| model.vae.decode(latents.clone().narrow(0, i, 1) / model.vae.config.scaling_factor))
        .collect::<Vec<_>>();
    let pixels = (Tensor::cat(pixels, 0) / 2.0 + 0.5).clamp(0.0, 1.0);
    if read(pixels.clone())?.iter().any(|x| !x.is_finite()) {
        return Err(Error::new(
            "The picture came out as NaN",
            "Lower the adapters' strengths or the guidance, or use --device cpu",
        ));
    }
    Ok(Pictures { latents, pixels })
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
    /// Number of the batch's first picture.
    first: usize,
    /// Network passes in all and before this batch.
    total: usize,
    before: usize,
    watch: &'a mut Watch<'w>,
}

impl Run<'_, '_> {
    fn start(&self, count: usize, [_, c, h, w]: [usize; 4]) -> Tensor<4> {
        let size = c * h * w;
        let values = match &self.request.start {
            Some(start) => start.values[self.first * size..(self.first + count) * size].to_vec(),
            None => self.unit_noise(0, count, size),
        };
        Tensor::from_data(TensorData::new(values, [count, c, h, w]), &self.model.device)
    }

    /// Draw `offset` of each picture's own seed, as A1111 and stable-diffusion.cpp number them.
    fn unit_noise(&self, offset: u32, count: usize, size: usize) -> Vec<f32> {
        (self.first..self.first + count)
            .flat_map(|i| Philox::new(self.request.seed.wrapping_add(i as u64)).normal(offset, size))
            .collect()
    }
}

impl Denoiser for Run<'_, '_> {
    fn denoise(&mut self, x: &Tensor<4>, i: usize) -> Result<Tensor<4>> {
        let (sigma, t) = (self.steps.sigmas[i], self.steps.timesteps[i] as f32);
        let [n, _, _, _] = x.dims();
        let context = |row: usize| {
            self.context.map(|both| {
                let [_, tokens, width] = both.dims();
                both.narrow(0, row, 1).expand([n, tokens, width])
            })
        };
        let input = guidance::network_input(x.clone(), sigma);
        let forward = |input: Tensor<4>, context: Context| {
            let times = vec![t; input.dims()[0]];
            self.model.unet.forward(input, &times, &context, self.mounts)
        };
        // Without guidance the negative prompt has no say: half the work.
        let out = if (self.request.cfg - 1.0).abs() < 1e-9 {
            forward(input, context(1))
        } else {
            let both = forward(Tensor::cat(vec![input.clone(), input], 0), Context::cat(&[context(0), context(1)]));
            guidance::guided(both.clone().narrow(0, 0, n), both.narrow(0, n, n), self.request.cfg)
        };
        Ok(guidance::denoised(x.clone(), out, sigma, self.schedule.prediction))
    }

    fn noise(&mut self, x: &Tensor<4>, i: usize) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let offset = u32::try_from(i + 1).unwrap_or(u32::MAX);
        Tensor::from_data(TensorData::new(self.unit_noise(offset, n, c * h * w), [n, c, h, w]), &x.device())
    }

    fn done(&mut self, i: usize, _: &Tensor<4>) -> Result<()> {
        (self.watch)(Event::Progress { done: self.before + i, total: self.total })
    }
}
