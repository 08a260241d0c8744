//! Reads the reference folder.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::print_stdout, reason = "a test shows what it measured")]

pub mod training;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use triptych::engine::device;
use triptych::engine::export;
use triptych::engine::io::{Checkpoint, Folder};
use triptych::engine::model::StableDiffusion;
use triptych::engine::vision::Classifier;

pub fn folder() -> PathBuf {
    std::env::var_os("TRIPTYCH_REFERENCE")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference"), PathBuf::from)
}

pub fn text(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name} is not part of the reference folder: {e}"))
}

pub fn model() -> StableDiffusion {
    model_on(&device::cpu())
}

pub fn model_on(device: &Device) -> StableDiffusion {
    StableDiffusion::open(&Folder::Disk(folder().join("sd")), device).unwrap_or_else(|e| panic!("{e}"))
}

pub fn sdxl() -> StableDiffusion {
    StableDiffusion::open(&Folder::Disk(folder().join("sdxl")), &device::cpu()).unwrap_or_else(|e| panic!("{e}"))
}

pub fn classifier(name: &str) -> Classifier {
    let path = folder().join(name);
    Classifier::open(path.to_str().expect("a plain path"), &device::cpu()).unwrap_or_else(|e| panic!("{e}"))
}

/// `single.safetensors` in `scratch`: PyTorch's file where the reference folder has one, else made from its `sd` under the
/// names whose table `io/ldm.rs` holds against diffusers' own; and the configurations of `sd` in `single/`.
pub fn single_file(scratch: &Path) -> PathBuf {
    let (theirs, file) = (folder().join("sd_single_file.safetensors"), scratch.join("single.safetensors"));
    let sd = Folder::Disk(folder().join("sd"));
    if theirs.is_file() {
        std::fs::copy(theirs, &file).expect("a file is copied");
        for name in CONFIGS {
            let to = scratch.join("single").join(name);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder is made");
            std::fs::write(to, sd.bytes(name).unwrap_or_else(|e| panic!("{e}"))).expect("a file is written");
        }
    } else {
        export::bake(&sd, &[], &file, &triptych::engine::device::cpu(), &mut |_| Ok(()))
            .unwrap_or_else(|e| panic!("{e}"));
    }
    file
}

const CONFIGS: [&str; 6] = [
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
];

/// One reference file.
pub struct Reference(Checkpoint);

impl Reference {
    pub fn open(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        Self(Checkpoint::open(&path).unwrap_or_else(|e| panic!("{name} is not part of the reference folder: {e}")))
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.0.f32(name).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.0.shape(name).unwrap_or_else(|e| panic!("{e}")).to_vec()
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.entries().keys()
    }

    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.f32(name), self.shape(name)), &device::cpu())
    }

    /// Some rows of the first axis.
    pub fn rows(&self, name: &str, rows: &[i32]) -> Tensor<3> {
        let index = Tensor::<1, Int>::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &device::cpu());
        self.tensor::<3>(name).select(0, index)
    }

    pub fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let width = self.shape(name)[1];
        self.f32(name).chunks(width).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    }

    pub fn prompts(&self) -> Vec<String> {
        serde_json::from_str(&self.0.metadata()["prompts"]).expect("prompts are a JSON list")
    }

    pub fn text(&self, key: &str) -> String {
        self.0.metadata()[key].clone()
    }

    /// A JSON text of the metadata.
    pub fn json(&self, key: &str) -> serde_json::Value {
        serde_json::from_str(&self.0.metadata()[key]).unwrap_or_else(|e| panic!("{key}: {e}"))
    }

    pub fn number(&self, key: &str) -> f64 {
        self.0.metadata()[key].parse().expect("a number")
    }
}

/// Largest difference, as a share of the largest expected value.
pub fn assert_close<const D: usize>(part: &str, found: Tensor<D>, expected: Tensor<D>, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{part}");
    let [found, expected] = [found, expected].map(|t| t.into_data().try_to_vec::<f32>().expect("f32"));
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let difference = found.iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(found.iter().all(|x| x.is_finite()), "{part}: not finite");
    println!("{part}: {:.2e} of the largest value", difference / largest);
    assert!(difference <= tolerance * largest, "{part}: differs by {difference} where the largest value is {largest}");
}
