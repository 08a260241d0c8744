//! The contract of every adapter method. Tests loop over `METHODS`: registering a method is having it tested.
//!
//! f32 on the CPU. The layers of one test are a few numbers wide; the whole model is the reference's, whatever its
//! sizes. Each tolerance stands beside what was measured.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use reference::Reference;
use triptych::engine::adapter::basis::Basis;
use triptych::engine::adapter::mount::{Strength, mount};
use triptych::engine::adapter::{self, Adapter, Context, Factors, METHODS, Method};
use triptych::engine::concept::{self, Concept, Trigger};
use triptych::engine::device;
use triptych::engine::diffusion::Schedule;
use triptych::engine::field::{Field, Kind, Settings};
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::io::safetensors::{self, Dtype};
use triptych::engine::io::{Folder, metadata, names};
use triptych::engine::model::blocks::{Conv, ConvShape, Linear};
use triptych::engine::model::tokenizer::Word;
use triptych::engine::model::{Branch, Layer, LayerId, Mounts, Part, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::session;
use triptych::engine::spectrum::{LowRank, Shape};
use triptych::engine::train::config;
use triptych::engine::train::job::Job;
use triptych::engine::train::step::{Batch, Group, Rates, Side, Text, Trainee, read};

/// Two slots of this width fit into the narrowest layer of the small model.
const BLOCK: usize = 4;
/// Alpha is not the rank, so that a forgotten scale shows.
const SETTINGS: [(&str, &str); 2] = [("rank", "3"), ("alpha", "5")];

fn build(method: &Method, changes: &[(&str, &str)], slot: usize) -> Box<dyn Adapter> {
    let settings = Settings::new(method.fields, changes.iter().copied()).unwrap();
    (method.build)(&settings, &Context { seed: 7, slot, block: BLOCK }).unwrap()
}

/// Factors as training might leave them: everything that trains has moved.
fn trained(adapter: &dyn Adapter, layer: &Layer, seed: u64) -> Factors {
    let random = Philox::new(seed);
    let mut factors = adapter.init(layer, &random).unwrap();
    let move_by = |values: &mut Vec<f32>, offset: u32| {
        let noise = random.normal(offset, values.len());
        values.iter_mut().zip(noise).for_each(|(x, d)| *x += 0.05 * d);
    };
    move_by(&mut factors.up, 1);
    if factors.train_down {
        move_by(&mut factors.down, 2);
    }
    factors
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &device::cpu())
}

fn mounted(layer: &Layer, factors: &Factors, down: Tensor<2>, up: Tensor<2>) -> Mounts {
    assert_eq!((down.dims(), up.dims()), ([factors.rank, layer.input()], [layer.out, factors.rank]));
    let mut mounts = Mounts::none();
    mounts.add(LayerId(0), Branch { down, up, scale: factors.scale() });
    mounts
}

/// `ΔW [out, in]`, row-major, the slow way.
fn dense(factors: &Factors, input: usize) -> Vec<f64> {
    let scale = f64::from(factors.alpha) / factors.rank as f64;
    let row = |up: &[f32]| {
        (0..input)
            .map(|i| {
                up.iter().enumerate().map(|(k, &u)| scale * f64::from(u) * f64::from(factors.down[k * input + i])).sum()
            })
            .collect::<Vec<f64>>()
    };
    factors.up.chunks_exact(factors.rank).flat_map(row).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Largest difference, as a share of the largest expected value.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()), "not finite");
    let difference = found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    difference / largest(expected)
}

// ---- the registry

#[test]
fn rows_are_complete() {
    let names: BTreeSet<&str> = METHODS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), METHODS.len(), "two methods share a name");
    for row in METHODS {
        for text in [row.name, row.title, row.paper, row.help] {
            assert!(!text.trim().is_empty() && text.trim() == text, "{}: {text:?}", row.name);
        }
        assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{} must be typed easily", row.name);
        assert_eq!(adapter::method(row.name).unwrap().title, row.title);
        assert_fields(row.name, row.fields);
        // `--set` looks a name up in both tables: one that stands in both could never reach the training's.
        for field in row.fields {
            assert!(
                config::FIELDS.iter().all(|f| f.name != field.name),
                "{}.{} is a training field",
                row.name,
                field.name
            );
        }
    }
    let error = adapter::method("dreambooth").unwrap_err();
    assert!(METHODS.iter().all(|row| error.advice.contains(row.name)), "{error}");
}

fn assert_fields(method: &str, fields: &[Field]) {
    let names: BTreeSet<&str> = fields.iter().map(|field| field.name).collect();
    assert_eq!(names.len(), fields.len(), "{method}: two fields share a name");
    Settings::new(fields, []).unwrap_or_else(|e| panic!("{method}: a default is not valid: {e}"));
    for field in fields {
        assert!(!field.title.is_empty() && !field.help.is_empty(), "{method}.{} explains nothing", field.name);
        let edges: Vec<String> = match field.kind {
            Kind::Integer { min, max } => vec![min.to_string(), max.to_string()],
            Kind::Number { min, max } => vec![min.to_string(), max.to_string()],
            Kind::Choice(words) => words.iter().map(ToString::to_string).collect(),
            Kind::Flag => vec!["true".into(), "false".into()],
            Kind::Text => Vec::new(),
        };
        for text in edges {
            Settings::new(fields, [(field.name, text.as_str())])
                .unwrap_or_else(|e| panic!("{method}.{} does not take its own {text}: {e}", field.name));
        }
    }
}

