//! A layer on its own, and an adapter at work on it.

use std::sync::Arc;

use burn::tensor::Tensor;
use triptych::engine::adapter::mount::live;
use triptych::engine::adapter::{Adapter, Spot, Start, Stored};
use triptych::engine::device::read;
use triptych::engine::model::blocks::ConvShape;
use triptych::engine::model::mount::Place;
use triptych::engine::model::{Layer, LayerId, Mounts, Part, Signal, Weight};
use triptych::engine::random::Philox;

use crate::tensor;

/// Some of what a layer can be, and how it runs: as a convolution, or on tokens.
#[derive(Clone)]
pub struct Case {
    pub what: String,
    pub layer: Layer,
    pub conv: Option<ConvShape>,
    pub weight: Weight,
    /// Its place among the adapted layers.
    pub depth: f32,
}

/// Every shape, with a bias and without.
pub fn cases() -> Vec<Case> {
    [
        ("linear", 9, None, None),
        ("linear stored as a 1×1 convolution", 9, Some([1, 1]), None),
        ("1×1 convolution", 9, Some([1, 1]), Some(ConvShape::POINT)),
        ("3×3 convolution", 3, Some([3, 3]), Some(ConvShape::SAME3)),
        ("3×3 convolution of stride 2", 3, Some([3, 3]), Some(ConvShape::HALF3)),
    ]
    .into_iter()
    .map(|(what, channels, kernel, conv)| Case::new(what, [6, channels], kernel, conv))
    .flat_map(|case| [case.clone(), case.without_bias()])
    .collect()
}

/// More inputs and outputs than any rank that these tests ask for.
pub fn wide() -> Case {
    Case::new("wide linear", [40, 36], None, None)
}

impl Case {
    pub fn new(what: &str, [out, channels]: [usize; 2], kernel: Option<[usize; 2]>, conv: Option<ConvShape>) -> Self {
        let path = "mid_block.attentions.0.proj_in".into();
        let layer = Layer { part: Part::Unet, path, out, channels, kernel, module: None };
        let input = layer.input();
        let oi = tensor(&Philox::new(2).normal(0, out * input), [out, input]) * (input as f32).powf(-0.5);
        let bias = Some(tensor(&Philox::new(3).normal(0, out), [out]));
        Self { what: what.into(), layer, conv, weight: Weight { oi, bias }, depth: 0.0 }
    }

    pub fn without_bias(&self) -> Self {
        let weight = Weight { bias: None, ..self.weight.clone() };
        Self { what: format!("{} without bias", self.what), weight, ..self.clone() }
    }

    pub fn at_depth(self, depth: f32) -> Self {
        Self { depth, ..self }
    }

    /// Two inputs; height and width are odd and even, so that a stride meets both.
    pub fn x(&self) -> Signal {
        let channels = self.layer.channels;
        let values = Philox::new(1).normal(0, 2 * channels * 3 * 4);
        match self.conv {
            None => Signal::Tokens(tensor(&values, [2 * 3 * 4, channels])),
            Some(_) => Signal::Picture(tensor(&values, [2, channels, 3, 4])),
        }
    }

    pub fn start(&self, adapter: &dyn Adapter) -> Vec<Start> {
        let (layer, weight, depth) = (&self.layer, &self.weight, self.depth);
        adapter.begin(&Spot { layer, weight, depth, random: Philox::new(4) }).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The tensors as training might leave them.
    pub fn trained(&self, adapter: &dyn Adapter) -> Vec<Tensor<2>> {
        self.tensors(&moved(self.start(adapter), 5))
    }

    pub fn tensors(&self, starts: &[Start]) -> Vec<Tensor<2>> {
        starts.iter().map(|start| start.tensor(&self.weight.oi.device())).collect()
    }

    /// The layer with other parameters than its own.
    pub fn run_as(&self, weight: &Weight, mounts: &Mounts, x: &Signal) -> Tensor<1> {
        let Weight { oi, bias } = weight.clone();
        let place = Place { id: LayerId(0), weight_oi: oi, bias: bias.as_ref(), shape: self.conv };
        flat(mounts.run(&place, x))
    }

    pub fn run(&self, mounts: &Mounts, x: &Signal) -> Tensor<1> {
        self.run_as(&self.weight, mounts, x)
    }

    pub fn values(&self, mounts: &Mounts, x: &Signal) -> Vec<f32> {
        read(self.run(mounts, x)).unwrap()
    }

    /// `W + ΔW` and `b + Δb`.
    pub fn changed_by(&self, stored: &Stored) -> Weight {
        let (delta, offset) = delta(stored, [self.layer.out, self.layer.input()]);
        let (oi, bias) = (self.weight.oi.clone(), self.weight.bias.clone());
        let delta: Vec<f32> = delta.iter().map(|&x| x as f32).collect();
        assert!(bias.is_some() || offset.is_none(), "{}: there is no bias to change", self.what);
        let bias = bias.map(|b| match &offset {
            Some(offset) => b + tensor(offset, [offset.len()]),
            None => b,
        });
        Weight { oi: oi.clone() + tensor(&delta, oi.dims()), bias }
    }
}

/// An adapter on a layer that is alone.
pub fn alone(adapter: &Arc<dyn Adapter>, t: &[Tensor<2>]) -> Mounts {
    let mut mounts = Mounts::none();
    mounts.add_live(LayerId(0), live(Arc::clone(adapter), t.to_vec()));
    mounts
}

pub fn flat(signal: Signal) -> Tensor<1> {
    match signal {
        Signal::Tokens(y) => {
            let n = y.shape().num_elements();
            y.reshape([n])
        }
        Signal::Picture(y) => {
            let n = y.shape().num_elements();
            y.reshape([n])
        }
    }
}

/// Everything that trains, moved; what is frozen, as it is.
pub fn moved(mut starts: Vec<Start>, seed: u64) -> Vec<Start> {
    for (draw, start) in starts.iter_mut().enumerate().filter(|(_, start)| start.trains) {
        let noise = Philox::new(seed).normal(draw as u32, start.values.len());
        start.values.iter_mut().zip(noise).for_each(|(x, d)| *x += 0.1 * d);
    }
    starts
}

/// `ΔW [out, in]`, row-major, the slow way; and `Δb`.
pub fn delta(stored: &Stored, [out, input]: [usize; 2]) -> (Vec<f64>, Option<Vec<f32>>) {
    match stored {
        Stored::Lora { down, up, rank, alpha, bias } => {
            assert_eq!((down.len(), up.len()), (rank * input, out * rank), "the factors' sizes");
            let scale = f64::from(*alpha) / *rank as f64;
            let entry = |o: usize, i: usize| -> f64 {
                (0..*rank).map(|k| f64::from(up[o * rank + k]) * f64::from(down[k * input + i])).sum()
            };
            let delta = (0..out * input).map(|at| scale * entry(at / input, at % input)).collect();
            (delta, bias.clone())
        }
        Stored::Difference(delta) => {
            assert_eq!(delta.len(), out * input, "the difference's size");
            (delta.iter().map(|&x| f64::from(x)).collect(), None)
        }
        Stored::Nothing => (vec![0.0; out * input], None),
        Stored::Own => panic!("it is no change of the weight"),
    }
}
