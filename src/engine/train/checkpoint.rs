//! The state of an unfinished run, in `OUT.state/`: what `--resume` goes on from, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};

use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::train::step::{Trainee, read};
use crate::engine::{Error, Result};

/// The folder that holds the state of the run that will write `out`.
pub fn folder(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

fn file(out: &Path) -> PathBuf {
    folder(out).join("state.safetensors")
}

/// Keeps parameters, optimiser moments and the losses so far. NaN in a parameter refuses, naming it.
pub fn save(out: &Path, trainee: &Trainee, losses: &[f32], fingerprint: &str) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for parameter in &trainee.parameters {
        let parts =
            [("value", &parameter.value), ("mean", &parameter.moments.mean), ("square", &parameter.moments.square)];
        for (part, tensor) in parts {
            let values = read(tensor.clone())?;
            if values.iter().any(|x| !x.is_finite()) {
                return Err(Error::new(
                    format!("{} holds NaN or infinite numbers", parameter.name),
                    "Lower the learning rates",
                ));
            }
            tensors.insert(
                format!("{part}.{}", parameter.name),
                safetensors::Tensor::new(Dtype::F32, &tensor.dims(), &values),
            );
        }
    }
    tensors.insert("losses".into(), safetensors::Tensor::new(Dtype::F32, &[losses.len()], losses));
    let metadata = BTreeMap::from([("fingerprint".to_owned(), fingerprint.to_owned())]);
    safetensors::save(&file(out), &tensors, &metadata)
}

/// Restores what [`save`] kept and returns the losses so far (one for each step done); `None` where nothing is kept.
pub fn load(out: &Path, trainee: &mut Trainee, fingerprint: &str, device: &Device) -> Result<Option<Vec<f32>>> {
    let path = file(out);
    if !path.is_file() {
        return Ok(None);
    }
    let state = Checkpoint::open(&path)?;
    if state.metadata().get("fingerprint").map(String::as_str) != Some(fingerprint) {
        return Err(Error::new(
            "The state to resume from belongs to a run with other settings, pictures or model",
            "Give the same command as before, or leave out --resume to start afresh",
        )
        .at(path));
    }
    for parameter in &mut trainee.parameters {
        let restore = |part: &str, like: &Tensor<2>| -> Result<Tensor<2>> {
            let values = state.f32(&format!("{part}.{}", parameter.name))?;
            if values.len() != like.shape().num_elements() {
                return Err(Error::new("The saved state is damaged", "Leave out --resume to start afresh").at(&path));
            }
            Ok(Tensor::from_data(TensorData::new(values, like.dims()), device))
        };
        let (value, mean, square) = (
            restore("value", &parameter.value)?,
            restore("mean", &parameter.value)?,
            restore("square", &parameter.value)?,
        );
        (parameter.value, parameter.moments.mean, parameter.moments.square) = (value, mean, square);
    }
    Ok(Some(state.f32("losses")?))
}

/// Forgets the state; what is not there is fine.
pub fn remove(out: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder(out)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove the old state", &folder(out), &e)),
        _ => Ok(()),
    }
}