#[test]
fn every_choice_builds() {
    let layer = linear(64);
    for row in METHODS {
        for field in row.fields {
            let texts: &[&str] = match field.kind {
                Kind::Choice(words) => words,
                Kind::Flag => &["true", "false"],
                _ => continue,
            };
            for &text in texts {
                let factors = build(row, &[(field.name, text)], 1).init(&layer, &Philox::new(0)).unwrap();
                assert!(factors.scale().is_finite(), "{} {}={text}", row.name, field.name);
            }
        }
    }
}

/// A linear layer with one output.
fn linear(width: usize) -> Layer {
    Layer { part: Part::Unet, path: "mid_block.attentions.0.proj".into(), out: 1, channels: width, kernel: None }
}

// ---- one layer

/// A layer on its own and how it runs: as a convolution, or on tokens.
struct Case {
    what: &'static str,
    layer: Layer,
    conv: Option<ConvShape>,
}

fn cases() -> [Case; 5] {
    let case = |what: &'static str, channels, kernel, conv| {
        let layer = Layer { part: Part::Unet, path: what.into(), out: 6, channels, kernel };
        Case { what, layer, conv }
    };
    [
        case("linear", 9, None, None),
        case("linear stored as a 1×1 convolution", 9, Some([1, 1]), None),
        case("1×1 convolution", 9, Some([1, 1]), Some(ConvShape::POINT)),
        case("3×3 convolution", 3, Some([3, 3]), Some(ConvShape::SAME3)),
        case("3×3 convolution of stride 2", 3, Some([3, 3]), Some(ConvShape::HALF3)),
    ]
}

impl Case {
    /// Two inputs; height and width are odd and even, so that a stride meets both.
    fn x(&self) -> Vec<f32> {
        Philox::new(1).normal(0, 2 * self.layer.channels * 5 * 6)
    }

    fn weight(&self) -> Vec<f32> {
        let shrink = (self.layer.input() as f32).powf(-0.5);
        Philox::new(2).normal(0, self.layer.out * self.layer.input()).into_iter().map(|x| x * shrink).collect()
    }

    fn run(&self, weight_oi: &[f32], bias: bool, mounts: &Mounts) -> Tensor<1> {
        let Layer { out, channels, kernel, .. } = self.layer;
        let offsets = tensor(&Philox::new(3).normal(0, out), [out]) * f64::from(u8::from(bias));
        let flat = |y: Tensor<4>| {
            let n = y.shape().num_elements();
            y.reshape([n])
        };
        match self.conv {
            None => {
                let weight_io = tensor(weight_oi, [out, channels]).transpose();
                let linear = Linear { id: LayerId(0), weight_io, bias: bias.then_some(offsets) };
                flat(linear.forward(tensor(&self.x(), [2, 5, 6, channels]), mounts))
            }
            Some(shape) => {
                let [h, w] = kernel.unwrap();
                let weight_oihw = tensor(weight_oi, [out, channels, h, w]);
                let conv = Conv { id: LayerId(0), weight_oihw, bias: offsets, shape };
                flat(conv.forward(tensor(&self.x(), [2, channels, 5, 6]), mounts))
            }
        }
    }
}

/// T2. Catches a wrong side, a missing scale, and a convolution whose stride, padding or flattening differs.
#[test]
fn live_layers_are_merged_layers() {
    for row in METHODS {
        for (i, case) in cases().iter().enumerate() {
            let factors = trained(build(row, &SETTINGS, 1).as_ref(), &case.layer, i as u64);
            let sides = |f: &Factors| (tensor(&f.down, [f.rank, case.layer.input()]), tensor(&f.up, [6, f.rank]));
            let (down, up) = sides(&factors);
            let mounts = mounted(&case.layer, &factors, down, up);
            let weight = case.weight();
            let merged: Vec<f32> =
                weight.iter().zip(dense(&factors, case.layer.input())).map(|(&w, d)| w + d as f32).collect();
            for bias in [true, false] {
                let values = |weight: &[f32], mounts: &Mounts| read(case.run(weight, bias, mounts)).unwrap();
                let (live, expected) = (values(&weight, &mounts), values(&merged, &Mounts::none()));
                let context = format!("{} on a {}", row.name, case.what);
                // Measured: 4e-7.
                assert!(apart(&live, &expected) < 1e-5, "{context}: {}", apart(&live, &expected));
                assert!(apart(&values(&weight, &Mounts::none()), &expected) > 0.01, "{context} changes nothing");
            }
        }
    }
}

