//! What a run leaves: its trained tensors as an adapter file.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::adapter::Stored;
use crate::engine::device::read;
use crate::engine::io::lora_file::{Difference, LoraFile, LoraLayer, Matrix};
use crate::engine::io::token_vectors::Vectors;
use crate::engine::model::{Layer, Weight};
use crate::engine::train::config::Config;
use crate::engine::train::job::Job;
use crate::engine::train::metadata;
use crate::engine::train::step::{TrainedLayer, Trainee};

impl Job<'_> {
    /// The file of what was learnt by `step`.
    pub fn file(&self, config: &Config, trainee: &Trainee, fingerprint: &str, step: usize) -> Result<LoraFile> {
        let second_width = self.model.second.as_ref().map_or(0, |second| second.encoder.config.hidden_size);
        let (path, dtype) = (self.out.clone(), Some(config.dtype));
        let mut file = LoraFile { path, second_width, dtype, ..LoraFile::default() };
        let values = trainee.values();
        for trained in &trainee.layers {
            let (layer, weight) = (self.model.layer(trained.id), self.model.weight(trained.id));
            store(&mut file, trainee, trained, &values, layer, weight)?;
        }
        for &index in &trainee.tokens {
            let parameter = &trainee.parameters[index];
            let [rows, width] = parameter.value.dims();
            let values = read(parameter.value.clone())?;
            let vectors: Vectors = values.chunks(width).map(<[f32]>::to_vec).collect();
            if trainee.token_layers > 1 {
                let layers = vectors.chunks(rows / trainee.token_layers).map(<[_]>::to_vec).collect();
                file.add_layers(&parameter.name, layers);
            } else {
                file.tokens.insert(parameter.name.clone(), vectors);
            }
        }
        file.metadata = metadata::of(self, &file, config, trainee.adapter.basis(), fingerprint, step);
        Ok(file)
    }
}

/// What a layer learnt, in the form its method leaves.
pub fn store(
    file: &mut LoraFile,
    trainee: &Trainee,
    trained: &TrainedLayer,
    values: &[Tensor<2>],
    layer: &Layer,
    weight: &Weight,
) -> Result<()> {
    let tensors = Trainee::tensors(trained, values);
    match trainee.adapter.store(&tensors, weight)? {
        Stored::Lora { down, up, rank, alpha, bias } => {
            let (down_shape, up_shape) = (layer.down_shape(rank), layer.up_shape(rank));
            file.layers.insert(layer.module(), LoraLayer { down, up, rank, alpha, down_shape, up_shape });
            if bias.is_some() {
                file.differences.insert(layer.module(), Difference { bias, ..Difference::default() });
            }
        }
        Stored::Difference(weight) => {
            let shape = layer.down_shape(layer.out);
            file.differences.insert(layer.module(), Difference { weight, shape, bias: None });
        }
        Stored::Own => {
            let parts = trained
                .names
                .iter()
                .zip(&tensors)
                .map(|(&name, tensor)| {
                    Ok((name.to_owned(), Matrix { values: read(tensor.clone())?, shape: tensor.dims() }))
                })
                .collect::<Result<BTreeMap<_, _>>>()?;
            file.own.insert(layer.module(), parts);
        }
        Stored::Nothing => {}
    }
    Ok(())
}
