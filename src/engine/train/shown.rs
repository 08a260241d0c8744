//! What the denoiser is shown in a step, and how its answer is judged.

use burn::tensor::{Tensor, TensorData};

use crate::engine::diffusion::{Schedule, loss};
use crate::engine::model::{Context, Mounts, StableDiffusion};
use crate::engine::train::step::Batch;

/// The pictures of the concept and, with prior preservation, the first of them again under other prompts: one pass for
/// both, as the layers are the same.
pub struct Shown {
    /// Noisy latents `[b + p, 4, h, w]`.
    pub x: Tensor<4>,
    pub times: Vec<f32>,
    /// For `b + p` pictures.
    pub context: Context,
    /// What the untouched model says under the other prompts, `[p, 4, h, w]`.
    kept: Option<Tensor<4>>,
    /// What it should say of the concept, `[b, 4, h, w]`.
    target: Tensor<4>,
}

/// Means over the pictures.
pub struct Losses {
    pub concept: Tensor<1>,
    /// How far the answers to other prompts have strayed.
    pub prior: Option<Tensor<1>>,
    pub total: Tensor<1>,
}

impl Shown {
    /// `prior` is what the adapted model reads of the other prompts, for `p` pictures.
    pub fn new(
        model: &StableDiffusion,
        schedule: &Schedule,
        batch: &Batch,
        context: Context,
        prior: Option<Context>,
    ) -> Self {
        let noisy = loss::noised(&batch.latents, &batch.noise, &batch.timesteps, schedule);
        let target = loss::target(&batch.latents, &batch.noise, &batch.timesteps, schedule);
        let times: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
        let Some((prior, read)) = batch.prior.as_ref().zip(prior) else {
            return Self { x: noisy, times, context, kept: None, target };
        };
        let p = prior.context.pictures();
        let (again, times_again) = (noisy.clone().narrow(0, 0, p), &times[..p]);
        Self {
            kept: Some(model.unet.forward(again.clone(), times_again, &prior.context, &Mounts::none())),
            x: Tensor::cat(vec![noisy, again], 0),
            times: [&times, times_again].concat(),
            context: Context::cat(&[context, read]),
            target,
        }
    }

    /// Of the answer `[b + p, 4, h, w]`.
    pub fn losses(self, said: Tensor<4>, batch: &Batch) -> Losses {
        let [b, _, _, _] = self.target.dims();
        let weights = Tensor::<1>::from_data(TensorData::new(batch.weights.clone(), [b]), &batch.latents.device());
        let of_concept = if self.kept.is_some() { said.clone().narrow(0, 0, b) } else { said.clone() };
        let errors = batch.measure.per_image(of_concept, self.target, batch.mask.clone());
        let concept = (errors * weights).mean();
        let Some((kept, prior)) = self.kept.zip(batch.prior.as_ref()) else {
            return Losses { total: concept.clone(), concept, prior: None };
        };
        let strayed = loss::per_image(said.narrow(0, b, kept.dims()[0]), kept).mean();
        Losses { total: concept.clone() + strayed.clone() * prior.weight, concept, prior: Some(strayed) }
    }
}
