//! The state of an unfinished run, in `OUT.state/`: what `--resume` goes on from, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};

use crate::engine::device::read;
use crate::engine::event::{Event, Watch};
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::train::beside;
use crate::engine::train::course::Course;
use crate::engine::train::optimizer::Moments;
use crate::engine::train::step::Trainee;
use crate::engine::{Error, Result};

/// How far a run has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// One for each step done.
    pub losses: Vec<f32>,
    /// Where something goes by it.
    pub course: Course,
}

/// The folder that holds the state of the run that will write `out`.
pub fn folder(out: &Path) -> PathBuf {
    beside(out, ".state")
}

fn file(out: &Path) -> PathBuf {
    folder(out).join("state.safetensors")
}

/// Whether there is a state to go on from.
pub fn exists(out: &Path) -> bool {
    file(out).is_file()
}

/// Where a run goes on from, which is told; a run that begins afresh has no older state beside it.
pub fn begin(
    out: &Path,
    resume: bool,
    trainee: &mut Trainee,
    fingerprint: &str,
    device: &Device,
    watch: &mut Watch<'_>,
) -> Result<Option<Progress>> {
    if !resume {
        remove(out)?;
        return Ok(None);
    }
    let restored = load(out, trainee, fingerprint, device)?;
    watch(Event::note(match &restored {
        Some(so_far) => format!("Resuming after step {}", so_far.losses.len()),
        None => "There is no saved state to resume from: starting afresh".to_owned(),
    }))?;
    Ok(restored)
}

/// Keeps parameters, optimiser moments and the losses so far. NaN in a parameter refuses, naming it.
pub fn save(out: &Path, trainee: &Trainee, progress: &Progress, fingerprint: &str) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let mut steps = BTreeMap::new();
    for (index, parameter) in trainee.parameters.iter().enumerate() {
        let mut parts = vec![("value", &parameter.value)];
        parts.extend(trainee.average.iter().map(|average| ("average", &average.values[index])));
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
    let Progress { losses, course } = progress;
    tensors.insert("losses".into(), safetensors::Tensor::new(Dtype::F32, &[losses.len()], losses));
    if !course.is_empty() {
        tensors.insert("course".into(), safetensors::Tensor::new(Dtype::F32, &[course.len(), 2], &course.rows()));
    }
    let metadata = BTreeMap::from([
        ("fingerprint".to_owned(), fingerprint.to_owned()),
        ("steps".to_owned(), serde_json::json!(steps).to_string()),
    ]);
    safetensors::save(&file(out), &tensors, &metadata)
}

/// Restores what [`save`] kept and returns how far the run had come; `None` where nothing is kept.
pub fn load(out: &Path, trainee: &mut Trainee, fingerprint: &str, device: &Device) -> Result<Option<Progress>> {
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
    let losses = state.f32("losses")?;
    for (index, parameter) in trainee.parameters.iter_mut().enumerate() {
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
        if let Some(average) = &mut trainee.average {
            (average.values[index], average.steps) = (restore("average")?, losses.len());
        }
        (parameter.value, parameter.moments) = (restore("value")?, moments);
    }
    let course = match state.entries().contains_key("course") {
        true => Course::of_rows(&state.f32("course")?),
        false => Course::default(),
    };
    Ok(Some(Progress { losses, course }))
}

/// Forgets the state; what is not there is fine.
pub fn remove(out: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder(out)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove the old state", &folder(out), &e)),
        _ => Ok(()),
    }
}
