//! Adapters in place: what each layer does besides its own work.
//!
//! The model is never edited. A forward pass takes the mounts it is to run with, so the untouched model, one adapter
//! and several together are the same weights seen through different [`Mounts`].

use std::cell::OnceCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, FloatDType, Tensor, TensorData};

use crate::engine::model::blocks::ConvShape;
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
    fn times(self, strength: f32) -> Self {
        if strength.to_bits() == 1.0_f32.to_bits() {
            return self;
        }
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
enum What {
    Fixed(Change),
    Live(Live),
}

/// A change at the strength of its adapter.
#[derive(Clone, Debug)]
struct Term {
    what: What,
    adapter: usize,
    strength: f32,
}

impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(change) => change.fmt(f),
            Self::Live(_) => f.write_str("Live"),
        }
    }
}

/// Losses that adapters add while a forward pass runs.
type Charges = Arc<Mutex<Vec<Tensor<1>>>>;

/// Low-rank terms of several adapters on one layer, one behind the other along the rank: they run in one pass.
#[derive(Clone, Debug)]
struct Stack {
    /// `[R, in]`
    down: Tensor<2>,
    /// `[out, R]`
    up: Tensor<2>,
    parts: Vec<Part>,
    /// For each of the `R` ranks the scale · strength of its adapter.
    scales: Arc<[f32]>,
}

/// An adapter's share of a stack.
#[derive(Clone, Copy, Debug)]
struct Part {
    adapter: usize,
    rank: usize,
    scale: f32,
    strength: f32,
}

/// The terms on every layer of a model.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    /// How many adapters were begun.
    adapters: usize,
    terms: Vec<Vec<Term>>,
    stacks: Vec<Option<Stack>>,
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

    /// Kernel, stride and padding; `None` for a linear layer.
    pub fn shape(&self) -> Option<ConvShape> {
        self.place.shape
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

    /// What is added from here on is another adapter's; answers with its number, which is 1 for the first.
    pub fn begin(&mut self) -> usize {
        self.adapters += 1;
        self.adapters
    }

    /// Sets the strength of an adapter layer by layer, at first 1. No tensor is made or moved.
    pub fn turn(&mut self, adapter: usize, strength: impl Fn(LayerId) -> f32) {
        for (layer, terms) in self.terms.iter_mut().enumerate() {
            for term in terms.iter_mut().filter(|term| term.adapter == adapter) {
                term.strength = strength(LayerId(layer));
            }
        }
        for (layer, stack) in self.stacks.iter_mut().enumerate().filter_map(|(i, stack)| Some((i, stack.as_mut()?))) {
            for part in stack.parts.iter_mut().filter(|part| part.adapter == adapter) {
                part.strength = strength(LayerId(layer));
            }
            stack.scales = scales(&stack.parts);
        }
    }

    pub fn add(&mut self, layer: LayerId, change: Change) {
        match change {
            Change::LowRank(branch) => {
                if self.stacks.len() <= layer.0 {
                    self.stacks.resize(layer.0 + 1, None);
                }
                let stack = &mut self.stacks[layer.0];
                let more = Stack::of(branch, self.adapters);
                *stack = Some(match stack.take() {
                    None => more,
                    Some(stack) => stack.with(more),
                });
            }
            other => self.push(layer, What::Fixed(other)),
        }
    }

    pub fn add_live(&mut self, layer: LayerId, live: Live) {
        self.push(layer, What::Live(live));
    }

    fn push(&mut self, layer: LayerId, what: What) {
        if self.terms.len() <= layer.0 {
            self.terms.resize(layer.0 + 1, Vec::new());
        }
        self.terms[layer.0].push(Term { what, adapter: self.adapters, strength: 1.0 });
    }

    /// Whether anything is mounted on a layer.
    pub fn are_on(&self, layer: LayerId) -> bool {
        self.terms.get(layer.0).is_some_and(|terms| !terms.is_empty())
            || self.stacks.get(layer.0).is_some_and(Option::is_some)
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
        let layers = self.terms.len().max(self.stacks.len());
        self.terms.resize(layers, Vec::new());
        self.stacks.resize(layers, None);
        self.rested.resize(layers, None);
        let places = self.terms.iter_mut().zip(&mut self.stacks).zip(&mut self.rested).zip(weights);
        for (((terms, stack), rested), weight) in places.filter(|(_, weight)| weight.oi.dtype() == DType::F32) {
            let mut sum = rested.take();
            terms.retain(|Term { what, strength, .. }| match what {
                What::Fixed(change @ Change::Weight(_)) => {
                    if let Change::Weight(delta) = change.clone().times(*strength) {
                        sum = Some(sum.take().unwrap_or_else(|| weight.oi.clone()) + delta);
                    }
                    false
                }
                _ => true,
            });
            *rested = match stack.take() {
                None => sum,
                Some(stack) => Some(stack.fused(sum.unwrap_or_else(|| weight.oi.clone()))),
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
            let changes = match &term.what {
                What::Fixed(change) => vec![change.clone()],
                What::Live(live) => live(&site),
            };
            for change in changes {
                match change.times(term.strength) {
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
        let stack = self.stacks.get(place.id.0).and_then(Option::as_ref);
        let y = match stack {
            Some(stack) => stack.add(x, y, place.shape),
            None => y,
        };
        rest.into_iter().fold(y, |y, change| match change {
            Change::LowRank(branch) => Stack::of(branch, 0).add(x, y, place.shape),
            Change::Bias(bias) => y.offset(bias),
            Change::Output(more) => y + more,
            Change::Weight(_) => y,
        })
    }
}

impl Stack {
    fn of(branch: Branch, adapter: usize) -> Self {
        let Branch { down, up, scale } = branch;
        let parts = vec![Part { adapter, rank: up.dims()[1], scale, strength: 1.0 }];
        Self { scales: scales(&parts), parts, down, up }
    }

    fn with(self, more: Self) -> Self {
        let parts = [self.parts, more.parts].concat();
        Self {
            down: Tensor::cat(vec![self.down, more.down], 0),
            up: Tensor::cat(vec![self.up, more.up], 1),
            scales: scales(&parts),
            parts,
        }
    }

    /// `y + Σ scale · up(down(x))`.
    fn add(&self, x: &Signal, y: Signal, shape: Option<ConvShape>) -> Signal {
        let Self { down, up, scales, .. } = self;
        let (down, up) = (down.clone(), up.clone());
        match (x, y) {
            (Signal::Tokens(x), Signal::Tokens(y)) => Signal::Tokens(low_rank(x.clone(), y, down, up, scales)),
            (x, y) => {
                let h = x.clone().through(down, None, shape);
                match scales.iter().all(|scale| scale.to_bits() == scales[0].to_bits()) {
                    true => y + h.mix(up) * scales[0],
                    false => y + h.scaled(row(scales, &up)).mix(up),
                }
            }
        }
    }

    /// `W + Σ scale · up · down`.
    fn fused(self, weight_oi: Tensor<2>) -> Tensor<2> {
        let Self { down, up, scales, .. } = self;
        fuse(weight_oi, up.clone(), down, row(&scales, &up), FloatDType::F32)
    }
}

fn scales(parts: &[Part]) -> Arc<[f32]> {
    parts.iter().flat_map(|part| std::iter::repeat_n(part.scale * part.strength, part.rank)).collect()
}

/// The numbers beside `up`.
fn row(scales: &[f32], up: &Tensor<2>) -> Tensor<1> {
    Tensor::from_data(TensorData::new(scales.to_vec(), [scales.len()]), &up.device())
}
