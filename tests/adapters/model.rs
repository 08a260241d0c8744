//! The whole model: nothing changes at first, what trained is what the file holds, and nothing else moves.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use triptych::engine::adapter::{FileKind, METHODS};
use triptych::engine::device::read;
use triptych::engine::diffusion::Schedule;
use triptych::engine::io::safetensors::{self, Dtype};
use triptych::engine::io::{Checkpoint, Folder, names};
use triptych::engine::model::{Mounts, Part, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::train::step::{Group, Part as Tensors, Rates, Trainee};

use crate::case::delta;
use crate::whole::{batch, begun, outputs, stored, trained, trained_at_depth_0, with_token};
use crate::{apart, build, reference};

/// T1. The token is no part of a method: it starts as its class word and is tested with training.
#[test]
fn an_untrained_adapter_changes_nothing() {
    let model = reference::model();
    let base = outputs(&model, &Mounts::none());
    for row in METHODS {
        let trainee = begun(&model, &build(row, &[]));
        let found = outputs(&model, &trainee.mounts(&trainee.values()));
        let error = found.iter().zip(&base).map(|(found, base)| apart(found, base)).fold(0.0, f32::max);
        println!("{}: {error:.1e} of the largest value", row.name);
        assert!(error < 1e-6, "{}: {error}", row.name);
    }
}

/// T2 through files: the delta is added to the model's own files, and the loader reads the result.
#[test]
fn a_live_model_is_the_model_with_merged_weights() {
    let model = reference::model();
    let base = outputs(&model, &Mounts::none());
    for (i, row) in METHODS.iter().enumerate().filter(|(_, row)| row.file != FileKind::Own) {
        let trainee = trained(&model, &build(row, &[]), i as u64);
        let live = outputs(&model, &trainee.mounts(&trainee.values()));
        let merged = outputs(&merged_model(&model, &trainee), &Mounts::none());
        for (part, ((live, merged), base)) in ["text", "unet"].iter().zip(live.iter().zip(&merged).zip(&base)) {
            let (error, effect) = (apart(live, merged), apart(base, merged));
            println!("{} {part}: {error:.1e} of the largest value, where the adapter moves {effect:.1e}", row.name);
            assert!(error < 1e-5, "{} {part}: {error}", row.name);
            assert!(effect > 0.01, "{} {part} hardly changes the model: {effect}", row.name);
        }
    }
}

/// The reference model with dense changes added to the numbers in its files.
fn merged_model(model: &StableDiffusion, trainee: &Trainee) -> StableDiffusion {
    let mut deltas: BTreeMap<(Part, String), Vec<f64>> = BTreeMap::new();
    for (trained, _, stored) in stored(model, trainee) {
        let layer = model.layer(trained.id);
        let (weight, bias) = delta(&stored, [layer.out, layer.input()]);
        deltas.insert((layer.part, format!("{}.weight", layer.path)), weight);
        if let Some(bias) = bias {
            let bias = bias.into_iter().map(f64::from).collect();
            deltas.insert((layer.part, format!("{}.bias", layer.path)), bias);
        }
    }
    let (from, to) = (reference::folder().join("sd"), tempfile::tempdir().unwrap());
    let rewritten = [
        (Part::Unet, "unet/diffusion_pytorch_model.safetensors", (|s| Some(s.into())) as fn(&str) -> Option<String>),
        (Part::Text, "text_encoder/model.safetensors", names::text_encoder),
    ];
    for entry in walkdir::WalkDir::new(&from).into_iter().map(Result::unwrap) {
        let path = to.path().join(entry.path().strip_prefix(&from).unwrap());
        match entry.file_type().is_dir() {
            true => std::fs::create_dir_all(path).unwrap(),
            false => std::fs::copy(entry.path(), path).map(|_| ()).unwrap(),
        }
    }
    let mut used = 0;
    for (part, file, ours) in rewritten {
        let stored = Checkpoint::open(&from.join(file)).unwrap();
        let tensors = stored
            .entries()
            .iter()
            .map(|(name, entry)| {
                let mut values = stored.f32(name).unwrap();
                if let Some(delta) = ours(name).and_then(|ours| deltas.get(&(part, ours))) {
                    assert_eq!(values.len(), delta.len(), "{name}");
                    values.iter_mut().zip(delta).for_each(|(w, d)| *w += *d as f32);
                    used += 1;
                }
                (name.clone(), safetensors::Tensor::new(Dtype::F32, &entry.shape, &values))
            })
            .collect();
        safetensors::save(&to.path().join(file), &tensors, &BTreeMap::new()).unwrap();
    }
    assert_eq!(used, deltas.len(), "every change belongs to a weight or a bias");
    StableDiffusion::open(&Folder::Disk(to.path().into()), &model.device).unwrap_or_else(|e| panic!("{e}"))
}

/// Along the adapter's own gradient, and along the token's, what is charged for the loss must climb by that gradient's
/// length. Catches a layer or the token being cut off from the loss somewhere between the layers. A row with another
/// gradient for its own tensors must still pass the true one on to the token, through the text encoder's layers. At
/// depth 0 for the reason that [`crate::gradients`] has.
#[test]
fn model_gradients_are_finite_differences() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    for (i, row) in METHODS.iter().enumerate() {
        let start = with_token(&model, trained_at_depth_0(&model, &build(row, &[]), i as u64));
        let total = |trainee: &Trainee| {
            let outcome = trainee.gradients(&model, &schedule, &batch);
            let charged = outcome.charged.map_or(0.0, |charged| f64::from(charged.into_scalar::<f32>()));
            (f64::from(outcome.loss.into_scalar::<f32>()) + charged, outcome.gradients)
        };
        let (loss, gradients) = total(&start);
        let gradients: Vec<Tensor<2>> = gradients.into_iter().map(|g| g.expect("a gradient")).collect();
        for (what, of_token) in [("adapter", false), ("token", true)] {
            if row.gradient.is_some() && !of_token {
                continue;
            }
            let chosen: Vec<usize> =
                (0..gradients.len()).filter(|&k| (start.parameters[k].group == Group::Token) == of_token).collect();
            let norm = |tensors: &dyn Fn(usize) -> Tensor<2>| {
                let values = chosen.iter().flat_map(|&k| read(tensors(k)).unwrap());
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let length = norm(&|k| gradients[k].clone());
            let size = norm(&|k| start.parameters[k].value.clone());
            // Wide enough that the loss changes by a thousandth, which rounding (1e-7) cannot hide; but a token is
            // short, and moved by much of itself it is another word.
            let by = (0.001 * loss / length).min(0.05 * size);
            let moved = |by: f64| {
                let mut trainee = start.clone();
                for &k in &chosen {
                    let value = &mut trainee.parameters[k].value;
                    *value = value.clone() + gradients[k].clone() * (by / length);
                }
                total(&trainee).0
            };
            let central = |by: f64| (moved(by) - moved(-by)) / (2.0 * by);
            // Richardson: two widths together leave out the curvature, which a token has much of.
            let slope = (4.0 * central(by / 2.0) - central(by)) / 3.0;
            println!("{} {what}: slope {slope:.5} along a gradient of length {length:.5}", row.name);
            assert!((slope / length - 1.0).abs() < 0.01, "{} {what}: {slope} instead of {length}", row.name);
        }
    }
}

/// A stretch of the denoiser at a time, the same losses and the same gradients come out: of every layer, of the token
/// through the text encoder, under prior preservation, and of what methods charge.
#[test]
fn gradients_are_the_same_when_stretches_run_again() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    for (i, row) in METHODS.iter().enumerate() {
        let mut trainee = with_token(&model, trained_at_depth_0(&model, &build(row, &[]), i as u64));
        let mut of = |recompute| {
            trainee.recompute = recompute;
            let outcome = trainee.gradients(&model, &schedule, &batch);
            let losses = [Some(outcome.loss), outcome.prior, outcome.charged].into_iter().flatten();
            let losses: Vec<f32> = losses.map(|loss| loss.into_scalar::<f32>()).collect();
            (losses, outcome.gradients.into_iter().map(|g| read(g.expect("a gradient")).unwrap()).collect::<Vec<_>>())
        };
        let ((losses, whole), (again, pieces)) = (of(false), of(true));
        assert_eq!(losses.len(), again.len(), "{}", row.name);
        let apart = losses.iter().zip(&again).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "{}: {losses:?} {again:?}", row.name);
        let mut furthest = 0.0_f32;
        for ((whole, pieces), parameter) in whole.iter().zip(&pieces).zip(&trainee.parameters) {
            let size = whole.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
            let apart = whole.iter().zip(pieces).fold(0.0_f32, |apart, (a, b)| apart.max((a - b).abs()));
            assert!(apart <= 1e-4 * size + 1e-9, "{} {}: {apart} of {size}", row.name, parameter.name);
            furthest = furthest.max(apart / size.max(1e-9));
        }
        println!("{}: losses {apart:.1e}, gradients {furthest:.1e} apart", row.name);
    }
}

