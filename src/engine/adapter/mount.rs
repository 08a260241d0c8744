//! From adapter files to terms on a model's layers.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};

use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::io::names;
use crate::engine::model::{Branch, LayerId, Mounts, StableDiffusion};
use crate::engine::{Error, Result};

/// The user's multipliers of one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Strength {
    /// On the denoiser.
    pub unet: f32,
    /// On the text encoder.
    pub text: f32,
    /// On single blocks, by the names [`names::block`] gives; multiplies the above.
    pub blocks: BTreeMap<String, f32>,
}

impl Default for Strength {
    fn default() -> Self {
        Self { unet: 1.0, text: 1.0, blocks: BTreeMap::new() }
    }
}

impl Strength {
    /// The same strength everywhere.
    pub fn uniform(strength: f32) -> Self {
        Self { unet: strength, text: strength, blocks: BTreeMap::new() }
    }

    /// The multiplier of one layer, by kohya's module name.
    pub fn of(&self, module: &str) -> f32 {
        let part = if module.starts_with(names::KOHYA_TEXT) { self.text } else { self.unet };
        part * self.blocks.get(&names::block(module)).copied().unwrap_or(1.0)
    }
}

/// Adds every layer of `file` to `mounts`. A file with layers that the model lacks is refused.
pub fn mount(mounts: &mut Mounts, model: &StableDiffusion, file: &LoraFile, strength: &Strength) -> Result<()> {
    let table: BTreeMap<String, LayerId> = model.layer_ids().map(|(id, layer)| (layer.module(), id)).collect();
    for (module, layer) in &file.layers {
        let Some(&id) = table.get(module) else {
            return Err(foreign(model, &format!("it has no layer {module}")).at(&file.path));
        };
        let of_model = model.layer(id);
        if (layer.out(), layer.input()) != (of_model.out, of_model.input()) {
            let why = format!(
                "layer {module} has {} inputs and {} outputs here, {} and {} in the adapter",
                of_model.input(),
                of_model.out,
                layer.input(),
                layer.out()
            );
            return Err(foreign(model, &why).at(&file.path));
        }
        mounts.add(id, branch(layer, strength.of(module), model));
    }
    Ok(())
}

fn branch(layer: &LoraLayer, strength: f32, model: &StableDiffusion) -> Branch {
    let tensor =
        |values: &[f32], shape: [usize; 2]| Tensor::from_data(TensorData::new(values.to_vec(), shape), &model.device);
    Branch {
        down: tensor(&layer.down, [layer.rank, layer.input()]),
        up: tensor(&layer.up, [layer.out(), layer.rank]),
        scale: layer.scale() * strength,
    }
}

fn foreign(model: &StableDiffusion, why: &str) -> Error {
    Error::new(
        format!("The adapter was made for another model than {}: {why}", model.name),
        "Choose the model it was trained on, or one of the same family",
    )
}
