//! Fisher merging, and how pictures say which weights matter.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use triptych::engine::adapter::mount::{Strength, mount};
use triptych::engine::concept::latents::latents;
use triptych::engine::concept::{self, Concept, Trigger, View};
use triptych::engine::device::read;
use triptych::engine::diffusion::{Schedule, loss};
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::metadata;
use triptych::engine::merge::{self, Evidence, Inputs, Question, Source};
use triptych::engine::model::tokenizer::Word;
use triptych::engine::model::{Branch, Change, LayerId, Mounts, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::train::evidence;

use crate::builders::*;
use crate::command::Desk;
use crate::live::on_every_layer;
use crate::reference;

type Importance = BTreeMap<String, Vec<f32>>;

/// Merges as if pictures had said this of each source.
fn told_by(sources: &[Source], importance: &[Importance]) -> triptych::engine::Result<Dense> {
    let ask = |question: Question, _: &mut triptych::engine::event::Watch<'_>| Ok(importance[question.source].clone());
    let evidence = Evidence { record: serde_json::Value::Null, importance: &ask };
    let (method, changes) = &variants_of(merge::method("fisher").unwrap())[0];
    let settings = triptych::engine::field::Settings::new(method.fields, changes.iter().copied()).unwrap();
    let inputs = Inputs { sources, evidence: Some(&evidence) };
    merge::merge(&inputs, method, &settings, &mut |_| Ok(())).map(|(file, _)| dense(&file))
}

/// `f(i)` for the i-th number of every layer.
fn importance(file: &LoraFile, f: impl Fn(usize) -> f32) -> Importance {
    let of = |delta: Vec<f64>| (0..delta.len()).map(&f).collect();
    dense(file).into_iter().map(|(module, delta)| (module, of(delta))).collect()
}

#[test]
fn each_weight_follows_whom_it_matters_to() {
    let (a, b) = (plain(1), plain(2));
    let sources = [at(&a, 1.0), at(&b, 0.5)];
    let same = importance(&a, |i| 1.0 + i as f32);
    let average = weighted([(&a, 0.5), (&b, 0.25)]);
    assert_near("equal", &told_by(&sources, &[same.clone(), same.clone()]).unwrap(), &average, 1e-6);
    // How large a measure is in all must not matter.
    let larger = importance(&a, |i| 1000.0 * (1.0 + i as f32));
    assert_near("scaled", &told_by(&sources, &[same.clone(), larger]).unwrap(), &average, 1e-5);

    let alternating = |odd: usize| importance(&a, move |i| if i % 2 == odd { 1.0 } else { 0.0 });
    let found = told_by(&sources, &[alternating(0), alternating(1)]).unwrap();
    let (of_a, of_b) = (dense(&a), scaled(&dense(&b), 0.5));
    let expected = of_a.iter().map(|(module, delta)| {
        let other = &of_b[module];
        (module.clone(), (0..delta.len()).map(|i| if i % 2 == 0 { delta[i] } else { other[i] }).collect())
    });
    assert_near("by turns", &found, &expected.collect(), 1e-5);

    // F = 1 and 4 over an rms of 1 each: nothing but the pattern counts, 1·a + 4·b over 5 and the other way round.
    let pattern = |first: f32| importance(&a, move |i| if i % 2 == 0 { first } else { 5.0 - first });
    let found = told_by(&sources, &[pattern(1.0), pattern(4.0)]).unwrap();
    let expected = of_a.iter().map(|(module, delta)| {
        let share = |i: usize| [0.2, 0.8][i % 2];
        let mixed = |i: usize| share(i) * delta[i] + (1.0 - share(i)) * of_b[module][i];
        (module.clone(), (0..delta.len()).map(mixed).collect())
    });
    // The pattern's halves differ by an entry in layers of odd size.
    assert_near("one to four", &found, &expected.collect(), 1e-2);
}

#[test]
fn pictures_that_say_nothing_are_refused() {
    let a = plain(1);
    for empty in [importance(&a, |_| 0.0), importance(&a, |_| f32::NAN), Importance::new()] {
        let error = told_by(&[at(&a, 1.0)], &[empty]).unwrap_err();
        assert!(error.what.contains("do not say which weights matter"), "{error}");
    }
    let mut partly = importance(&a, |_| 1.0);
    partly.remove(LAYERS[1].0);
    let error = told_by(&[at(&a, 1.0)], &[partly]).unwrap_err();
    assert!(error.what.contains(LAYERS[1].0), "{error}");
}

/// One picture under one noise, as the measure sees it.
struct Example<'a> {
    model: &'a StableDiffusion,
    adapter: LoraFile,
    concept: Concept,
}

