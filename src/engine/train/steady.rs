//! A loss that can be compared over time: always the same pictures under the same noise at the same timesteps.
//!
//! The loss of a step depends more on how noisy its pictures were drawn than on what was learnt. This one is measured
//! forward only and without prior, as the plain mean square error. Twice the batch's pictures are looked at, so that at
//! the usual every 25 steps it costs about a hundredth of them.

use burn::tensor::{Tensor, TensorData};

use crate::engine::Result;
use crate::engine::device::read;
use crate::engine::diffusion::{Schedule, loss};
use crate::engine::model::{Framing, StableDiffusion};
use crate::engine::random::Philox;
use crate::engine::train::data::{Data, Seen};
use crate::engine::train::step::{Text, Trainee};

/// A stream of its own, and a seed of its own: runs of other seeds are measured alike.
const NOISE: u32 = 6;
const SEED: u64 = 0;
/// In the middles of as many equal parts of the schedule.
const TIMESTEPS: usize = 4;

/// What is looked at.
pub struct Steady {
    /// One for each pass.
    passes: Vec<Pass>,
    /// Mean square errors in all.
    draws: usize,
}

/// As many pictures as a batch has at most.
struct Pass {
    /// `[b, 4, h, w]`, with their noise in them.
    noisy: Tensor<4>,
    target: Tensor<4>,
    times: Vec<f32>,
    text: Text,
    framings: Vec<Framing>,
}

impl Steady {
    /// Twice `batch` pictures, or as many as there are timesteps, in passes of pictures of one size.
    pub fn new(data: &Data, schedule: &Schedule, batch: usize) -> Self {
        let draws = (2 * batch).max(TIMESTEPS);
        let passes = data
            .steady(draws, batch)
            .into_iter()
            .map(|Seen { draws: some, latents, text, framings }| {
                let [b, c, h, w] = latents.dims();
                let middle = |draw: usize| (2 * (draw % TIMESTEPS) + 1) * schedule.len() / (2 * TIMESTEPS);
                let timesteps: Vec<usize> = some.clone().map(middle).collect();
                let random = Philox::new(SEED).stream(NOISE);
                let noise = some.flat_map(|draw| random.normal(draw as u32, c * h * w)).collect();
                let noise = Tensor::from_data(TensorData::new::<f32, _>(noise, [b, c, h, w]), &latents.device());
                Pass {
                    noisy: loss::noised(&latents, &noise, &timesteps, schedule),
                    target: loss::target(&latents, &noise, &timesteps, schedule),
                    times: timesteps.into_iter().map(|t| t as f32).collect(),
                    text,
                    framings,
                }
            })
            .collect();
        Self { passes, draws }
    }

    /// The loss of the adapter as it stands.
    pub fn loss(&self, model: &StableDiffusion, trainee: &Trainee) -> Result<f32> {
        let (mounts, values) = (trainee.at_rest(), trainee.values());
        let errors = self.passes.iter().map(|pass| {
            let context = trainee.context(model, &pass.text, &values, &mounts).framed(&pass.framings);
            let said = model.unet.forward(pass.noisy.clone(), &pass.times, &context, &mounts);
            loss::per_image(said, pass.target.clone())
        });
        let errors = read(Tensor::cat(errors.collect(), 0))?;
        Ok(errors.iter().sum::<f32>() / self.draws as f32)
    }
}
