//! Adapter methods: how the low-rank factors of a layer begin, which of them train, and what the file says of them.

pub mod basis;
mod lora;
pub mod mount;
mod orthogonal;
pub mod target;

use serde::Serialize;

use crate::engine::adapter::basis::Basis;
use crate::engine::field::{Field, Settings};
use crate::engine::model::Layer;
use crate::engine::random::Philox;
use crate::engine::{Error, Result};

/// A method's row: what forms, help, README and errors read.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    pub name: &'static str,
    pub title: &'static str,
    pub paper: &'static str,
    pub help: &'static str,
    pub fields: &'static [Field],
    /// Whether each concept needs a slot of the project's shared basis.
    pub takes_slot: bool,
    #[serde(skip)]
    pub build: fn(&Settings, &Context) -> Result<Box<dyn Adapter>>,
}

pub const METHODS: &[Method] = &[orthogonal::METHOD, lora::METHOD];

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

/// A method with its settings.
pub trait Adapter: Send + Sync {
    /// The factors of a layer before training.
    fn init(&self, layer: &Layer, random: &Philox) -> Result<Factors>;

    /// The shared basis the read side is taken from, and the slot in it.
    fn basis(&self) -> Option<(Basis, usize)> {
        None
    }
}

/// `ΔW = alpha/rank · up · down` of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Read side, row-major `[rank, in]`.
    pub down: Vec<f32>,
    /// Write side, row-major `[out, rank]`.
    pub up: Vec<f32>,
    pub rank: usize,
    /// As stored in files; rank-stabilised scaling is folded in (`alpha · √rank`), as LyCORIS does.
    pub alpha: f32,
    /// Whether the read side is trained.
    pub train_down: bool,
}

impl Factors {
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// The row of a name.
pub fn method(name: &str) -> Result<&'static Method> {
    METHODS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = METHODS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        Error::usage(format!("There is no adapter method “{name}”"), format!("Choose one of {known}"))
    })
}