/// T6. The model and every frozen tensor are bit for bit what they were; everything else has moved. Where only some
/// layers are awake, those alone have gradients, and the others sleep on what they learnt.
#[test]
fn frozen_parts_stay_and_the_rest_moves() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    let rates = Rates { adapter: 1e-2, token: 1e-2, decay: 1e-2, clip: 1.0 };
    let base = outputs(&model, &Mounts::none());
    let weights = |model: &StableDiffusion| model.weights.iter().map(|w| read(w.oi.clone()).unwrap()).collect();
    let untouched: Vec<Vec<f32>> = weights(&model);
    for row in METHODS {
        let adapter = build(row, &[]);
        let mut trainee = with_token(&model, begun(&model, &adapter));
        let (start, layers) = (trainee.clone(), trainee.layers.len());
        let mut learnt = vec![false; layers];
        for step in 0..3 {
            let awake = adapter.awake(step, layers, &Philox::new(7));
            if let Some(awake) = &awake {
                trainee.wake(awake);
            }
            let awake = awake.unwrap_or_else(|| (0..layers).collect());
            for &place in &awake {
                learnt[place] = true;
            }
            let before = trainee.clone();
            let outcome = trainee.gradients(&model, &schedule, &batch);
            let gradients: Vec<bool> = outcome.gradients.iter().map(Option::is_some).collect();
            trainee.update(outcome.gradients, rates);
            for (place, layer) in trainee.layers.iter().enumerate() {
                for part in &layer.tensors {
                    let Tensors::Trained(index) = *part else { continue };
                    let name = &trainee.parameters[index].name;
                    let [was, is] = [&before, &trainee].map(|t| read(t.parameters[index].value.clone()).unwrap());
                    assert_eq!(gradients[index], awake.contains(&place), "{name} at step {step}");
                    if !awake.contains(&place) {
                        assert_eq!(was, is, "{name} slept and moved");
                        assert!(trainee.parameters[index].moments.is_none(), "{name} sleeps with its moments");
                    } else if step > 0 {
                        // In the first step one factor of a product is still 0, so the other has no slope.
                        assert_ne!(was, is, "{name} did not train");
                    }
                }
            }
        }
        let frozen = |trainee: &Trainee| -> Vec<Vec<f32>> {
            let frozen = |part: &Tensors| match part {
                Tensors::Frozen(tensor) => Some(read(tensor.clone()).unwrap()),
                Tensors::Trained(_) => None,
            };
            trainee.layers.iter().flat_map(|layer| layer.tensors.iter().filter_map(frozen)).collect()
        };
        assert_eq!(frozen(&trainee), frozen(&start), "{}: a frozen tensor moved", row.name);
        for (layer, learnt) in trainee.layers.iter().zip(learnt) {
            for part in &layer.tensors {
                let Tensors::Trained(index) = *part else { continue };
                let [was, is] = [&start, &trainee].map(|t| read(t.parameters[index].value.clone()).unwrap());
                assert_eq!(was != is, learnt, "{}", trainee.parameters[index].name);
            }
        }
        let [was, is] = [&start, &trainee].map(|t| read(t.parameters[t.tokens[0]].value.clone()).unwrap());
        assert_ne!(was, is, "{}: the token did not train", row.name);
        assert_eq!(weights(&model), untouched, "{}: a weight of the model moved", row.name);
        assert_eq!(outputs(&model, &Mounts::none()), base, "{}: the model moved", row.name);
    }
}