/// Every entry of every side that trains. The output is linear in each side, so a central difference of any width is
/// exact, and a wide one leaves only rounding.
#[test]
fn layer_gradients_are_finite_differences() {
    const HALF_WIDTH: f32 = 0.5;
    for row in METHODS {
        for (i, case) in cases().iter().enumerate() {
            let factors = trained(build(row, &SETTINGS, 1).as_ref(), &case.layer, i as u64);
            let weight = case.weight();
            let shapes = [[factors.rank, case.layer.input()], [6, factors.rank]];
            let loss = |down: Tensor<2>, up: Tensor<2>| {
                let y = case.run(&weight, true, &mounted(&case.layer, &factors, down, up));
                let n = y.dims()[0];
                (y * tensor(&Philox::new(4).normal(0, n), [n])).sum()
            };
            let leaf = |values: &[f32], shape| tensor::<2>(values, shape).autodiff().require_grad();
            let up = leaf(&factors.up, shapes[1]);
            let down = match factors.train_down {
                true => leaf(&factors.down, shapes[0]),
                false => tensor(&factors.down, shapes[0]),
            };
            let gradients = loss(down.clone(), up.clone()).backward();

            let at =
                |down: &[f32], up: &[f32]| loss(tensor(down, shapes[0]), tensor(up, shapes[1])).into_scalar::<f32>();
            let central = |side: &[f32], loss: &dyn Fn(&[f32]) -> f32| -> Vec<f32> {
                (0..side.len())
                    .map(|k| {
                        let moved = |by: f32| {
                            let mut side = side.to_vec();
                            side[k] += by;
                            loss(&side)
                        };
                        (moved(HALF_WIDTH) - moved(-HALF_WIDTH)) / (2.0 * HALF_WIDTH)
                    })
                    .collect()
            };
            let check = |side: &str, found: Option<Tensor<2>>, expected: &[f32]| {
                let found = read(found.expect("a trained side has a gradient")).unwrap();
                let error = apart(&found, expected);
                // Measured: 3e-6.
                assert!(error < 1e-4, "{} on a {}, {side}: {error}", row.name, case.what);
            };
            check("up", up.grad(&gradients), &central(&factors.up, &|up| at(&factors.down, up)));
            if factors.train_down {
                check("down", down.grad(&gradients), &central(&factors.down, &|down| at(down, &factors.up)));
            }
        }
    }
}

// ---- the whole model

/// Adapters on every layer of the denoiser and of the text encoder.
fn everywhere(model: &StableDiffusion, factors: impl Fn(LayerId, &Layer) -> Factors) -> Vec<(LayerId, Factors)> {
    model.layer_ids().map(|(id, layer)| (id, factors(id, layer))).collect()
}

fn trained_everywhere(model: &StableDiffusion, row: &Method, seed: u64) -> Vec<(LayerId, Factors)> {
    let adapter = build(row, &SETTINGS, 1);
    everywhere(model, |id, layer| trained(adapter.as_ref(), layer, 1000 * seed + id.0 as u64))
}

fn trainee(model: &StableDiffusion, factors: Vec<(LayerId, Factors)>) -> Trainee {
    let mut trainee = Trainee { parameters: Vec::new(), layers: Vec::new(), token: None };
    for (id, factors) in factors {
        trainee.add_layer(id, &model.layer(id).module(), factors, model);
    }
    trainee
}

fn lora_file(model: &StableDiffusion, factors: &[(LayerId, Factors)]) -> LoraFile {
    let layer = |(id, f): &(LayerId, Factors)| {
        let layer = model.layer(*id);
        let (down_shape, up_shape) = (layer.down_shape(f.rank), layer.up_shape(f.rank));
        let Factors { down, up, rank, alpha, .. } = f.clone();
        (layer.module(), LoraLayer { down, up, rank, alpha, down_shape, up_shape })
    };
    LoraFile { layers: factors.iter().map(layer).collect(), dtype: Some(Dtype::F32), ..LoraFile::default() }
}

/// What the text encoder and then the denoiser say.
fn outputs(model: &StableDiffusion, mounts: &Mounts) -> Vec<Vec<f32>> {
    let prompt = &Reference::open("sd_reference").prompts()[0];
    let prompt = model.tokenizer.encode(prompt, &[]).unwrap();
    let context = model.condition(&[prompt], &[], mounts);
    let latents = latents(model, 5);
    let out = model.unet.forward(latents, &[321.0], &context, mounts);
    vec![read(context).unwrap(), read(out).unwrap()]
}

/// Latents of two by two on the lowest level: attention over a single place would have nothing to learn.
fn latents(model: &StableDiffusion, seed: u64) -> Tensor<4> {
    let (channels, side) = (model.unet.config.in_channels, 1 << model.unet.config.block_out_channels.len());
    tensor(&Philox::new(seed).normal(0, channels * side * side), [1, channels, side, side])
}

/// T1. The token is no part of a method: it starts as its class word and is tested with training.
#[test]
fn an_untrained_adapter_changes_nothing() {
    let model = reference::model();
    let base = outputs(&model, &Mounts::none());
    for row in METHODS {
        let adapter = build(row, &SETTINGS, 1);
        let start = everywhere(&model, |id, layer| adapter.init(layer, &Philox::new(id.0 as u64)).unwrap());
        let trainee = trainee(&model, start);
        assert_eq!(outputs(&model, &trainee.mounts(&trainee.values())), base, "{}", row.name);
    }
}

