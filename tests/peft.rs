//! Our adapters against PEFT's, with PEFT's own parameters.
//!
//! `peft_reference` (made by `make_reference.py`) holds a linear layer and a convolution under each of PEFT's methods:
//! the weight, the adapter's parameters, the weight with the adapter merged in, and the layer's output. Every shape and
//! number comes from there, or from the folder that `TRIPTYCH_REFERENCE` names. f32 on the CPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::Tensor;
use reference::{Reference, assert_close};
use serde_json::Value;
use triptych::engine::adapter::mount::live;
use triptych::engine::adapter::{self, Adapter, Context, METHODS, Spot, Start, Stored};
use triptych::engine::field::Settings;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::lora_file::relative::Base;
use triptych::engine::io::{Dtype, safetensors};
use triptych::engine::model::blocks::ConvShape;
use triptych::engine::model::mount::Place;
use triptych::engine::model::{Layer, LayerId, Mounts, Part, Signal, Weight};
use triptych::engine::random::Philox;

/// Of the largest value. Measured: 4e-7.
const CLOSE: f32 = 1e-5;

/// One of PEFT's methods as one of ours.
struct Twin {
    theirs: &'static str,
    ours: &'static str,
    /// Our fields and the keys of PEFT's configuration.
    settings: &'static [(&'static str, &'static str)],
    /// Our tensors and PEFT's parameters.
    tensors: &'static [(&'static str, &'static str)],
    /// PEFT's convolution unfolds its input, turns the patches and folds them back without counting how many lie over
    /// each other, so that what it trains is not what it merges (kernels beyond 1×1). The weight is the method's.
    merge_differs_on_convolutions: bool,
}

const LOW_RANK: &[(&str, &str)] = &[("lora_down", "lora_A"), ("lora_up", "lora_B")];

const TWINS: &[Twin] = &[
    Twin {
        theirs: "lora",
        ours: "lora",
        settings: &[("rank", "r"), ("alpha", "lora_alpha")],
        tensors: LOW_RANK,
        merge_differs_on_convolutions: false,
    },
    Twin {
        theirs: "rslora",
        ours: "lora",
        settings: &[("rank", "r"), ("alpha", "lora_alpha"), ("rank_stabilised", "use_rslora")],
        tensors: LOW_RANK,
        merge_differs_on_convolutions: false,
    },
    Twin {
        theirs: "dora",
        ours: "dora",
        settings: &[("rank", "r"), ("alpha", "lora_alpha")],
        tensors: &[LOW_RANK[0], LOW_RANK[1], ("dora_scale", "lora_magnitude_vector")],
        merge_differs_on_convolutions: false,
    },
    Twin {
        theirs: "pissa",
        ours: "pissa",
        settings: &[("rank", "r"), ("alpha", "lora_alpha")],
        tensors: LOW_RANK,
        merge_differs_on_convolutions: false,
    },
    Twin {
        theirs: "oft",
        ours: "oft",
        settings: &[("block_size", "oft_block_size")],
        tensors: &[("oft_r", "oft_R")],
        merge_differs_on_convolutions: true,
    },
];

/// In the file, and not here yet. A method that is added takes its name out of this list and a row above.
const NOT_YET: [&str; 11] =
    ["olora", "loha", "lokr", "boft", "vera", "ia3", "hra", "randlora", "bone", "miss", "delora"];

#[test]
fn every_method_of_the_file_is_compared_or_not_here_yet() {
    let configs = Reference::open("peft_reference").json("configs");
    let theirs: BTreeSet<&str> =
        configs.as_object().unwrap().keys().map(|key| key.split_once('.').unwrap().0).collect();
    for name in theirs {
        let compared = TWINS.iter().any(|twin| twin.theirs == name);
        assert!(compared != NOT_YET.contains(&name), "{name} needs a row in one of the two tables");
    }
    for row in METHODS {
        assert!(!NOT_YET.contains(&row.name), "{} is here: compare it", row.name);
    }
}

/// A layer of the file under one method.
struct Compared<'a> {
    r: &'a Reference,
    twin: &'a Twin,
    key: String,
    adapter: Arc<dyn Adapter>,
    layer: Layer,
    weight: Weight,
}

