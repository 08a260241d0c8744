//! One training step: no threads, no files, no clocks.

use std::ops::Deref;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use crate::engine::Result;
use crate::engine::adapter::mount::live;
use crate::engine::adapter::{Adapter, Settling, Start};
use crate::engine::device::read;
use crate::engine::diffusion::Schedule;
use crate::engine::diffusion::loss::Measure;
use crate::engine::model::recompute::{self, Pulled, leaf};
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Context, Framing, LayerId, Mounts, StableDiffusion};
use crate::engine::train::average::Average;
use crate::engine::train::optimizer::{self, Moments};
use crate::engine::train::shown::Shown;

/// A trained tensor with its optimiser state.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// `lora_unet_….lora_up`, or the token: what messages call it.
    pub name: String,
    pub value: Tensor<2>,
    /// None before the first step, and after the parameter was put to sleep.
    pub moments: Option<Moments>,
    pub group: Group,
    /// Whether it learns at this step.
    pub awake: bool,
    /// Times its group's rate.
    pub pace: f64,
}

/// Which rates apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Adapter,
    /// Tensors of an adapter that weight decay leaves alone.
    Undecayed,
    Token,
}

/// One adapted layer: its tensors in the method's order.
#[derive(Clone, Debug)]
pub struct TrainedLayer {
    pub id: LayerId,
    pub names: Vec<&'static str>,
    pub tensors: Vec<Part>,
}

/// A tensor of a layer: frozen, or an index into the parameters.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a few for each layer: some hundreds in all")]
pub enum Part {
    Frozen(Tensor<2>),
    Trained(usize),
}

/// Everything that training changes, and the method that says what it does.
#[derive(Clone)]
pub struct Trainee {
    pub adapter: Arc<dyn Adapter>,
    pub parameters: Vec<Parameter>,
    pub layers: Vec<TrainedLayer>,
    /// Each token's vectors, indices into the parameters, in the order of the words that prompts are encoded with:
    /// `[token_layers · n, width]`, layer by layer.
    pub tokens: Vec<usize>,
    /// 1 where a token's vectors are the same for every cross-attention layer, else how many layers have their own.
    pub token_layers: usize,
    /// Whether gradients are found a stretch of the denoiser at a time: a third slower, in a fraction of the memory.
    pub recompute: bool,
    /// Which of the text encoder's layers the prompts are read at, from the end: 1 is the last.
    pub clip_skip: usize,
    /// What files and pictures are made of, where that is not the parameters as they stand.
    pub average: Option<Average>,
}

/// Rates of one step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub adapter: f64,
    pub token: f64,
    /// Weight decay of the adapter; a token is never decayed.
    pub decay: f64,
    /// Largest joint norm of all gradients; 0 leaves them as they are.
    pub clip: f64,
}

/// What one step looks at.
pub struct Batch {
    /// Clean latents `[b, 4, h, w]`.
    pub latents: Tensor<4>,
    pub noise: Tensor<4>,
    pub timesteps: Vec<usize>,
    pub text: Text,
    /// What SDXL is told of each image's sizes.
    pub framings: Vec<Framing>,
    /// Weight of each image's error, e.g. min-SNR; all ones for the plain mean.
    pub weights: Vec<f32>,
    /// Weight of each latent pixel's error, `[b, 1, h, w]`; none for the plain mean.
    pub mask: Option<Tensor<4>>,
    pub measure: Measure,
    pub prior: Option<Prior>,
}

/// The prompts of a batch.
#[expect(clippy::large_enum_variant, reason = "one for each batch")]
pub enum Text {
    /// Distinct prompts, and which of them each image takes; encoded with the tokens' vectors as they are now.
    Prompts(Vec<Encoded>, Vec<usize>),
    /// Already encoded.
    Context(Context),
}

/// Prior preservation by the base model's prediction: under other prompts the adapted model keeps what the untouched
/// one says about the same noisy pictures (the first of the batch).
pub struct Prior {
    /// Encoded prompts for p ≤ b pictures.
    pub context: Context,
    /// The same prompts with the vectors of their words, where the text encoder learns too: the adapted model reads them
    /// with what that has become.
    pub prompts: Option<(Vec<Encoded>, Vec<Tensor<3>>)>,
    pub weight: f64,
}

impl Prior {
    /// What the adapted model reads.
    pub fn read(&self, model: &StableDiffusion, clip_skip: usize, mounts: &Mounts) -> Context {
        match &self.prompts {
            Some((prompts, words)) => {
                let framings = self.context.pooled().map_or(&[][..], |pooled| &pooled.framings);
                model.context(prompts, words, clip_skip, mounts).framed(framings)
            }
            None => self.context.clone(),
        }
    }
}

