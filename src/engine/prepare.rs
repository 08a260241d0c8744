//! Kernels made before they are waited for.
//!
//! A GPU's shaders are compiled, and the fastest of several is looked for, when an operation first meets a size. What was
//! fastest is kept between two starts of the program (`tuning`); what was compiled, only where the driver does so, because
//! cubecl 0.11 keeps no WGSL. So the first pass through a network takes long, and what it makes depends on the very sizes.
//! Here the first pass goes stretch by stretch: it can be followed and stopped in between, and what is made stays made.

use burn::tensor::{Tensor, TensorData};

use crate::engine::Result;
use crate::engine::device::{cpu, wait};
use crate::engine::event::{Event, Watch};
use crate::engine::model::chunks::Prompt;
use crate::engine::model::recompute::leaf;
use crate::engine::model::unet::Unet;
use crate::engine::model::{Context, Framing, Mounts, StableDiffusion};
use crate::engine::random::Philox;

/// The stage it is told as.
pub const STAGE: &str = "preparing kernels";

/// A timestep like any other.
const TIME: f32 = 500.0;

/// What the kernels of a picture depend on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drawing {
    /// Pictures that the denoiser sees at once, both sides of the guidance counted.
    pub pictures: usize,
    /// `[height, width]` of the latents.
    pub size: [usize; 2],
}

/// How far it is.
pub struct Stage<'a, 'w> {
    done: usize,
    total: usize,
    watch: &'a mut Watch<'w>,
}

impl<'a, 'w> Stage<'a, 'w> {
    pub fn begin(total: usize, watch: &'a mut Watch<'w>) -> Result<Self> {
        watch(Event::Stage { name: STAGE.into(), total })?;
        Ok(Self { done: 0, total, watch })
    }

    fn step(&mut self) -> Result<()> {
        self.done += 1;
        (self.watch)(Event::Progress { done: self.done, total: self.total })
    }

    /// [`Unet::forward`], a step for each stretch.
    pub fn forward(
        &mut self,
        unet: &Unet,
        x: Tensor<4>,
        times: &[f32],
        context: &Context,
        mounts: &Mounts,
    ) -> Result<Tensor<4>> {
        let device = x.device();
        let time = unet.time(&unet.sinusoids(times, context, &device), context, mounts);
        let mut is_first = true;
        let answer = unet.walk(x, &time, context, mounts, |_, _, _| {
            // The stretch before this one.
            wait(&device)?;
            if std::mem::take(&mut is_first) { Ok(()) } else { self.step() }
        })?;
        wait(&device)?;
        self.step()?;
        Ok(answer)
    }

    /// Each stretch forwards and backwards under `mounts`, as a training step runs them; a step for each stretch. From one
    /// to the next the untouched network leads: its sizes are the same.
    pub fn learn(
        &mut self,
        unet: &Unet,
        x: Tensor<4>,
        times: &[f32],
        context: Context,
        mounts: &Mounts,
    ) -> Result<Tensor<4>> {
        let (device, untouched) = (x.device(), Mounts::none());
        let context = context.inner();
        let time = unet.time(&unet.sinusoids(times, &context, &device), &context, &untouched);
        let (leaf_time, leaf_context) = (leaf(time.clone()), context.clone().map(leaf).map_pooled(leaf));
        let stretches = unet.stretches();
        let mut next = stretches.iter();
        unet.walk(x, &time, &context, &untouched, |x, skip, size| {
            let Some(stretch) = next.next() else { return Ok(()) };
            let answer = stretch.run(leaf(x.clone()), skip.cloned().map(leaf), size, &leaf_time, &leaf_context, mounts);
            let loss = mounts.take_charges().into_iter().fold(answer.powi_scalar(2).mean(), |loss, more| loss + more);
            drop(loss.backward());
            wait(&device)?;
            self.step()
        })
    }
}

/// From a prompt to pixels, once. The CPU's kernels are made already: there nothing is done and nothing told.
pub fn drawing(model: &StableDiffusion, drawing: &Drawing, watch: &mut Watch<'_>) -> Result<()> {
    if model.device == cpu() {
        return Ok(());
    }
    let &Drawing { pictures, size: [h, w] } = drawing;
    let mut stage = Stage::begin(model.unet.stretches().len() + 2, watch)?;
    let none = Mounts::none();
    let framing = Framing::whole([h, w].map(|side| side * model.vae.factor()));
    let prompt = Prompt::new("", &model.tokenizer, &[])?;
    let context = model.read(&[prompt], &[], 1, &none).framed(&[framing]).rows(&vec![0; pictures]);
    wait(&model.device)?;
    stage.step()?;
    let shape = [pictures, model.unet.config.in_channels, h, w];
    let noise = TensorData::new(Philox::new(0).normal(0, shape.iter().product()), shape);
    let noise = Tensor::from_data(noise, &model.device);
    let answer = stage.forward(&model.unet, noise, &vec![TIME; pictures], &context, &none)?;
    // Nobody looks at the picture.
    drop(model.vae.decode(answer.narrow(0, 0, 1)));
    wait(&model.device)?;
    stage.step()
}
