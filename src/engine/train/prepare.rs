//! The kernels of a step, before the first step stands still for them.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::event::Watch;
use crate::engine::model::recompute::leaf;
use crate::engine::model::{Context, Mounts, StableDiffusion};
use crate::engine::prepare::Stage;
use crate::engine::train::step::{Batch, Trainee};

impl Trainee {
    /// Every size that [`Trainee::gradients`] of this batch will meet in the denoiser.
    pub fn prepare(&self, model: &StableDiffusion, batch: &Batch, watch: &mut Watch<'_>) -> Result<()> {
        let (unet, x) = (&model.unet, batch.latents.clone());
        let stretches = unet.stretches().len();
        let leaves: Vec<Tensor<2>> = self.values().into_iter().map(leaf).collect();
        let mounts = self.mounts(&leaves);
        let times: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
        let read = || self.context(model, &batch.text, &leaves, &mounts).framed(&batch.framings);
        let Some(prior) = &batch.prior else {
            return Stage::begin(stretches, watch)?.learn(unet, x, &times, read(), &mounts).map(drop);
        };
        let mut stage = Stage::begin(2 * stretches, watch)?;
        let p = prior.context.pictures();
        let (again, times_again) = (x.clone().narrow(0, 0, p), &times[..p]);
        stage.forward(unet, again.clone(), times_again, &prior.context, &Mounts::none())?;
        let context = Context::cat(&[read(), prior.read(model, self.clip_skip, &mounts)]);
        let times = [&times, times_again].concat();
        stage.learn(unet, Tensor::cat(vec![x, again], 0), &times, context, &mounts).map(drop)
    }
}