/// T2 through files: the delta is added to the model's own files, and the loader reads the result.
#[test]
fn live_model_is_the_model_with_merged_weights() {
    let model = reference::model();
    let base = outputs(&model, &Mounts::none());
    for (i, row) in METHODS.iter().enumerate() {
        let factors = trained_everywhere(&model, row, i as u64);
        let trainee = trainee(&model, factors.clone());
        let live = outputs(&model, &trainee.mounts(&trainee.values()));
        let merged = outputs(&merged_model(&model, &factors), &Mounts::none());
        for (part, ((live, merged), base)) in ["text", "unet"].iter().zip(live.iter().zip(&merged).zip(&base)) {
            let (error, effect) = (apart(live, merged), apart(base, merged));
            println!("{} {part}: {error:.1e} of the largest value, where the adapter moves {effect:.1e}", row.name);
            assert!(error < 1e-5, "{} {part}: {error}", row.name);
            assert!(effect > 0.01, "{} {part} hardly changes the model: {effect}", row.name);
        }
    }
}

/// The reference model with dense deltas added to the weights in its files.
fn merged_model(model: &StableDiffusion, factors: &[(LayerId, Factors)]) -> StableDiffusion {
    let deltas: BTreeMap<(Part, String), Vec<f64>> = factors
        .iter()
        .map(|(id, f)| {
            let layer = model.layer(*id);
            ((layer.part, format!("{}.weight", layer.path)), dense(f, layer.input()))
        })
        .collect();
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
        let stored = Folder::Disk(from.clone()).checkpoint(&[file]).unwrap();
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
    assert_eq!(used, deltas.len(), "every delta belongs to a weight");
    StableDiffusion::open(&Folder::Disk(to.path().into()), &model.device).unwrap_or_else(|e| panic!("{e}"))
}

fn batch(model: &StableDiffusion) -> Batch {
    let word = Word { text: "<sks>".into(), vectors: 1 };
    let prompt = model.tokenizer.encode("a photo of <sks> cat", &[word]).unwrap();
    Batch {
        latents: latents(model, 6),
        noise: latents(model, 7),
        timesteps: vec![321],
        text: Text::Prompts(vec![prompt], vec![0]),
        weights: vec![1.0],
        prior: None,
    }
}

fn with_token(model: &StableDiffusion, factors: Vec<(LayerId, Factors)>) -> Trainee {
    let width = model.text.config.hidden_size;
    let mut trainee = trainee(model, factors);
    let start = tensor(&Philox::new(8).normal(0, width), [1, width]) * 0.02;
    trainee.token = Some(trainee.add("<sks>".into(), start, Group::Token));
    trainee
}

/// Along each kind of parameter's own gradient, the loss must climb by that gradient's length. Catches a side or the
/// token being cut off from the loss somewhere between the layers.
#[test]
fn model_gradients_are_finite_differences() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    for (i, row) in METHODS.iter().enumerate() {
        let start = with_token(&model, trained_everywhere(&model, row, i as u64));
        let outcome = start.gradients(&model, &schedule, &batch);
        let gradients: Vec<Tensor<2>> = outcome.gradients.into_iter().map(|g| g.expect("a gradient")).collect();
        let mut kinds = 0;
        for kind in [".lora_down", ".lora_up", "<sks>"] {
            let chosen: Vec<usize> =
                (0..gradients.len()).filter(|&k| start.parameters[k].name.ends_with(kind)).collect();
            let norm = |tensors: &dyn Fn(usize) -> Tensor<2>| {
                let values = chosen.iter().flat_map(|&k| read(tensors(k)).unwrap());
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let length = norm(&|k| gradients[k].clone());
            let size = norm(&|k| start.parameters[k].value.clone());
            if chosen.is_empty() {
                continue;
            }
            kinds += 1;
            let loss = f64::from(outcome.loss.clone().into_scalar::<f32>());
            // Wide enough that the loss changes by a thousandth, which rounding (1e-7) cannot hide; but a token is short,
            // and moved by much of itself it is another word.
            let by = (0.001 * loss / length).min(0.05 * size);
            let moved = |by: f64| {
                let mut trainee = start.clone();
                for &k in &chosen {
                    let value = &mut trainee.parameters[k].value;
                    *value = value.clone() + gradients[k].clone() * (by / length);
                }
                f64::from(trainee.gradients(&model, &schedule, &batch).loss.into_scalar::<f32>())
            };
            let central = |by: f64| (moved(by) - moved(-by)) / (2.0 * by);
            // Richardson: two widths together leave out the curvature, which a token has much of.
            let slope = (4.0 * central(by / 2.0) - central(by)) / 3.0;
            println!("{} {kind}: slope {slope:.5} along a gradient of length {length:.5}", row.name);
            assert!((slope / length - 1.0).abs() < 0.01, "{} {kind}: {slope} instead of {length}", row.name);
        }
        assert_eq!(kinds, if start.layers.iter().any(|l| matches!(l.down, Side::Trained(_))) { 3 } else { 2 });
    }
}