const TEMPLATE: &str = "a picture of {token} {class}";
const SEED: u64 = 5;

impl Example<'_> {
    fn importance(&self, draws: usize) -> Importance {
        let Self { model, adapter, concept } = self;
        let evidence = evidence::Evidence { model, adapter, concept, template: TEMPLATE, cache: None };
        evidence.importance(draws, SEED, &mut |_| Ok(())).unwrap()
    }

    /// The loss under one noise with `by` added to one weight.
    fn loss(&self, noise: u32, id: LayerId, [row, column]: [usize; 2], by: f32) -> f64 {
        let Self { model, adapter, concept } = self;
        let mut mounts = Mounts::none();
        mount(&mut mounts, model, adapter, &Strength::default()).unwrap();
        let layer = model.layer(id);
        let unit = |n: usize, at: usize, value: f32| (0..n).map(|i| if i == at { value } else { 0.0 }).collect();
        let tensor =
            |values: Vec<f32>, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values, shape), &model.device);
        let (down, up) = (unit(layer.input(), column, by), unit(layer.out, row, 1.0));
        let (down, up) = (tensor(down, [1, layer.input()]), tensor(up, [layer.out, 1]));
        mounts.add(id, Change::LowRank(Branch { down, up, scale: 1.0 }));

        let view = View::whole(model.native_size());
        let picture = latents(model, &[(&concept.images[0].path, view)], None, &mut || Ok(())).unwrap();
        let random = Philox::new(SEED);
        let schedule = Schedule::new(&model.schedule).unwrap();
        let t = [random.stream(10).below(noise, 0, schedule.len())];
        let noise = random.stream(9).normal(noise, picture.shape().num_elements());
        let noise = Tensor::from_data(TensorData::new(noise, picture.dims()), &model.device);
        let vectors = &adapter.tokens["<sks>"];
        let words = [Word { text: "<sks>".into(), vectors: vectors.len() }];
        let trigger = Trigger::new("<sks>", "robot").unwrap();
        let caption = concept::caption(concept.images[0].caption.as_deref(), TEMPLATE, &trigger);
        let prompt = model.tokenizer.encode(&caption, &words).unwrap();
        let token = tensor(vectors.concat(), [vectors.len(), model.text.config.hidden_size]);
        let context = model.condition(&[prompt], &[token], &mounts);
        let noisy = loss::noised(&picture, &noise, &t, &schedule);
        let said = model.unet.forward(noisy, &[t[0] as f32], &context.into(), &mounts);
        let loss = loss::per_image(said, loss::target(&picture, &noise, &t, &schedule));
        f64::from(read(loss).unwrap()[0])
    }
}

fn example(model: &StableDiffusion) -> Example<'_> {
    let mut adapter = on_every_layer(model, 2, 2.0, 1);
    let width = model.text.config.hidden_size;
    adapter.tokens.insert("<sks>".into(), vec![Philox::new(3).normal(0, width)]);
    adapter.metadata.insert(metadata::TOKEN.into(), "<sks>".into());
    adapter.metadata.insert(metadata::CLASS.into(), "robot".into());
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/concepts/kenney_robot");
    let mut concept = concept::open(&folder).unwrap();
    concept.images.truncate(1);
    Example { model, adapter, concept }
}

/// `√F` of one example is the size of the derivative, in every kind of layer.
#[test]
fn importance_is_the_squared_derivative() {
    let model = reference::model();
    let example = example(&model);
    let importance = example.importance(1);
    assert_eq!(importance.len(), model.layers.len(), "every layer the adapter changes");
    let wanted = ["fc1", "fc2", "attn2_to_k", "attn1_to_q", "conv1", "proj_in", "ff_net_0_proj"];
    for part in wanted {
        let (id, layer) = model.layer_ids().find(|(_, layer)| layer.module().ends_with(part)).expect(part);
        let f = &importance[&layer.module()];
        let largest = (0..f.len()).max_by(|&a, &b| f[a].total_cmp(&f[b])).unwrap();
        let entry = [largest / layer.input(), largest % layer.input()];
        let h = 0.02;
        let slope = (example.loss(0, id, entry, h) - example.loss(0, id, entry, -h)) / (2.0 * f64::from(h));
        let found = f64::from(f[largest]).sqrt();
        println!("{part}: {found:.3e}, by differences {:.3e}", slope.abs());
        assert!((found / slope.abs() - 1.0).abs() < 0.02, "{part}: {found} instead of {}", slope.abs());
    }
}

