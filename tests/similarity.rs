//! How alike pictures are, against torchvision and against common sense.
//!
//! The features come from `tests/reference/mobilenet_reference.safetensors` (made by `make_mobilenet_reference.py`
//! there). The weights are real, so there is one set only, whatever `TRIPTYCH_REFERENCE` names.

mod reference;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use burn::tensor::{Tensor, TensorData};
use reference::assert_close;
use triptych::engine::device;
use triptych::engine::io::Checkpoint;
use triptych::engine::io::safetensors::{self, Dtype};
use triptych::engine::model::mobilenet::MobileNet;
use triptych::engine::similarity::Judge;

/// Share of the largest feature. Measured 7e-6; the smallest mistake that `--probe` of the script tries moves 8e-2.
const FEATURES: f32 = 2e-3;

static JUDGE: LazyLock<Judge> =
    LazyLock::new(|| Judge::new(&device::cpu()).expect("the weights in the program are whole"));

fn tree(path: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("the file is in the tree")
}

fn torchvision<const D: usize>(name: &str) -> Tensor<D> {
    let file = tree("tests/reference/mobilenet_reference.safetensors");
    let (values, shape) = (file.f32(name).expect("part of the file"), file.shape(name).expect("part of the file"));
    Tensor::from_data(TensorData::new(values, shape.to_vec()), &device::cpu())
}

fn similarity(made: &Tensor<4>, held_out: &Tensor<4>) -> f32 {
    JUDGE.similarity(made.clone(), held_out.clone()).expect("two pictures")
}

#[test]
fn features_are_torchvisions() {
    let network = MobileNet::embedded(&device::cpu()).unwrap();
    for name in ["face", "cloth"] {
        let found = network.features(torchvision(&format!("{name}.pixels")));
        assert_close(name, found, torchvision(&format!("{name}.features")), FEATURES);
    }
}

#[test]
fn a_batch_is_its_pictures() {
    let network = MobileNet::embedded(&device::cpu()).unwrap();
    let face = torchvision::<4>("face.pixels");
    // More than one pass takes.
    let shades: Vec<_> = (0..9).map(|i| face.clone() * (1.0 - 0.05 * f64::from(i))).collect();
    let together = network.features(Tensor::cat(shades.clone(), 0));
    let apart = Tensor::cat(shades.into_iter().map(|shade| network.features(shade)).collect(), 0);
    assert_close("batch", together, apart, 1e-5);
}

#[test]
fn more_alike_is_more_similar() {
    let [face, cloth] = ["face.pixels", "cloth.pixels"].map(torchvision::<4>);
    let itself = similarity(&face, &face);
    let darker = similarity(&(face.clone() * 0.9 - 0.05), &face);
    let mirrored = similarity(&face.clone().flip([3]), &face);
    let other = similarity(&cloth, &face);
    println!("itself {itself}, darker {darker}, mirrored {mirrored}, other {other}");
    assert!((itself - 1.0).abs() < 1e-5);
    assert!(darker > 0.8 && mirrored > 0.8 && other < 0.5, "darker {darker}, mirrored {mirrored}, other {other}");
    assert!((other - similarity(&face, &cloth)).abs() < 1e-5, "symmetric");
}

#[test]
fn the_mean_is_over_all_pairs() {
    let face = torchvision::<4>("face.pixels");
    let tile = torchvision::<4>("cloth.pixels").slice([0..1, 0..3, 0..64, 0..64]);
    let both = Tensor::cat(vec![face.clone(), tile.clone()], 0);
    let between = similarity(&face, &tile);
    assert!((similarity(&both, &face) - f32::midpoint(1.0, between)).abs() < 1e-5);
    assert!((similarity(&both, &both) - f32::midpoint(1.0, between)).abs() < 1e-5);
}

#[test]
fn what_cannot_be_compared_is_a_sentence() {
    let face = torchvision::<4>("face.pixels");
    let empty = Tensor::zeros([0, 3, 64, 64], &device::cpu());
    let latents = Tensor::zeros([1, 4, 16, 16], &device::cpu());
    let tiny = Tensor::zeros([1, 3, 8, 7], &device::cpu());
    let broken = face.clone() * f32::NAN;
    for (bad, word) in [(empty, "no picture"), (latents, "4 channels"), (tiny, "7×8"), (broken, "not numbers")] {
        for error in [JUDGE.similarity(bad.clone(), face.clone()), JUDGE.similarity(face.clone(), bad)] {
            let error = error.unwrap_err();
            assert!(error.what.contains(word) && !error.advice.is_empty(), "{error}");
        }
    }
    let flat = Tensor::zeros([1, 3, 8, 8], &device::cpu());
    assert!((similarity(&flat, &flat) - 1.0).abs() < 1e-5, "one colour is a picture too");
}

#[test]
fn every_damage_of_the_weights_is_in_one_sentence() {
    let whole = tree("assets/mobilenet_v2.safetensors");
    let mut tensors: BTreeMap<String, safetensors::Tensor> = whole
        .entries()
        .iter()
        .map(|(name, entry)| {
            (name.clone(), safetensors::Tensor::new(entry.dtype, &entry.shape, &whole.f32(name).unwrap()))
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let load = |tensors: &BTreeMap<String, safetensors::Tensor>| {
        safetensors::save(&path, tensors, &BTreeMap::new()).unwrap();
        MobileNet::load(&Checkpoint::open(&path).unwrap(), &device::cpu())
    };

    // What training leaves behind and what features do not need may be there or not.
    tensors.insert("features.0.1.num_batches_tracked".into(), safetensors::Tensor::new(Dtype::F32, &[], &[7.0]));
    tensors.remove("classifier.1.weight").unwrap();
    load(&tensors).unwrap();

    tensors.remove("features.18.1.running_var").unwrap();
    tensors.insert(
        "features.3.conv.1.0.weight".into(),
        safetensors::Tensor::new(Dtype::F32, &[144, 1, 5, 5], &[0.0; 3600]),
    );
    tensors.insert("features.19.0.weight".into(), safetensors::Tensor::new(Dtype::F32, &[1], &[0.0]));
    let error = load(&tensors).unwrap_err();
    for part in ["18.1.running_var is missing", "3.conv.1.0.weight is [144, 1, 5, 5]", "19.0.weight is not part"] {
        assert!(error.what.contains(part), "{part}: {error}");
    }
    assert!(error.advice.contains("mobilenet_v2") && error.path.as_deref() == Some(path.as_path()), "{error}");
}