/// What a step leaves to report; nothing is read back from the device yet.
pub struct Outcome {
    /// The concept's loss alone.
    pub loss: Tensor<1>,
    pub prior: Option<Tensor<1>>,
    /// What the method adds to the loss.
    pub charged: Option<Tensor<1>>,
    pub gradients: Gradients,
}

/// One for each parameter that is awake, read as a list.
pub struct Gradients {
    each: Vec<Option<Tensor<2>>>,
    /// Their joint norm.
    pub norm: Option<Tensor<1>>,
}

impl Gradients {
    pub fn new(each: Vec<Option<Tensor<2>>>) -> Self {
        let norm = optimizer::joint_norm(each.iter().flatten());
        Self { each, norm }
    }
}

impl Deref for Gradients {
    type Target = [Option<Tensor<2>>];

    fn deref(&self) -> &Self::Target {
        &self.each
    }
}

impl IntoIterator for Gradients {
    type Item = Option<Tensor<2>>;
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.each.into_iter()
    }
}

impl Trainee {
    pub fn new(adapter: Arc<dyn Adapter>) -> Self {
        Self {
            adapter,
            parameters: Vec::new(),
            layers: Vec::new(),
            tokens: Vec::new(),
            token_layers: 1,
            recompute: false,
            clip_skip: 1,
            average: None,
        }
    }

    /// Adds a layer with its tensors before training; `name` is the layer's in messages.
    pub fn add_layer(&mut self, id: LayerId, name: &str, tensors: Vec<Start>, device: &Device) {
        let names = tensors.iter().map(|start| start.name).collect();
        let tensors = tensors
            .into_iter()
            .map(|start| {
                let value = start.tensor(device);
                let group = if start.decays { Group::Adapter } else { Group::Undecayed };
                match start.trains {
                    true => Part::Trained(self.add(format!("{name}.{}", start.name), value, group)),
                    false => Part::Frozen(value),
                }
            })
            .collect();
        self.layers.push(TrainedLayer { id, names, tensors });
    }

    /// Adds a parameter and returns its index.
    pub fn add(&mut self, name: String, value: Tensor<2>, group: Group) -> usize {
        self.parameters.push(Parameter { name, value, moments: None, group, awake: true, pace: 1.0 });
        self.parameters.len() - 1
    }

    /// Wakes the layers of these places in the list and lets the others sleep, who forget their moments.
    pub fn wake(&mut self, layers: &[usize]) {
        for (place, layer) in self.layers.iter().enumerate() {
            let awake = layers.contains(&place);
            for part in &layer.tensors {
                if let Part::Trained(index) = part {
                    let parameter = &mut self.parameters[*index];
                    parameter.awake = awake;
                    parameter.moments = parameter.moments.take().filter(|_| awake);
                }
            }
        }
    }

    /// One layer's tensors, with `values` for the parameters.
    pub fn tensors(layer: &TrainedLayer, values: &[Tensor<2>]) -> Vec<Tensor<2>> {
        let of = |part: &Part| match part {
            Part::Frozen(tensor) => tensor.clone(),
            Part::Trained(index) => values[*index].clone(),
        };
        layer.tensors.iter().map(of).collect()
    }

    /// The adapter in place, with `values` (tracked or not) for the parameters.
    pub fn mounts(&self, values: &[Tensor<2>]) -> Mounts {
        self.placed(Mounts::none().charging(), values)
    }

    /// The adapter in place as it stands: to look at, not to learn from.
    pub fn at_rest(&self) -> Mounts {
        self.placed(Mounts::none(), &self.values())
    }

    fn placed(&self, mut mounts: Mounts, values: &[Tensor<2>]) -> Mounts {
        for layer in &self.layers {
            mounts.add_live(layer.id, live(Arc::clone(&self.adapter), Self::tensors(layer, values)));
        }
        mounts
    }

    /// The parameters as they stand.
    pub fn values(&self) -> Vec<Tensor<2>> {
        self.parameters.iter().map(|p| p.value.clone()).collect()
    }

    /// Each token's vectors `[token_layers, n, width]`, with `values` for the parameters.
    pub fn words(&self, values: &[Tensor<2>]) -> Vec<Tensor<3>> {
        let word = |&index: &usize| {
            let [rows, width] = values[index].dims();
            values[index].clone().reshape([self.token_layers, rows / self.token_layers, width])
        };
        self.tokens.iter().map(word).collect()
    }

    /// What the text encoder makes of the prompts, with `values` for the parameters.
    pub fn context(&self, model: &StableDiffusion, text: &Text, values: &[Tensor<2>], mounts: &Mounts) -> Context {
        match text {
            Text::Context(context) => context.clone(),
            Text::Prompts(prompts, of_image) => {
                model.context(prompts, &self.words(values), self.clip_skip, mounts).rows(of_image)
            }
        }
    }

