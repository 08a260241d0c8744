//! An adapter method of one's own: one row, four functions. In the program it would be a file of `engine/adapter/` and
//! a line in `METHODS`.

#![allow(clippy::print_stdout, reason = "an example prints what it proves")]

use burn::tensor::Tensor;
use triptych::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use triptych::engine::concept::shipped::{SHIPPED, unpack};
use triptych::engine::device::{Choice, read};
use triptych::engine::field::Settings;
use triptych::engine::model::{Change, Layer, Site, Weight};
use triptych::engine::session::{Lesson, Session, Training};
use triptych::engine::{Error, Result};

/// Forms, help and error messages read this row.
const GAIN: Method = Method {
    name: "gain",
    title: "Gain",
    paper: "after Liu et al. 2022, arXiv 2205.05638",
    help: "Makes each output of a layer louder or softer: the fewest numbers that can learn anything",
    fields: &[],
    count: "o",
    file: FileKind::Difference,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build: |_: &Settings, _: &Context| Ok(Box::new(Gain)),
};

/// `ΔW = diag(gain)·W`.
struct Gain;

impl Adapter for Gain {
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        Ok(vec![Start::zeros("gain", [spot.layer.out, 1])])
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        vec![Change::Weight(at.weight_oi() * t[0].clone())]
    }

    fn store(&self, t: &[Tensor<2>], weight: &Weight) -> Result<Stored> {
        Ok(Stored::Difference(read(weight.oi.clone() * t[0].clone())?))
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        layer.out
    }
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("make a folder in", &std::env::temp_dir(), &e))?;
    let mut watch = |_| Ok(());
    let session = Session::open(Choice::Cpu, &mut watch)?;
    let (model, robot) = (session.model("starter")?, SHIPPED[0]);
    let concept = session.concept(&unpack(&robot, folder.path())?.0)?;
    let changes = [("steps", "24"), ("batch", "8"), ("prior", "0"), ("warmup", "4")];
    let training = Training {
        lessons: vec![Lesson::new("<robot>", Some(robot.class_word.into()))],
        method: &GAIN,
        changes: changes.map(|(field, value)| (field.into(), value.into())).into(),
        slot: None,
        project: None,
        seed: 0,
        out: folder.path().join("gain.safetensors"),
        resume: false,
        stamp: false,
        wishes: None,
    };
    let trained = session.train(&model, &[concept], &training, &mut watch)?;

    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (before, after) = (mean(&trained.losses[..8]), mean(&trained.losses[16..]));
    assert!(after < before, "the loss went from {before} to {after}");
    // Row by row, what the file holds is the model's own weight times one number.
    for (id, layer) in model.layer_ids() {
        let Some(difference) = trained.file.differences.get(&layer.module()) else { continue };
        let weight = read(model.weight(id).oi.clone())?;
        for (row, dw) in weight.chunks(layer.input()).zip(difference.weight.chunks(layer.input())) {
            let gain = row.iter().zip(dw).map(|(w, d)| w * d).sum::<f32>() / row.iter().map(|w| w * w).sum::<f32>();
            assert!(row.iter().zip(dw).all(|(w, d)| (gain * w - d).abs() < 1e-5), "{} is no gain", layer.path);
        }
    }
    println!(
        "Proved: with {} numbers on {} layers the loss fell from {before:.3} to {after:.3}, and the file, which any \
         tool loads, is gain times weight.",
        trained.parameters,
        trained.file.differences.len()
    );
    Ok(())
}