/// T6. The model and every frozen side are bit for bit what they were; everything else has moved.
#[test]
fn frozen_parts_stay_and_the_rest_moves() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    let rates = Rates { adapter: 1e-2, token: 1e-2, decay: 1e-2, clip: 1.0 };
    let base = outputs(&model, &Mounts::none());
    let frozen = |trainee: &Trainee| -> Vec<Vec<f32>> {
        let side = |side: &Side| match side {
            Side::Frozen(down) => Some(read(down.clone()).unwrap()),
            Side::Trained(_) => None,
        };
        trainee.layers.iter().filter_map(|layer| side(&layer.down)).collect()
    };
    for row in METHODS {
        let adapter = build(row, &SETTINGS, 1);
        let start = everywhere(&model, |id, layer| adapter.init(layer, &Philox::new(id.0 as u64)).unwrap());
        let frozen_sides = start.iter().filter(|(_, f)| !f.train_down).count();
        let mut trainee = with_token(&model, start);
        let before = trainee.clone();
        for t in 1..=3 {
            let outcome = trainee.gradients(&model, &schedule, &batch);
            trainee.update(outcome.gradients, t, rates);
        }
        assert_eq!(frozen(&trainee).len(), frozen_sides);
        assert_eq!(frozen(&trainee), frozen(&before), "{}: a frozen side moved", row.name);
        assert_eq!(outputs(&model, &Mounts::none()), base, "{}: the model moved", row.name);
        for (before, after) in before.parameters.iter().zip(&trainee.parameters) {
            let [before_values, after_values] = [before, after].map(|p| read(p.value.clone()).unwrap());
            assert_ne!(before_values, after_values, "{} did not train", after.name);
        }
    }
}

/// T5. The formula of each method; a new one states its own here.
fn parameters(method: &str, layer: &Layer, rank: usize) -> usize {
    match method {
        "lora" => rank * (layer.input() + layer.out),
        "orthogonal" => rank * layer.out,
        other => panic!("how many numbers does {other} train?"),
    }
}

/// A run of three steps through the real loop, on a picture of our own.
#[test]
fn a_trained_file_is_whole() {
    let (model, folder) = (reference::model(), tempfile::tempdir().unwrap());
    let pictures = folder.path().join("cat");
    std::fs::create_dir(&pictures).unwrap();
    let picture = image::RgbImage::from_fn(24, 24, |x, y| image::Rgb([10 * x as u8, 10 * y as u8, 90]));
    picture.save(pictures.join("a.png")).unwrap();
    let concept = concept::open(&pictures).unwrap();
    for row in METHODS {
        let [first, second] = ["a", "b"].map(|name| {
            let out = folder.path().join(format!("{}_{name}.safetensors", row.name));
            let trained = job(&model, &concept, row, &out).run(&mut |_| Ok(())).unwrap_or_else(|e| panic!("{e}"));
            (out, trained)
        });
        let (out, trained) = first;
        let [file, twin] = [&out, &second.0].map(|path| LoraFile::open(path).unwrap());
        assert_eq!(file.metadata, twin.metadata, "{}: two runs say different things", row.name);
        let same = std::fs::read(&out).unwrap() == std::fs::read(&second.0).unwrap();
        assert!(same, "{}: two runs, two files", row.name);
        assert_eq!(file, trained.file);
        assert_eq!((trained.losses.len(), &file.metadata[metadata::METHOD][..]), (3, row.name));

        let width = model.text.config.hidden_size;
        let layers: BTreeMap<String, &Layer> = model.layers.iter().map(|layer| (layer.module(), layer)).collect();
        let expected: usize = file.layers.keys().map(|module| parameters(row.name, layers[module], 3)).sum();
        assert_eq!(trained.parameters, expected + width, "{}: parameters", row.name);
        assert_eq!(file.tokens["<sks>"].iter().map(Vec::len).collect::<Vec<_>>(), [width]);
        for (module, layer) in &file.layers {
            assert_eq!((layer.rank, layer.scale()), (3, 5.0 / 3.0), "{module}");
            assert!(layer.up.iter().any(|&x| x != 0.0), "{module} did not train");
            assert_eq!(
                (&layer.down_shape, &layer.up_shape),
                (&layers[module].down_shape(3), &layers[module].up_shape(3))
            );
        }
        if let Some((basis, slot)) = build(row, &SETTINGS, 1).basis() {
            assert_eq!(file.metadata[metadata::BASIS], basis.to_string());
            assert_eq!(file.metadata[metadata::SLOT], slot.to_string());
            for (module, layer) in &file.layers {
                assert_eq!(layer.down, basis.rows(layer.input(), slot, 3).unwrap(), "{module}: the read side moved");
            }
        }
        // T7 and P9: reading and writing again changes nothing, and the model takes the file.
        let again = folder.path().join("again.safetensors");
        file.save(&again).unwrap();
        assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&out).unwrap(), "{}", row.name);
        let mut mounts = Mounts::none();
        mount(&mut mounts, &model, &file, &Strength::default()).unwrap();
        let (with, without) = (outputs(&model, &mounts), outputs(&model, &Mounts::none()));
        assert!(apart(&with[1], &without[1]) > 1e-6, "{}: the file changes nothing", row.name);
    }
}

