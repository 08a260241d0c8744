//! The state of an unfinished run, in `OUT.state/`: what `--resume` goes on from, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};

use crate::engine::device::read;
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::train::optimizer::Moments;
use crate::engine::train::step::Trainee;
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

/// Whether there is a state to go on from.
pub fn exists(out: &Path) -> bool {
    file(out).is_file()
}

/// Keeps parameters, optimiser moments and the losses so far. NaN in a parameter refuses, naming it.
pub fn save(out: &Path, trainee: &Trainee, losses: &[f32], fingerprint: &str) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let mut steps = BTreeMap::new();
    for parameter in &trainee.parameters {
        let mut parts = vec![("value", &parameter.value)];
        if let Some(moments) = &parameter.moments {
            parts.extend([("mean", &moments.mean), ("square", &moments.square)]);
            steps.insert(&parameter.name, moments.steps);
        }
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
    let metadata = BTreeMap::from([
        ("fingerprint".to_owned(), fingerprint.to_owned()),
        ("steps".to_owned(), serde_json::json!(steps).to_string()),
    ]);
    safetensors::save(&file(out), &tensors, &metadata)
}

/// Restores what [`save`] kept and returns the losses so far (one for each step done); `None` where nothing is kept.
pub fn load(out: &Path, trainee: &mut Trainee, fingerprint: &str, device: &Device) -> Result<Option<Vec<f32>>> {
    if !exists(out) {
        return Ok(None);
    }
    let path = file(out);
    let state = Checkpoint::open(&path)?;
    if state.metadata().get("fingerprint").map(String::as_str) != Some(fingerprint) {
        return Err(Error::new(
            "The state to resume from belongs to a run with other settings, pictures or model",
            "Give the same command as before, or leave out --resume to start afresh",
        )
        .at(path));
    }
    let damaged = || Error::new("The saved state is damaged", "Leave out --resume to start afresh").at(&path);
    let steps = state.metadata().get("steps").ok_or_else(damaged)?;
    let steps: BTreeMap<String, i32> = serde_json::from_str(steps).ok().ok_or_else(damaged)?;
    for parameter in &mut trainee.parameters {
        let restore = |part: &str| -> Result<Tensor<2>> {
            let values = state.f32(&format!("{part}.{}", parameter.name))?;
            let sound = values.iter().all(|x| x.is_finite());
            match sound && values.len() == parameter.value.shape().num_elements() {
                true => Ok(Tensor::from_data(TensorData::new(values, parameter.value.dims()), device)),
                false => Err(damaged()),
            }
        };
        let moments = match steps.get(&parameter.name) {
            Some(&steps) => Some(Moments { mean: restore("mean")?, square: restore("square")?, steps }),
            None => None,
        };
        (parameter.value, parameter.moments) = (restore("value")?, moments);
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
