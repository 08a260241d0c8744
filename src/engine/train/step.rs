//! One training step: no threads, no files, no clocks.

use burn::tensor::{Int, Tensor, TensorData};

use crate::engine::Result;
use crate::engine::adapter::Factors;
use crate::engine::diffusion::{Schedule, loss};
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Branch, LayerId, Mounts, StableDiffusion};
use crate::engine::train::optimizer::{self, Moments};

/// A trained tensor with its optimiser state.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// `lora_unet_….lora_up`, or the token: what messages call it.
    pub name: String,
    pub value: Tensor<2>,
    pub moments: Moments,
    pub group: Group,
}

/// Parameters of one learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Adapter,
    Token,
}

/// One adapted layer; sides that train are indices into the parameters.
#[derive(Clone, Debug)]
pub struct TrainedLayer {
    pub id: LayerId,
    pub down: Side,
    pub up: usize,
    pub scale: f32,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each layer: a few hundred in all")]
pub enum Side {
    Frozen(Tensor<2>),
    Trained(usize),
}

/// Everything that training changes.
#[derive(Clone, Debug)]
pub struct Trainee {
    pub parameters: Vec<Parameter>,
    pub layers: Vec<TrainedLayer>,
    /// The token's vectors `[n, width]`, an index into the parameters.
    pub token: Option<usize>,
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
    /// Weight of each image's error, e.g. min-SNR; all ones for the plain mean.
    pub weights: Vec<f32>,
    pub prior: Option<Prior>,
}

/// The prompts of a batch.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Text {
    /// Distinct prompts, and which of them each image takes; encoded with the token's vectors as they are now.
    Prompts(Vec<Encoded>, Vec<usize>),
    /// Already encoded, `[b, n, width]`.
    Context(Tensor<3>),
}

/// Prior preservation by the base model's prediction: under other prompts the adapted model keeps what the untouched
/// one says about the same noisy pictures (the first of the batch).
pub struct Prior {
    /// Encoded prompts `[p, n, width]`, p ≤ b.
    pub context: Tensor<3>,
    pub weight: f64,
}

/// What a step leaves to report; nothing is read back from the device yet.
pub struct Outcome {
    /// The concept's loss, without the prior's.
    pub loss: Tensor<1>,
    pub prior: Option<Tensor<1>>,
    pub gradients: Vec<Option<Tensor<2>>>,
}

impl Trainee {
    /// Adds a layer with its starting factors.
    pub fn add_layer(&mut self, id: LayerId, name: &str, factors: Factors, model: &StableDiffusion) {
        let layer = model.layer(id);
        let tensor =
            |values: Vec<f32>, shape: [usize; 2]| Tensor::from_data(TensorData::new(values, shape), &model.device);
        let (rank, scale) = (factors.rank, factors.scale());
        let down = tensor(factors.down, [rank, layer.input()]);
        let down = match factors.train_down {
            true => Side::Trained(self.add(format!("{name}.lora_down"), down, Group::Adapter)),
            false => Side::Frozen(down),
        };
        let up = self.add(format!("{name}.lora_up"), tensor(factors.up, [layer.out, rank]), Group::Adapter);
        self.layers.push(TrainedLayer { id, down, up, scale });
    }

    /// Adds a parameter and returns its index.
    pub fn add(&mut self, name: String, value: Tensor<2>, group: Group) -> usize {
        self.parameters.push(Parameter { name, moments: Moments::new(&value), value, group });
        self.parameters.len() - 1
    }

    /// The adapter in place, with `values` (tracked or not) for the parameters.
    pub fn mounts(&self, values: &[Tensor<2>]) -> Mounts {
        let mut mounts = Mounts::none();
        for layer in &self.layers {
            let down = match &layer.down {
                Side::Frozen(down) => down.clone(),
                Side::Trained(index) => values[*index].clone(),
            };
            mounts.add(layer.id, Branch { down, up: values[layer.up].clone(), scale: layer.scale });
        }
        mounts
    }