fn job<'a>(model: &'a StableDiffusion, concept: &'a Concept, method: &'static Method, out: &Path) -> Job<'a> {
    let changes = [("steps", "3"), ("batch", "1")].into_iter().chain(SETTINGS);
    let changes: Vec<_> = changes.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let (method_settings, settings) = session::settings(method, &changes).unwrap();
    Job {
        model,
        concept,
        trigger: Trigger::new("<sks>", "cat").unwrap(),
        template: "a photo of {token} {class}".into(),
        method,
        method_settings,
        settings,
        context: Context { seed: 7, slot: 1, block: BLOCK },
        out: out.into(),
        resume: false,
        stamp: false,
        cache: None,
    }
}

// ---- files and faders

/// `x · ΔWᵀ` as mounted on one layer, for three random inputs; and the same from factors at a strength, in f64.
fn heard(mounts: &Mounts, id: LayerId, layer: &Layer) -> Vec<f32> {
    let (x, width) = (Philox::new(9).normal(0, 3 * layer.input()), layer.input());
    read(mounts.linear(id, &tensor(&x, [3, width]), Tensor::zeros([3, layer.out], &device::cpu()))).unwrap()
}

fn expected(factors: &Factors, layer: &Layer, strength: f64) -> Vec<f32> {
    let (x, delta) = (Philox::new(9).normal(0, 3 * layer.input()), dense(factors, layer.input()));
    let product = |x: &[f32], row: &[f64]| x.iter().zip(row).map(|(&a, &b)| f64::from(a) * b).sum::<f64>();
    x.chunks_exact(layer.input())
        .flat_map(|x| delta.chunks_exact(layer.input()).map(move |row| (strength * product(x, row)) as f32))
        .collect()
}

fn stored(file: &LoraFile, dtype: Dtype) -> LoraFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    LoraFile { dtype: Some(dtype), ..file.clone() }.save(&path).unwrap();
    LoraFile::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// T7, exactly in f32.
#[test]
fn what_was_saved_is_mounted() {
    let model = reference::model();
    for (i, row) in METHODS.iter().enumerate() {
        let factors = trained_everywhere(&model, row, i as u64);
        let live = trainee(&model, factors.clone());
        let live = live.mounts(&live.values());
        let mut mounts = Mounts::none();
        mount(&mut mounts, &model, &stored(&lora_file(&model, &factors), Dtype::F32), &Strength::default()).unwrap();
        for (id, layer) in model.layer_ids() {
            assert_eq!(heard(&mounts, id, layer), heard(&live, id, layer), "{} {}", row.name, layer.path);
        }
    }
}

/// T4. A tool that knows nothing but `alpha / rank · up · down` reads the delta that was trained.
#[test]
fn plain_files_carry_the_scale() {
    let layer = Layer { part: Part::Unet, path: "mid_block.attentions.0.proj_in".into(), ..cases()[2].layer.clone() };
    // rank, alpha, rank-stabilised → alpha over rank as it acts
    let table: [(&str, &str, &str, f64); 7] = [
        ("3", "3", "false", 1.0),
        ("3", "5", "false", 5.0 / 3.0),
        ("3", "0", "false", 1.0),
        ("1", "0.25", "false", 0.25),
        ("3", "5", "true", 5.0 / 3.0_f64.sqrt()),
        ("3", "0", "true", 3.0_f64.sqrt()),
        // Stored as 131072: more than f16 holds.
        ("1024", "4096", "true", 128.0),
    ];
    for row in METHODS {
        for (rank, alpha, stabilised, scale) in table {
            let changes = [("rank", rank), ("alpha", alpha), ("rank_stabilised", stabilised)];
            let known = |name: &str| row.fields.iter().any(|field| field.name == name);
            // A shared basis holds no rank above its block; a method without the flag is not rank-stabilised.
            if (stabilised == "true" && !known("rank_stabilised")) || (row.takes_slot && rank == "1024") {
                continue;
            }
            let changes: Vec<_> = changes.into_iter().filter(|(name, _)| known(name)).collect();
            let factors = trained(build(row, &changes, 0).as_ref(), &layer, 5);
            let context = format!("{} {changes:?}", row.name);
            assert!((f64::from(factors.scale()) / scale - 1.0).abs() < 1e-6, "{context}: {}", factors.scale());
            let file = LoraFile {
                layers: BTreeMap::from([(
                    layer.module(),
                    LoraLayer {
                        down: factors.down.clone(),
                        up: factors.up.clone(),
                        rank: factors.rank,
                        alpha: factors.alpha,
                        down_shape: layer.down_shape(factors.rank),
                        up_shape: layer.up_shape(factors.rank),
                    },
                )]),
                ..LoraFile::default()
            };
            for (dtype, tolerance) in [(Dtype::F32, 1e-6), (Dtype::F16, 2e-3), (Dtype::BF16, 1.5e-2)] {
                let read = &stored(&file, dtype).layers[&layer.module()];
                let back = Factors {
                    down: read.down.clone(),
                    up: read.up.clone(),
                    rank: read.rank,
                    alpha: read.alpha,
                    train_down: true,
                };
                assert!(f64::from(read.scale() / factors.scale() - 1.0).abs() < 1e-6, "{context} {dtype:?}: the scale");
                let [found, whole] = [&back, &factors].map(|f| dense(f, layer.input()));
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let difference: Vec<f64> = found.iter().zip(&whole).map(|(a, b)| a - b).collect();
                let error = norm(&difference) / norm(&whole);
                assert!(error < tolerance, "{context} {dtype:?}: ΔW differs by {error:e}");
            }
        }
    }
}

