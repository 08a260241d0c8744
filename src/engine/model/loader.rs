//! From a checkpoint to tensors, with every fault of the file collected into one error.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use burn::tensor::{DType, Tensor, TensorData};

use crate::engine::io::decode::Numbers;
use crate::engine::io::{Checkpoint, Dtype};
use crate::engine::model::blocks::{Conv, ConvShape, Linear, Norm};
use crate::engine::model::{Hold, Layer, LayerId, Part, Table, Weight};
use crate::engine::{Error, Result};

/// At most this many faults are spelled out.
const NAMED_FAULTS: usize = 8;

/// Hands out the tensors of one network and keeps account of them.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    hold: Hold<'a>,
    part: Part,
    /// Our name → name in the file.
    stored: BTreeMap<String, String>,
    /// Beginnings of the names of what is never computed with.
    idle: Vec<String>,
    state: RefCell<State>,
}

struct State {
    taken: BTreeSet<String>,
    faults: Vec<String>,
    table: Table,
}

impl<'a> Loader<'a> {
    /// `ours` turns a stored name into ours, or `None` for what is not a weight. `table` holds the layers so far.
    pub fn new(
        checkpoint: &'a Checkpoint,
        ours: impl Fn(&str) -> Option<String>,
        hold: Hold<'a>,
        part: Part,
        table: Table,
    ) -> Self {
        let stored = checkpoint.entries().keys().filter_map(|name| Some((ours(name)?, name.clone()))).collect();
        Self {
            checkpoint,
            hold,
            part,
            stored,
            idle: Vec::new(),
            state: RefCell::new(State { taken: BTreeSet::new(), faults: Vec::new(), table }),
        }
    }

    /// Accepts NaN in tensors whose names begin so: nothing reads them, and merged models hold such (SDXL's first text
    /// encoder is read before its last layer).
    pub fn leave_idle(&mut self, starts: impl IntoIterator<Item = String>) {
        self.idle.extend(starts);
    }

    pub fn root(&self) -> Scope<'_> {
        Scope { loader: self, path: String::new() }
    }

    /// The table of layers, or every missing, extra and misshapen tensor in one error.
    pub fn finish(self) -> Result<Table> {
        let State { taken, mut faults, table } = self.state.into_inner();
        faults.extend(
            self.stored
                .keys()
                .filter(|name| !taken.contains(*name))
                .map(|name| format!("{name} is not part of this model")),
        );
        if faults.is_empty() {
            return Ok(table);
        }
        let more = faults.len().saturating_sub(NAMED_FAULTS);
        let named = faults.iter().take(NAMED_FAULTS).cloned().collect::<Vec<_>>().join("; ");
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(Error::new(
            format!("The weights do not fit their configuration: {named}{rest}"),
            "Check that the weights and config.json belong together",
        )
        .at(self.checkpoint.path()))
    }

    fn tensor<const D: usize>(&self, name: &str, shape: [usize; D], held: Dtype) -> Tensor<D> {
        // In place of what is faulty and will never run; its promised size may be more than fits into memory.
        let device = self.hold.device;
        let stand_in = || Tensor::zeros([1; D], device);
        let fault = |text: String| self.state.borrow_mut().faults.push(text);
        let Some(stored) = self.stored.get(name) else {
            fault(format!("{name} is missing"));
            return stand_in();
        };
        self.state.borrow_mut().taken.insert(name.to_owned());
        let found = self.checkpoint.shape(stored).unwrap_or_default();
        // Singleton axes are the only difference between a linear layer and a 1×1 convolution in files.
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if squeezed(found) != squeezed(&shape) {
            fault(format!("{name} is {found:?} instead of {shape:?}"));
            return stand_in();
        }
        let is_idle = self.idle.iter().any(|start| name.starts_with(start));
        let read = match held {
            Dtype::F16 => self.checkpoint.f16(stored).map(|Numbers { values, finite }| {
                (finite || is_idle).then(|| Tensor::from_data(TensorData::new(values, shape), (device, DType::F16)))
            }),
            _ => self.checkpoint.numbers(stored).map(|Numbers { values, finite }| {
                (finite || is_idle).then(|| Tensor::from_data(TensorData::new(values, shape), device))
            }),
        };
        match read {
            Ok(Some(tensor)) => tensor,
            Ok(None) => {
                fault(format!("{name} holds NaN or infinite numbers"));
                stand_in()
            }
            Err(error) => {
                fault(error.what);
                stand_in()
            }
        }
    }
}

