//! A classifier's new head and the adapters before it, as training begins.

use burn::tensor::{Tensor, TensorData};

use crate::engine::adapter::{Spot, target};
use crate::engine::random::Philox;
use crate::engine::train::step::{Group, Trainee};
use crate::engine::vision::job::Job;
use crate::engine::{Error, Result};

// Streams of their own: the head's, and from the last on one for each layer.
const HEAD: u32 = u32::from_be_bytes(*b"head");
const LAYERS: u32 = 1 << 16;

/// Deviation of a new head's weights, as transformers starts them.
const HEAD_DEVIATION: f32 = 0.02;

impl Job<'_> {
    /// The head's and every layer's tensors before the first step.
    pub(super) fn begin(&self) -> Result<Trainee> {
        let Self { model, context, .. } = self;
        let mut trainee = Trainee::new(self.adapter()?);
        let random = Philox::new(context.seed);
        let shape = [self.data.classes.len(), model.width()];
        let weight = random.stream(HEAD).normal(0, shape[0] * shape[1]).iter().map(|x| x * HEAD_DEVIATION).collect();
        let weight = Tensor::from_data(TensorData::new::<f32, _>(weight, shape), &model.device);
        let bias = Tensor::zeros([1, shape[0]], &model.device);
        trainee.add(format!("{}.weight", model.head_path), weight, Group::Adapter);
        trainee.add(format!("{}.bias", model.head_path), bias, Group::Undecayed);
        if self.method.is_none() {
            return Ok(trainee);
        }
        let wanted = match self.settings.text("targets").trim() {
            "" => model.usual_targets,
            wanted => wanted,
        };
        let targets = target::select(wanted, &model.layers).map_err(|e| Error {
            advice: format!("The usual layers of this network are {}", model.usual_targets),
            ..e
        })?;
        for (place, &id) in targets.iter().enumerate() {
            let layer = &model.layers[id.0];
            let spot = Spot {
                layer,
                weight: &model.weights[id.0],
                depth: place as f32 / targets.len() as f32,
                random: random.stream(LAYERS + id.0 as u32),
            };
            let tensors = trainee.adapter.begin(&spot)?;
            trainee.add_layer(id, &layer.module(), tensors, &model.device);
        }
        Ok(trainee)
    }
}
