//! Adapter methods: what of a layer trains, what it does to the layer meanwhile, and how a file keeps it.
//!
//! A method is one file with a [`Method`] row, and the row's line in [`METHODS`]. Forms, help, README, error messages
//! and contract tests read the rows.

mod allora;
pub mod basis;
mod dora;
mod hydra;
mod lisa;
mod lora;
mod mola;
pub mod mount;
mod ocnn;
mod oft;
mod orthogonal;
mod pego;
mod pissa;
pub mod rank;
mod sora;
mod sorsa;
mod strongest;
pub mod target;

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;

use crate::engine::adapter::basis::Basis;
use crate::engine::field::{Field, Settings};
use crate::engine::model::{Branch, Change, Layer, Site, Weight};
use crate::engine::random::Philox;
use crate::engine::{Error, Result};

/// A method's row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    pub name: &'static str,
    pub title: &'static str,
    pub paper: &'static str,
    pub help: &'static str,
    pub fields: &'static [Field],
    /// Numbers that train on a layer of `o` outputs and `i` inputs, in words.
    pub count: &'static str,
    /// What a file of it holds.
    pub file: FileKind,
    /// How the gradient departs from the loss's own, where the method changes it.
    pub gradient: Option<&'static str>,
    /// Times the usual learning rate: what suits a factor is too much for a whole weight.
    pub rate: f64,
    /// Whether each concept needs a slot of the project's shared basis.
    pub takes_slot: bool,
    #[serde(skip)]
    pub build: fn(&Settings, &Context) -> Result<Box<dyn Adapter>>,
}

pub const METHODS: &[Method] = &[
    orthogonal::METHOD,
    lora::METHOD,
    pissa::METHOD,
    sorsa::METHOD,
    ocnn::METHOD,
    dora::METHOD,
    hydra::METHOD,
    sora::METHOD,
    allora::METHOD,
    oft::METHOD,
    pego::METHOD,
    mola::METHOD,
    lisa::METHOD,
];

/// What a method leaves of a layer: decides where the file loads and whether it merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A plain LoRA, exactly.
    Lora,
    /// A plain LoRA and an offset of the bias (`diff_b`).
    LoraAndBias,
    /// `ΔW` itself (`diff`), as large as the layer.
    Difference,
    /// Tensors of its own: it depends on what flows through the layer, and only Triptych loads it.
    Own,
}

impl FileKind {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Lora => "a plain LoRA: ComfyUI, A1111, kohya, diffusers",
            Self::LoraAndBias => "a LoRA with bias differences: ComfyUI, A1111",
            Self::Difference => "full differences: ComfyUI, A1111",
            Self::Own => "tensors of its own: Triptych alone",
        }
    }
}

/// What a method may depend on besides its settings.
#[derive(Clone, Debug)]
pub struct Context {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// The concept's slot in the project's shared basis.
    pub slot: usize,
    /// Columns of that basis each concept owns.
    pub block: usize,
}

/// The layer an adapter is to sit on.
pub struct Spot<'a> {
    pub layer: &'a Layer,
    pub weight: &'a Weight,
    /// Its place among the adapted layers: 0 the first, towards 1 the last.
    pub depth: f32,
    /// A stream of its own.
    pub random: Philox,
}

/// A tensor of an adapted layer before training. All are matrices: a vector is one row or one column.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// As files and messages call it: `lora_down`.
    pub name: &'static str,
    pub values: Vec<f32>,
    pub shape: [usize; 2],
    pub trains: bool,
    /// Whether weight decay pulls at it.
    pub decays: bool,
}

impl Start {
    pub fn trained(name: &'static str, shape: [usize; 2], values: Vec<f32>) -> Self {
        Self { name, values, shape, trains: true, decays: true }
    }

    /// Trained, from zeros.
    pub fn zeros(name: &'static str, shape: [usize; 2]) -> Self {
        Self::trained(name, shape, vec![0.0; shape[0] * shape[1]])
    }

    pub fn frozen(name: &'static str, shape: [usize; 2], values: Vec<f32>) -> Self {
        Self { trains: false, ..Self::trained(name, shape, values) }
    }

    pub fn tensor(&self, device: &burn::tensor::Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device)
    }
}

/// One layer as a file keeps it.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// `alpha/rank · up [out, rank] · down [rank, in]`, and what is added to the bias.
    Lora { down: Vec<f32>, up: Vec<f32>, rank: usize, alpha: f32, bias: Option<Vec<f32>> },
    /// `ΔW [out, in]`.
    Difference(Vec<f32>),
    /// Its tensors as they are.
    Own,
    /// Nothing was learnt here.
    Nothing,
}

/// A method with its settings. `t` is always one layer's tensors in the order of [`Adapter::begin`].
pub trait Adapter: Send + Sync {
    /// The tensors of a layer before training.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>>;

    /// What they do to the layer.
    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change>;

    /// What they leave for the file.
    fn store(&self, t: &[Tensor<2>], weight: &Weight) -> Result<Stored>;

    /// The tensors that a file of [`FileKind::Own`] holds of a layer, in the order of [`Adapter::begin`]; `None` where
    /// their shapes are not those of this layer and these settings.
    fn own(&self, _layer: &Layer, _shape: &dyn Fn(&str) -> Option<[usize; 2]>) -> Option<&[&'static str]> {
        None
    }

    /// How many numbers train on a layer at this depth, without making them.
    fn count(&self, layer: &Layer, depth: f32) -> usize;

    /// `ΔW` as factors still on the device, where that is what the layer leaves for its file: for a look while training
    /// goes on. `weight` is the untouched one.
    fn pair(&self, _t: &[Tensor<2>], _weight: &Weight) -> Option<Branch> {
        None
    }

    /// The correction after each of the optimiser's steps, where these settings have one.
    fn settling(&self) -> Option<&dyn Settling> {
        None
    }

    /// Which of `layers` learn at `step` (from 0); `None` is all of them. The others keep what they learnt.
    fn awake(&self, _step: usize, _layers: usize, _random: &Philox) -> Option<Vec<usize>> {
        None
    }

    /// The shared basis the read side is taken from, and the slot in it.
    fn basis(&self) -> Option<(Basis, usize)> {
        None
    }
}

/// A method that corrects its tensors after an optimiser's step, e.g. by a proximal one. Of its own, so that the others
/// need not gather theirs.
pub trait Settling {
    /// One layer's tensors in the order of [`Adapter::begin`] → what they shall be.
    fn settle(&self, before: &[Tensor<2>], after: Vec<Tensor<2>>) -> Vec<Tensor<2>>;
}

/// The row of a name.
pub fn method(name: &str) -> Result<&'static Method> {
    METHODS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = METHODS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no adapter method “{name}”"), format!("Choose one of {known}"))
    })
}
