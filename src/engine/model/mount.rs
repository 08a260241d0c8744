//! Adapters in place: what each layer does besides its own work.
//!
//! The model is never edited. A forward pass takes the mounts it is to run with, so the untouched model, one adapter
//! and several together are the same weights seen through different [`Mounts`].

use std::cell::OnceCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, FloatDType, Tensor};

use crate::engine::model::blocks::{ConvShape, pointwise};
use crate::engine::model::{LayerId, Signal, Weight};
use crate::engine::ops::{fuse, low_rank, widen};

/// One low-rank term `scale · up · down`. It runs factored: the product is never built.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Read side `[rank, in]` (`[rank, in·kh·kw]` for convolutions).
    pub down: Tensor<2>,
    /// Write side `[out, rank]`.
    pub up: Tensor<2>,
    /// `alpha / rank` times every strength that applies here.
    pub scale: f32,
}

/// What an adapter makes of a layer, always relative to the untouched one: changes of several adapters add up.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a few for each layer: some hundreds in all")]
pub enum Change {
    LowRank(Branch),
    /// `ΔW [out, in]`: for methods that are defined on the weight.
    Weight(Tensor<2>),
    /// `Δb [out]`.
    Bias(Tensor<1>),
    /// Added to the output as it is.
    Output(Signal),
}

impl Change {
    /// At a strength.
    #[must_use]
    pub fn times(self, strength: f32) -> Self {
        match self {
            Self::LowRank(branch) => Self::LowRank(Branch { scale: branch.scale * strength, ..branch }),
            Self::Weight(delta) => Self::Weight(delta * strength),
            Self::Bias(delta) => Self::Bias(delta * strength),
            Self::Output(signal) => Self::Output(signal * strength),
        }
    }
}

/// A change that depends on what flows through the layer, or on tensors that are being trained.
pub type Live = Arc<dyn Fn(&Site<'_>) -> Vec<Change> + Send + Sync>;

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "a few for each layer: some hundreds in all")]
enum Term {
    Fixed(Change),
    Live(Live),
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(change) => change.fmt(f),
            Self::Live(_) => f.write_str("Live"),
        }
    }
}

/// Losses that adapters add while a forward pass runs.
type Charges = Arc<Mutex<Vec<Tensor<1>>>>;

/// The terms on every layer of a model.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    terms: Vec<Vec<Term>>,
    /// Weights `[out, in]` with their terms already in them.
    rested: Vec<Option<Tensor<2>>>,
    charges: Option<Charges>,
}

/// A layer as a forward pass meets it.
pub struct Place<'a> {
    pub id: LayerId,
    /// As it is held: f32 or f16.
    pub weight_oi: Tensor<2>,
    pub bias: Option<&'a Tensor<1>>,
    /// `None` for a linear layer.
    pub shape: Option<ConvShape>,
}

/// What a live term sees of the layer it sits on.
pub struct Site<'a> {
    place: &'a Place<'a>,
    x: &'a Signal,
    base: OnceCell<Signal>,
    charges: Option<&'a Charges>,
}

impl Place<'_> {
    /// The untouched layer.
    fn base(&self, x: &Signal) -> Signal {
        self.run(x, self.wide_oi())
    }

    fn wide_oi(&self) -> Tensor<2> {
        widen(self.weight_oi.clone())
    }

    fn run(&self, x: &Signal, weight_oi: Tensor<2>) -> Signal {
        x.clone().through(weight_oi, self.bias.cloned(), self.shape)
    }
}

impl Site<'_> {
    /// The layer's input.
    pub fn x(&self) -> Signal {
        self.x.clone()
    }

    /// The untouched layer's output.
    pub fn base(&self) -> Signal {
        self.base.get_or_init(|| self.place.base(self.x)).clone()
    }

    /// The untouched weight `[out, in]` in f32.
    pub fn weight_oi(&self) -> Tensor<2> {
        self.place.wide_oi()
    }

    /// `x` through another weight `[rank, in]` in this layer's place: with its stride and padding, without its bias.
    pub fn through(&self, x: Signal, weight_oi: Tensor<2>) -> Signal {
        x.through(weight_oi, None, self.place.shape)
    }

    /// Adds to the loss of a training step; costs nothing when pictures are made.
    pub fn charge(&self, loss: impl FnOnce() -> Tensor<1>) {
        if let Some(charges) = self.charges {
            charges.lock().unwrap_or_else(PoisonError::into_inner).push(loss());
        }
    }
}

impl Mounts {
    /// The untouched model.
    pub fn none() -> Self {
        Self::default()
    }

    /// With losses kept, for [`Mounts::take_charges`].
    #[must_use]
    pub fn charging(mut self) -> Self {
        self.charges = Some(Charges::default());
        self
    }

    pub fn add(&mut self, layer: LayerId, change: Change) {
        self.push(layer, Term::Fixed(change));
    }