/// More noises give the mean of the squares, and the same seed the same numbers.
#[test]
fn importance_is_a_mean_over_examples() {
    let model = reference::model();
    let mut example = example(&model);
    let (one, two) = (example.importance(1), example.importance(2));
    assert_eq!(one, example.importance(1));
    let (id, layer) = model.layer_ids().find(|(_, layer)| layer.module().ends_with("conv1")).unwrap();
    let f = &two[&layer.module()];
    let largest = (0..f.len()).max_by(|&a, &b| f[a].total_cmp(&f[b])).unwrap();
    let entry = [largest / layer.input(), largest % layer.input()];
    let square = |noise| {
        let slope = example.loss(noise, id, entry, 0.02) - example.loss(noise, id, entry, -0.02);
        (slope / 0.04).powi(2)
    };
    let mean = f64::midpoint(square(0), square(1));
    assert!((f64::from(f[largest]) / mean - 1.0).abs() < 0.04, "{} instead of {mean}", f[largest]);
    // Another word is another question.
    example.adapter.tokens.get_mut("<sks>").unwrap()[0][0] += 1.0;
    assert_ne!(example.importance(1), one);
}

#[test]
fn the_command_asks_for_pictures_and_writes_down_which() {
    let desk = Desk::new();
    for (name, word, seed) in [("a", "<a>", 1), ("b", "<b>", 2)] {
        desk.run(&format!("{} --token {word} --seed {seed} --steps 2 --out {name}.safetensors", crate::command::TRAIN))
            .result();
    }
    let merge = "merge a.safetensors b.safetensors --method fisher --set draws=1 --out both.safetensors";
    let failure = desk.say(merge);
    assert!(failure.code == Some(2) && failure.stderr.contains("--evidence 1=FOLDER"), "{failure:?}");
    let failure = desk.say(&format!("{merge} --evidence 1=robot"));
    assert!(failure.code == Some(2) && failure.stderr.contains("--evidence 2=FOLDER"), "{failure:?}");
    let failure = desk.say(&format!("{merge} --evidence 3=robot"));
    assert!(failure.code == Some(2) && failure.stderr.contains("no adapter “3”"), "{failure:?}");
    let failure = desk.say("merge a.safetensors --evidence 1=robot --out both.safetensors");
    assert!(failure.code == Some(2) && failure.stderr.contains("does not look at pictures"), "{failure:?}");
    let failure = desk.say(&format!("{merge} --evidence 1=robot --evidence 2=nowhere"));
    assert!(failure.code == Some(1) && failure.stderr.contains("no such concept folder"), "{failure:?}");
    assert!(!desk.files().contains("both.safetensors"));

    let line = format!("{merge} --evidence 1=robot --evidence 2=robot");
    let result = desk.run(&line).result();
    let dropped = result["notes"].as_array().unwrap().iter().filter(|note| note["name"] == "dropped");
    assert_eq!(dropped.count(), result["layers"].as_u64().unwrap() as usize + 1);
    let both = desk.lora("both.safetensors");
    let recipe: serde_json::Value = serde_json::from_str(&both.metadata[metadata::RECIPE]).unwrap();
    assert_eq!((&recipe["settings"]["draws"], &recipe["settings"]["seed"]), (&"1".into(), &"0".into()));
    assert_eq!(recipe["evidence"]["model"].as_str().unwrap().len(), 64);
    for source in recipe["evidence"]["sources"].as_array().unwrap() {
        assert_eq!((&source["pictures"], source["sha256"].as_str().unwrap().len()), (&3.into(), 64));
    }
    let bytes = desk.read("both.safetensors");
    let words = desk.say(&line);
    assert!(words.code == Some(0) && words.stdout.contains("Energy dropped"), "{words:?}");
    assert_eq!(desk.read("both.safetensors"), bytes, "the same again");
}