    /// Loss and gradients of a batch.
    pub fn gradients(&self, model: &StableDiffusion, schedule: &Schedule, batch: &Batch) -> Outcome {
        let start = |p: &Parameter| if p.awake { leaf(p.value.clone()) } else { p.value.clone() };
        let leaves: Vec<Tensor<2>> = self.parameters.iter().map(start).collect();
        let mounts = self.mounts(&leaves);
        let context = self.context(model, &batch.text, &leaves, &mounts).framed(&batch.framings);
        let prior = batch.prior.as_ref().map(|prior| prior.read(model, self.clip_skip, &mounts));
        let shown = Shown::new(model, schedule, batch, context, prior);
        let mut pulled = Pulled::new(&leaves);
        let (x, context) = (shown.x.clone(), shown.context.clone());
        let losses = if self.recompute {
            let charged_by_text = mounts.take_charges();
            let rest = self.at_rest();
            let (said, passed) = recompute::forward(&model.unet, x, &shown.times, context.clone().inner(), &rest);
            let said = leaf(said);
            let losses = shown.losses(said.clone(), batch);
            let gradient = said.grad(&losses.total.backward()).unwrap_or_else(|| said.inner().zeros_like());
            let by_context = recompute::backward(&model.unet, passed, gradient, &leaves, &mounts, &mut pulled);
            // The text encoder's graph has waited for this.
            if context.is_tracked() {
                pulled.pull(context.dot(&by_context), charged_by_text, &leaves);
            }
            losses
        } else {
            let said = model.unet.forward(x, &shown.times, &context, &mounts);
            let losses = shown.losses(said, batch);
            pulled.pull(losses.total.clone(), mounts.take_charges(), &leaves);
            losses
        };
        Outcome {
            loss: losses.concept.inner(),
            prior: losses.prior.map(Tensor::inner),
            charged: pulled.charged,
            gradients: Gradients::new(pulled.leaves),
        }
    }

    /// Moves every parameter that has a gradient, then lets the method correct its layers.
    pub fn update(&mut self, gradients: Gradients, rates: Rates) {
        let adapter = Arc::clone(&self.adapter);
        let settling = adapter.settling().map(|settling| (settling, self.values()));
        let mut moved = vec![false; self.parameters.len()];
        let norm = gradients.norm.filter(|_| rates.clip > 0.0);
        let factor = norm.map(|norm| optimizer::clip_factor(norm, rates.clip));
        for ((parameter, gradient), moved) in self.parameters.iter_mut().zip(gradients.each).zip(&mut moved) {
            let Some(gradient) = gradient else { continue };
            *moved = true;
            let gradient = match &factor {
                Some(factor) => gradient * factor.clone().unsqueeze::<2>(),
                None => gradient,
            };
            let (rate, decay) = match parameter.group {
                Group::Adapter => (rates.adapter * parameter.pace, rates.decay),
                Group::Undecayed => (rates.adapter * parameter.pace, 0.0),
                Group::Token => (rates.token, 0.0),
            };
            let moments = parameter.moments.get_or_insert_with(|| Moments::new(&parameter.value));
            parameter.value = moments.step(parameter.value.clone(), gradient, rate, decay);
        }
        if let Some((settling, before)) = settling {
            self.settle(settling, &before, &moved);
        }
        let values = self.values();
        if let Some(average) = &mut self.average {
            average.follow(&values);
        }
    }

    /// What files and pictures are made of: itself, or its moving average.
    #[must_use]
    pub fn averaged(&self) -> Self {
        let mut averaged = self.clone();
        if let Some(average) = averaged.average.take() {
            for (parameter, value) in averaged.parameters.iter_mut().zip(average.values) {
                parameter.value = value;
            }
        }
        averaged
    }

    /// The method's correction of every layer that has moved.
    fn settle(&mut self, settling: &dyn Settling, before: &[Tensor<2>], moved: &[bool]) {
        let after = self.values();
        for layer in &self.layers {
            let trained = |part: &Part| matches!(part, Part::Trained(index) if moved[*index]);
            if !layer.tensors.iter().any(trained) {
                continue;
            }
            let settled = settling.settle(&Self::tensors(layer, before), Self::tensors(layer, &after));
            for (part, value) in layer.tensors.iter().zip(settled) {
                if let Part::Trained(index) = part {
                    self.parameters[*index].value = value;
                }
            }
        }
    }

    /// The parameter with the largest number, and that number; NaN or infinity counts as infinite and the first such
    /// parameter wins. Reads every value back: not for every step.
    pub fn largest(&self) -> Result<(&str, f32)> {
        let mut found = ("nothing", 0.0);
        for parameter in &self.parameters {
            let size = |x: &f32| if x.is_finite() { x.abs() } else { f32::INFINITY };
            let largest = read(parameter.value.clone())?.iter().map(size).fold(0.0, f32::max);
            if largest > found.1 {
                found = (&parameter.name, largest);
            }
        }
        Ok(found)
    }
}