    pub fn add_live(&mut self, layer: LayerId, live: Live) {
        self.push(layer, Term::Live(live));
    }

    fn push(&mut self, layer: LayerId, term: Term) {
        if self.terms.len() <= layer.0 {
            self.terms.resize(layer.0 + 1, Vec::new());
        }
        self.terms[layer.0].push(term);
    }

    /// Whether anything is mounted on a layer.
    pub fn are_on(&self, layer: LayerId) -> bool {
        self.terms.get(layer.0).is_some_and(|terms| !terms.is_empty())
            || self.rested.get(layer.0).is_some_and(Option::is_some)
    }

    /// The sum of what was charged since the last call.
    pub fn take_charges(&self) -> Option<Tensor<1>> {
        let charges = self.charges.as_ref()?;
        let charges = std::mem::take(&mut *charges.lock().unwrap_or_else(PoisonError::into_inner));
        charges.into_iter().reduce(|a, b| a + b)
    }

    /// The same adapters with every change of a weight added into it once, which pays when many passes follow.
    ///
    /// A weight that is held in f16 is left alone: rounded to it, a small change is lost, and in f32 the sum takes twice
    /// the memory that holding it in f16 was to save.
    #[must_use]
    pub fn rest(mut self, weights: &[Weight]) -> Self {
        self.rested.resize(self.terms.len(), None);
        let places = self.terms.iter_mut().zip(&mut self.rested).zip(weights);
        for ((terms, rested), weight) in places.filter(|(_, weight)| weight.oi.dtype() == DType::F32) {
            let mut branches = Vec::new();
            let mut sum = rested.take();
            terms.retain(|term| match term {
                Term::Fixed(Change::LowRank(branch)) => {
                    branches.push(branch.clone());
                    false
                }
                Term::Fixed(Change::Weight(delta)) => {
                    sum = Some(sum.take().unwrap_or_else(|| weight.oi.clone()) + delta.clone());
                    false
                }
                _ => true,
            });
            *rested = match branches.is_empty() {
                true => sum,
                false => Some(fused(sum.unwrap_or_else(|| weight.oi.clone()), &branches)),
            };
        }
        self
    }

    /// A layer on `x`, with everything that is mounted on it.
    pub fn run(&self, place: &Place<'_>, x: &Signal) -> Signal {
        let rested = self.rested.get(place.id.0).and_then(Option::as_ref);
        let terms = self.terms.get(place.id.0).map_or(&[][..], Vec::as_slice);
        let site = Site { place, x, base: OnceCell::new(), charges: self.charges.as_ref() };
        let mut weight = rested.cloned();
        let mut rest = Vec::new();
        for term in terms {
            let changes = match term {
                Term::Fixed(change) => vec![change.clone()],
                Term::Live(live) => live(&site),
            };
            for change in changes {
                match change {
                    Change::Weight(delta) => {
                        weight = Some(weight.unwrap_or_else(|| place.wide_oi()) + delta);
                    }
                    other => rest.push(other),
                }
            }
        }
        let y = match weight {
            Some(weight) => place.run(x, weight),
            // Taken, not shared: what is added next can then be added in place.
            None => site.base.into_inner().unwrap_or_else(|| place.base(x)),
        };
        rest.into_iter().fold(y, |y, change| match change {
            Change::LowRank(branch) => branch.add(x, y, place.shape),
            Change::Bias(bias) => y.offset(bias),
            Change::Output(more) => y + more,
            Change::Weight(_) => y,
        })
    }
}

impl Branch {
    /// `y + scale · up(down(x))`.
    fn add(self, x: &Signal, y: Signal, shape: Option<ConvShape>) -> Signal {
        let Self { down, up, scale } = self;
        match (x, y) {
            (Signal::Tokens(x), Signal::Tokens(y)) => Signal::Tokens(low_rank(x.clone(), y, down, up, scale)),
            (x, y) => match x.clone().through(down, None, shape) {
                Signal::Picture(h) => y + Signal::Picture(pointwise(h, up, None) * scale),
                tokens @ Signal::Tokens(_) => y + tokens.mix(up) * scale,
            },
        }
    }
}

/// `W + Σ scale · up · down`, all branches at once.
fn fused(weight_oi: Tensor<2>, branches: &[Branch]) -> Tensor<2> {
    let scales: Vec<f32> = branches.iter().flat_map(|b| std::iter::repeat_n(b.scale, b.up.dims()[1])).collect();
    let scales = Tensor::from_floats(scales.as_slice(), &weight_oi.device());
    let up = Tensor::cat(branches.iter().map(|b| b.up.clone()).collect(), 1);
    let down = Tensor::cat(branches.iter().map(|b| b.down.clone()).collect(), 0);
    fuse(weight_oi, up, down, scales, FloatDType::F32)
}