/// A place in the module tree.
#[derive(Clone)]
pub struct Scope<'a> {
    loader: &'a Loader<'a>,
    path: String,
}

impl Scope<'_> {
    #[must_use]
    pub fn sub(&self, name: impl Display) -> Self {
        Self { loader: self.loader, path: self.join(&name) }
    }

    /// In f32.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Tensor<D> {
        self.loader.tensor(&self.join(&name), shape, Dtype::F32)
    }

    /// As matrices of this model are held: in f32 or f16.
    pub fn matrix<const D: usize>(&self, name: &str, shape: [usize; D]) -> Tensor<D> {
        let name = self.join(&name);
        let entry = self.loader.stored.get(&name).and_then(|stored| self.loader.checkpoint.entries().get(stored));
        let held = self.loader.hold.matrix(entry.map_or(Dtype::F32, |entry| entry.dtype));
        self.loader.tensor(&name, shape, held)
    }

    /// Whether any tensor lies below `name`.
    pub fn has(&self, name: &str) -> bool {
        let prefix = format!("{}.", self.join(&name));
        self.loader.stored.range(prefix.clone()..).next().is_some_and(|(found, _)| found.starts_with(&prefix))
    }

    /// A linear layer `channels → out`.
    pub fn linear(&self, name: &str, channels: usize, out: usize, bias: bool) -> Linear {
        self.linear_as(name, channels, out, bias, None)
    }

    /// A layer that the file keeps as a 1×1 convolution and that runs on tokens.
    pub fn linear_from_conv(&self, name: &str, channels: usize, out: usize) -> Linear {
        self.linear_as(name, channels, out, true, Some([1, 1]))
    }

    fn linear_as(&self, name: &str, channels: usize, out: usize, bias: bool, kernel: Option<[usize; 2]>) -> Linear {
        let scope = self.sub(name);
        let weight_oi = scope.matrix("weight", [out, channels]);
        let bias = bias.then(|| scope.tensor("bias", [out]));
        let weight = Weight { oi: weight_oi.clone(), bias: bias.clone() };
        Linear { id: scope.register(out, channels, kernel, weight), weight_oi, bias }
    }

    /// A convolution.
    pub fn conv(&self, name: &str, channels: usize, out: usize, shape: ConvShape) -> Conv {
        self.conv_as(name, channels, out, shape, true)
    }

    /// One to which the file has no bias, such as before a batch norm.
    pub fn conv_without_bias(&self, name: &str, channels: usize, out: usize, shape: ConvShape) -> Conv {
        self.conv_as(name, channels, out, shape, false)
    }

    fn conv_as(&self, name: &str, channels: usize, out: usize, shape: ConvShape, biased: bool) -> Conv {
        let scope = self.sub(name);
        let [h, w] = shape.kernel;
        let weight_oihw: Tensor<4> = scope.matrix("weight", [out, channels, h, w]);
        let stored: Option<Tensor<1>> = biased.then(|| scope.tensor("bias", [out]));
        // A faulty weight has a stand-in of another size, and its model is refused.
        let [o, i, kh, kw] = weight_oihw.dims();
        let weight = Weight { oi: weight_oihw.clone().reshape([o, i * kh * kw]), bias: stored.clone() };
        let bias = stored.unwrap_or_else(|| Tensor::zeros([o], self.loader.hold.device));
        Conv { id: scope.register(out, channels, Some(shape.kernel), weight), weight_oihw, bias, shape }
    }

    pub fn norm(&self, name: &str, width: usize, eps: f64) -> Norm {
        let scope = self.sub(name);
        Norm { weight: scope.tensor("weight", [width]), bias: scope.tensor("bias", [width]), eps }
    }

    fn register(&self, out: usize, channels: usize, kernel: Option<[usize; 2]>, weight: Weight) -> LayerId {
        let table = &mut self.loader.state.borrow_mut().table;
        table.layers.push(Layer {
            part: self.loader.part,
            path: self.path.clone(),
            out,
            channels,
            kernel,
            module: None,
        });
        table.weights.push(weight);
        LayerId(table.layers.len() - 1)
    }

    fn join(&self, name: &impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}