impl<'a> Compared<'a> {
    fn new(r: &'a Reference, twin: &'a Twin, key: String, config: &Value) -> Self {
        let row = adapter::method(twin.ours).unwrap();
        let changes: Vec<(&str, String)> =
            twin.settings.iter().map(|(ours, peft)| (*ours, config[peft].to_string())).collect();
        let settings = Settings::new(row.fields, changes.iter().map(|(name, text)| (*name, text.as_str()))).unwrap();
        let adapter = (row.build)(&settings, &Context { seed: 0, slot: 0, block: 1 }).unwrap().into();
        let shape = r.shape(&format!("{key}.weight0"));
        let (out, channels) = (shape[0], shape[1]);
        let kernel = shape.get(2).map(|&height| [height, shape[3]]);
        let layer = Layer { part: Part::Unet, path: key.clone(), out, channels, kernel, module: None };
        let oi = Self::matrix(r, &format!("{key}.weight0"), [out, layer.input()]);
        let weight = Weight { oi, bias: Some(r.tensor(&format!("{key}.bias"))) };
        Self { r, twin, key, adapter, layer, weight }
    }

    fn matrix(r: &Reference, name: &str, shape: [usize; 2]) -> Tensor<2> {
        assert_eq!(r.shape(name).iter().product::<usize>(), shape[0] * shape[1], "{name}");
        let values: Tensor<1> = Tensor::from_floats(&r.f32(name)[..], &triptych::engine::device::cpu());
        values.reshape(shape)
    }

    /// Their number of our layer's weight, whatever its shape in the file.
    fn as_weight(&self, name: &str) -> Tensor<2> {
        Self::matrix(self.r, &format!("{}.{name}", self.key), self.weight.oi.dims())
    }

    fn begin(&self) -> Vec<Start> {
        let (layer, weight) = (&self.layer, &self.weight);
        self.adapter.begin(&Spot { layer, weight, depth: 0.0, random: Philox::new(0) }).unwrap()
    }

    /// What we begin with, with PEFT's numbers where PEFT has them. Theirs may have other axes of length 1.
    fn tensors(&self) -> Vec<Tensor<2>> {
        let of = |start: Start| {
            let theirs = self.twin.tensors.iter().find(|(ours, _)| *ours == start.name);
            match theirs {
                Some((_, theirs)) => {
                    let name = format!("{}.param.{theirs}.default.weight", self.key);
                    let known = self.r.names().any(|stored| *stored == name);
                    // A vector or table of the method's own has no `.weight` in some versions.
                    let name = if known { name } else { format!("{}.param.{theirs}.default", self.key) };
                    Self::matrix(self.r, &name, start.shape)
                }
                None => start.tensor(&self.weight.oi.device()),
            }
        };
        self.begin().into_iter().map(of).collect()
    }

    /// `W + ΔW`.
    fn effective(&self, t: &[Tensor<2>]) -> Tensor<2> {
        let oi = self.weight.oi.clone();
        match self.adapter.store(t, &self.weight).unwrap() {
            Stored::Lora { down, up, rank, alpha, .. } => {
                let matrix = |values: &[f32], shape: [usize; 2]| {
                    Tensor::<1>::from_floats(values, &oi.device()).reshape::<2, _>(shape)
                };
                let [out, input] = oi.dims();
                oi.clone() + matrix(&up, [out, rank]).matmul(matrix(&down, [rank, input])) * (alpha / rank as f32)
            }
            Stored::Difference(delta) => {
                oi.clone() + Tensor::<1>::from_floats(&delta[..], &oi.device()).reshape(oi.dims())
            }
            other => panic!("{}: {other:?} is no change of the weight", self.key),
        }
    }

    /// The layer at work. PEFT's convolutions here keep height and width.
    fn output(&self, t: &[Tensor<2>]) -> Tensor<1> {
        let mut mounts = Mounts::none();
        mounts.add_live(LayerId(0), live(Arc::clone(&self.adapter), t.to_vec()));
        let x = format!("{}.x", self.key);
        let (x, shape) = match self.layer.kernel {
            None => (Signal::Tokens(self.r.tensor(&x)), None),
            Some(kernel @ [height, _]) => {
                (Signal::Picture(self.r.tensor(&x)), Some(ConvShape { kernel, stride: 1, padding: height / 2 }))
            }
        };
        let Weight { oi, bias } = self.weight.clone();
        let y = match mounts.run(&Place { id: LayerId(0), weight_oi: oi, bias: bias.as_ref(), shape }, &x) {
            Signal::Tokens(y) => y.into_data(),
            Signal::Picture(y) => y.into_data(),
        };
        Tensor::from_floats(&y.try_to_vec::<f32>().unwrap()[..], &triptych::engine::device::cpu())
    }
}