    /// The parameters as they stand.
    pub fn values(&self) -> Vec<Tensor<2>> {
        self.parameters.iter().map(|p| p.value.clone()).collect()
    }

    /// Loss and gradients of a batch.
    pub fn gradients(&self, model: &StableDiffusion, schedule: &Schedule, batch: &Batch) -> Outcome {
        let leaves: Vec<Tensor<2>> =
            self.parameters.iter().map(|p| p.value.clone().autodiff().require_grad()).collect();
        let mounts = self.mounts(&leaves);
        let context = match &batch.text {
            Text::Context(context) => context.clone(),
            Text::Prompts(prompts, of_image) => {
                let tokens: Vec<Tensor<2>> = self.token.iter().map(|&index| leaves[index].clone()).collect();
                let encoded = model.condition(prompts, &tokens, &mounts);
                let index: Vec<i32> = of_image.iter().map(|&i| i32::try_from(i).unwrap_or(0)).collect();
                encoded.select(0, Tensor::<1, Int>::from_data(TensorData::new(index, [of_image.len()]), &model.device))
            }
        };
        let b = batch.timesteps.len();
        let noisy = loss::noised(&batch.latents, &batch.noise, &batch.timesteps, schedule);
        let times: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
        let target = loss::target(&batch.latents, &batch.noise, &batch.timesteps, schedule);
        let weights = Tensor::<1>::from_data(TensorData::new(batch.weights.clone(), [b]), &model.device);

        let (prediction, prior) = match &batch.prior {
            None => (model.unet.forward(noisy, &times, &context, &mounts), None),
            Some(prior) => {
                let p = prior.context.dims()[0];
                let (again, times_again) = (noisy.clone().narrow(0, 0, p), &times[..p]);
                let kept = model.unet.forward(again.clone(), times_again, &prior.context, &Mounts::none());
                // One pass for both: the layers are the same, only the prompts differ.
                let both = model.unet.forward(
                    Tensor::cat(vec![noisy, again], 0),
                    &[&times, times_again].concat(),
                    &Tensor::cat(vec![context, prior.context.clone()], 0),
                    &mounts,
                );
                let strayed = loss::per_image(both.clone().narrow(0, b, p), kept).mean();
                (both.narrow(0, 0, b), Some((strayed, prior.weight)))
            }
        };
        let concept = (loss::per_image(prediction, target) * weights).mean();
        let total = match &prior {
            Some((strayed, weight)) => concept.clone() + strayed.clone() * *weight,
            None => concept.clone(),
        };
        let gradients = total.backward();
        Outcome {
            loss: concept.inner(),
            prior: prior.map(|(strayed, _)| strayed.inner()),
            gradients: leaves.iter().map(|leaf| leaf.grad(&gradients)).collect(),
        }
    }

    /// Moves every parameter that has a gradient; `t` counts steps from 1.
    pub fn update(&mut self, gradients: Vec<Option<Tensor<2>>>, t: usize, rates: Rates) {
        let factor = match rates.clip > 0.0 {
            true => optimizer::clip_factor(&gradients.iter().flatten().cloned().collect::<Vec<_>>(), rates.clip),
            false => None,
        };
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let gradient = match &factor {
                Some(factor) => gradient * factor.clone().unsqueeze::<2>(),
                None => gradient,
            };
            let (rate, decay) = match parameter.group {
                Group::Adapter => (rates.adapter, rates.decay),
                Group::Token => (rates.token, 0.0),
            };
            parameter.value = parameter.moments.step(parameter.value.clone(), gradient, t, rate, decay);
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

/// A tensor's values on the host. Waits for the device.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().try_to_vec::<f32>().map_err(|e| {
        crate::engine::Error::new(
            format!("The device did not return its result ({e:?})"),
            "Try again, or use --device cpu",
        )
    })
}