type Multiplier = fn(&Layer) -> f64;

/// Each row: the faders, and by how much a layer of each part is then multiplied.
#[test]
fn strengths_scale_linearly() {
    let model = reference::model();
    let mid = |by: f32| BTreeMap::from([("mid_block".to_owned(), by)]);
    let up_and_text = BTreeMap::from([("up_blocks.1".to_owned(), -1.5), ("text".to_owned(), 2.0)]);
    let table: [(Strength, Multiplier); 5] = [
        (Strength::default(), |_| 1.0),
        (Strength::uniform(-0.5), |_| -0.5),
        (Strength { unet: 0.0, text: 0.75, ..Strength::default() }, |l| if l.part == Part::Text { 0.75 } else { 0.0 }),
        (Strength { unet: 0.5, blocks: mid(0.25), ..Strength::default() }, |l| match l.part {
            Part::Text => 1.0,
            _ if l.path.starts_with("mid_block.") => 0.125,
            _ => 0.5,
        }),
        (Strength { blocks: up_and_text, ..Strength::default() }, |l| match l.part {
            Part::Text => 2.0,
            _ if l.path.starts_with("up_blocks.1.") => -1.5,
            _ => 1.0,
        }),
    ];
    for (i, row) in METHODS.iter().enumerate() {
        let factors = trained_everywhere(&model, row, i as u64);
        let file = lora_file(&model, &factors);
        for (strength, times) in &table {
            let mut mounts = Mounts::none();
            mount(&mut mounts, &model, &file, strength).unwrap();
            for (id, f) in &factors {
                let layer = model.layer(*id);
                let full = expected(f, layer, 1.0);
                let (found, expected) = (heard(&mounts, *id, layer), expected(f, layer, times(layer)));
                let error =
                    found.iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest(&full);
                assert!(error < 1e-5, "{} at {strength:?}, {}: {error}", row.name, layer.path);
            }
        }
    }
}

/// Two adapters of each method at once, each at its own strength.
#[test]
fn several_adapters_are_their_sum() {
    let model = reference::model();
    let each: Vec<_> = METHODS
        .iter()
        .enumerate()
        .flat_map(|(i, row)| [(row, 2 * i as u64, 0.7_f32), (row, 2 * i as u64 + 1, -1.3)])
        .map(|(row, seed, strength)| (trained_everywhere(&model, row, seed + 10), strength))
        .collect();
    let mut mounts = Mounts::none();
    for (factors, strength) in &each {
        mount(&mut mounts, &model, &lora_file(&model, factors), &Strength::uniform(*strength)).unwrap();
    }
    for (id, layer) in model.layer_ids() {
        let terms = each.iter().map(|(factors, w)| expected(&factors[id.0].1, layer, f64::from(*w)));
        let sum = terms.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect()).unwrap();
        let error = apart(&heard(&mounts, id, layer), &sum);
        assert!(error < 1e-5, "{}: {error}", layer.path);
    }
}

// ---- Orthogonal Adaptation

/// The read side of a slot.
fn reads(changes: &[(&str, &str)], context: &Context, width: usize) -> triptych::engine::Result<Vec<f32>> {
    let method = adapter::method("orthogonal").unwrap();
    let settings = Settings::new(method.fields, changes.iter().copied()).unwrap();
    (method.build)(&settings, context)?.init(&linear(width), &Philox::new(context.seed)).map(|factors| factors.down)
}

fn slot(slot: usize, block: usize) -> Context {
    Context { seed: 7, slot, block }
}

/// Largest entry of `a · bᵀ`, less the identity where asked.
fn cross(a: &[f32], b: &[f32], width: usize, minus_identity: bool) -> f64 {
    let mut worst = 0.0_f64;
    for (i, a) in a.chunks_exact(width).enumerate() {
        for (j, b) in b.chunks_exact(width).enumerate() {
            let product: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            worst = worst.max((product - f64::from(u8::from(minus_identity && i == j))).abs());
        }
    }
    worst
}