/// Every method on every kind of layer that PEFT puts it on.
fn compared(r: &Reference) -> Vec<Compared<'_>> {
    let configs = r.json("configs");
    let of = |(key, config): (&String, &Value)| {
        let (method, _) = key.split_once('.').unwrap();
        let twin = TWINS.iter().find(|twin| twin.theirs == method)?;
        config.get("unsupported").is_none().then(|| Compared::new(r, twin, key.clone(), config))
    };
    let all: Vec<_> = configs.as_object().unwrap().iter().filter_map(of).collect();
    assert!(TWINS.iter().all(|twin| all.iter().any(|c| c.twin.theirs == twin.theirs)), "a method is missing");
    all
}

#[test]
fn weights_are_pefts() {
    let r = Reference::open("peft_reference");
    for c in compared(&r) {
        assert_close(&c.key, c.effective(&c.tensors()), c.as_weight("weight_effective"), CLOSE);
    }
}

#[test]
fn outputs_are_pefts() {
    let r = Reference::open("peft_reference");
    for c in compared(&r) {
        if c.twin.merge_differs_on_convolutions && c.layer.kernel.is_some() {
            continue;
        }
        let y = Tensor::<1>::from_floats(&r.f32(&format!("{}.y", c.key))[..], &c.weight.oi.device());
        assert_close(&c.key, c.output(&c.tensors()), y, CLOSE);
    }
}

/// PiSSA takes its start off the weight that stays. Ours stays whole, and takes it off in the layer: the same residual,
/// from the same directions, whatever their signs.
#[test]
fn pissa_leaves_pefts_residual() {
    let r = Reference::open("peft_reference");
    for c in compared(&r).iter().filter(|c| c.twin.ours == "pissa") {
        let t: Vec<Tensor<2>> = c.begin().iter().map(|start| start.tensor(&c.weight.oi.device())).collect();
        // Without what trains, only what is taken off remains.
        let off = [t[0].zeros_like(), t[1].zeros_like(), t[2].clone(), t[3].clone()];
        assert_close(&c.key, c.effective(&off), c.as_weight("base_after_init"), CLOSE);
    }
}

/// PEFT's methods of which we read the stored parameters, whether we train them or not.
const READ: [&str; 8] = ["lora", "rslora", "dora", "loha", "lokr", "oft", "boft", "ia3"];

/// A folder as PEFT saves one: the parameters of a layer, and the configuration beside them.
#[test]
fn folders_of_peft_are_read_as_peft_means_them() {
    let r = Reference::open("peft_reference");
    let configs = r.json("configs");
    let mut read = BTreeSet::new();
    for (key, config) in configs.as_object().unwrap() {
        let (method, _) = key.split_once('.').unwrap();
        if !READ.contains(&method) || config.get("unsupported").is_some() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let parameters = r.names().filter_map(|name| Some((name, name.strip_prefix(&format!("{key}.param."))?)));
        let stored = parameters.map(|(name, parameter)| {
            let parameter = parameter.replace(".default", "");
            let tensor = safetensors::Tensor::new(Dtype::F32, &r.shape(name), &r.f32(name));
            (format!("base_model.model.mid_block.layer.{parameter}"), tensor)
        });
        safetensors::save(&folder.path().join("adapter_model.safetensors"), &stored.collect(), &BTreeMap::new())
            .unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();

        let base = Base {
            weight: r.f32(&format!("{key}.weight0")),
            shape: r.shape(&format!("{key}.weight0")),
            bias: Some(r.f32(&format!("{key}.bias"))),
        };
        let file = LoraFile::open(folder.path()).unwrap().on(|_| Ok(Some(base.clone()))).unwrap();
        let delta = file.pair("lora_unet_mid_block_layer").unwrap().product().weight;
        let ours: Vec<f32> = base.weight.iter().zip(&delta).map(|(w, d)| w + d).collect();
        let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &triptych::engine::device::cpu());
        let theirs = tensor(&r.f32(&format!("{key}.weight_effective")));
        assert_close(&format!("{key}, read"), tensor(&ours), theirs, CLOSE);
        read.insert(method);
    }
    assert_eq!(read.len(), READ.len(), "{read:?}");
}