#[test]
fn slots_do_not_meet_at_any_width_of_a_model() {
    let starter = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
    for model in [&reference::model(), &starter] {
        let block = session::default_block(model);
        let widths: BTreeSet<usize> = model.layers.iter().map(Layer::input).collect();
        let mut worst = 0.0_f64;
        for &width in &widths {
            // A late slot of a wide layer takes seconds, and differs from an early one by nothing but time.
            let last = (width / block - 1).min(5);
            let rank = (block - 3).to_string();
            let at = |t: usize| reads(&[], &slot(t, block), width).unwrap();
            let narrow = reads(&[("rank", &rank)], &slot(1, block), width).unwrap();
            let [a, b, c] = [0, 1, last].map(at);
            worst = worst.max(cross(&a, &b, width, false)).max(cross(&a, &narrow, width, false));
            if last > 1 {
                worst = worst.max(cross(&a, &c, width, false)).max(cross(&b, &c, width, false));
            }
            for rows in [&a, &b, &c] {
                assert_eq!(rows.len(), block * width);
                assert!(cross(rows, rows, width, true) < 1e-6, "{} at width {width}: not orthonormal", model.name);
            }
        }
        println!("{}: {worst:.1e} over {} widths, {widths:?}", model.name, widths.len());
        assert!(worst < 1e-6, "{}: {worst:e}", model.name);
    }
}

/// How loudly two adapters with random write sides hear each other: 0 in disjoint slots, about 1/√width with Gaussian
/// rows, about 1/√rank in one slot.
#[test]
fn only_slots_are_exactly_apart() {
    const WIDTH: usize = 320;
    const RANK: usize = 16;
    let delta = |kind: &str, t: usize, seed: u64| {
        let down = reads(&[("basis", kind)], &slot(t, RANK), WIDTH).unwrap();
        let up = Philox::new(seed).normal(0, 64 * RANK);
        LowRank::new(&up, &down, Shape { out: 64, rank: RANK, input: WIDTH }, 1.0).unwrap()
    };
    let crosstalk = |a: &LowRank, b: &LowRank| a.product_norm(b).unwrap() / (a.energy() * b.energy()).sqrt();
    let pairs = |kind: &str| -> Vec<f64> {
        let deltas: Vec<_> = (0..6).map(|t| delta(kind, t, t as u64)).collect();
        (0..6).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| crosstalk(&deltas[i], &deltas[j])).collect()
    };
    let [slots, random, gaussian] = ["slots", "random", "gaussian"].map(pairs);
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let most = |x: &[f64]| x.iter().copied().fold(0.0, f64::max);
    let same = crosstalk(&delta("slots", 0, 1), &delta("slots", 0, 2));
    println!(
        "slots {:.1e}, random {:.3}, gaussian {:.3} on average, one slot {same:.3}",
        most(&slots),
        mean(&random),
        mean(&gaussian)
    );
    assert!(most(&slots) < 1e-6);
    // 16 of 320 columns: two draws meet in 0.8 on average, and 15 pairs do not all stay apart.
    assert!(most(&random) > 0.02 && most(&random) < 0.2, "{random:?}");
    assert!(mean(&gaussian) > 0.04 && mean(&gaussian) < 0.075, "{gaussian:?}");
    assert!(same > 0.2 && same < 0.3, "{same}");
}

#[test]
fn impossible_slots_are_sentences() {
    let says = |changes: &[(&str, &str)], context: &Context| reads(changes, context, 36).unwrap_err();
    // 36 inputs hold four slots of eight columns.
    reads(&[], &slot(3, 8), 36).unwrap();
    let error = says(&[], &slot(4, 8));
    assert!(error.what.contains("36 inputs") && error.what.contains("4 concepts"), "{error}");
    assert!(error.advice.contains("lower slot"), "{error}");
    let error = says(&[("rank", "9")], &slot(0, 8));
    assert!(error.what.contains("Rank 9") && error.what.contains('8') && error.advice.contains("up to 8"), "{error}");
    // Chance needs no agreement: every slot number is a draw.
    for kind in ["random", "gaussian"] {
        reads(&[("basis", kind), ("rank", "9")], &slot(1000, 8), 36).unwrap();
        assert!(says(&[("basis", kind), ("rank", "37")], &slot(0, 8)).what.contains("36 inputs"), "{kind}");
    }
}

/// Two artists who share nothing but the identity text compute the same rows; every part of the identity counts.
#[test]
fn rows_come_from_the_identity_alone() {
    for kind in ["slots", "random", "gaussian"] {
        let of = |seed: &str, t: usize, run_seed: u64| {
            let context = Context { seed: run_seed, ..slot(t, 8) };
            reads(&[("basis", kind), ("basis_seed", seed)], &context, 64).unwrap()
        };
        let rows = of("5", 1, 7);
        assert_eq!(rows, of("5", 1, 8), "{kind}: the run's seed is no part of the basis");
        let identity: Basis = format!("{kind} v1 seed 5 block 8").parse().unwrap();
        assert_eq!(rows, identity.rows(64, 1, 8).unwrap(), "{kind}");
        assert_ne!(rows, of("6", 1, 7), "{kind}: another basis");
        assert_ne!(rows, of("5", 2, 7), "{kind}: another slot");
    }
}
