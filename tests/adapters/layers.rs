//! A token that has vectors of its own in every layer that reads the prompt.

use std::path::Path;

use burn::tensor::Tensor;
use triptych::engine::device::read;
use triptych::engine::diffusion::Schedule;
use triptych::engine::diffusion::loss::{self, Measure};
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::model::tokenizer::{Encoded, Word};
use triptych::engine::model::{Change, Context, Mounts, StableDiffusion};
use triptych::engine::preview::{self, Mounted, Request, Token};
use triptych::engine::random::Philox;
use triptych::engine::train::step::{Batch, Prior, Text, Trainee};

use crate::whole::{latents, through_disk, trained_at_depth_0, with_token};
use crate::{apart, build, reference, row, tensor};

fn word() -> Word {
    Word { text: "<sks>".into(), vectors: 1 }
}

fn encoded(model: &StableDiffusion, texts: &[&str]) -> Vec<Encoded> {
    texts.iter().map(|text| model.tokenizer.encode(text, &[word()]).unwrap()).collect()
}

/// A LoRA on every layer, the text encoder's among them, and a token of one vector.
fn plain(model: &StableDiffusion) -> Trainee {
    with_token(model, trained_at_depth_0(model, &build(row("lora"), &[]), 3))
}

/// The same with that vector in each layer.
fn layered(model: &StableDiffusion) -> Trainee {
    let mut trainee = plain(model);
    trainee.token_layers = model.unet.cross_attentions;
    let value = &mut trainee.parameters[trainee.tokens[0]].value;
    *value = value.clone().repeat_dim(0, trainee.token_layers);
    trainee
}

/// The same with a vector that differs from layer to layer.
fn apart_layered(model: &StableDiffusion) -> Trainee {
    let mut trainee = layered(model);
    let value = &mut trainee.parameters[trainee.tokens[0]].value;
    let shape = value.dims();
    *value = value.clone() + tensor(&Philox::new(21).normal(0, shape[0] * shape[1]), shape) * 0.02;
    trainee
}

/// `[layers, 1, width]` of small random numbers.
fn random_word(model: &StableDiffusion, layers: usize) -> Tensor<3> {
    let width = model.text.config.hidden_size;
    tensor(&Philox::new(22).normal(0, layers * width), [layers, 1, width]) * 0.02
}

/// One picture with the word and one without, and under prior preservation the same with another word.
fn batch(model: &StableDiffusion, stranger: Tensor<3>) -> Batch {
    let twice = |seed| Tensor::cat(vec![latents(model, seed), latents(model, seed + 10)], 0);
    let prompts = encoded(model, &["a <sks> cat", "a cat"]);
    let strange = prompts.clone();
    Batch {
        latents: twice(6),
        noise: twice(7),
        timesteps: vec![321, 700],
        text: Text::Prompts(prompts, vec![0, 1]),
        framings: Vec::new(),
        weights: vec![1.0; 2],
        mask: None,
        measure: Measure::Square,
        prior: Some(Prior {
            context: model.context(&strange, std::slice::from_ref(&stranger), 1, &Mounts::none()),
            prompts: Some((strange, vec![stranger])),
            weight: 2.0,
        }),
    }
}

/// The loss that gradients are of, and the gradients.
fn total(model: &StableDiffusion, trainee: &Trainee, batch: &Batch) -> (f64, Vec<Tensor<2>>) {
    let schedule = Schedule::new(&model.schedule).unwrap();
    let outcome = trainee.gradients(model, &schedule, batch);
    let number = |x: Tensor<1>| f64::from(x.into_scalar::<f32>());
    let prior = batch.prior.as_ref().map_or(0.0, |prior| prior.weight);
    let loss = number(outcome.loss) + prior * outcome.prior.map_or(0.0, number);
    (loss, outcome.gradients.into_iter().map(|gradient| gradient.expect("a gradient")).collect())
}

/// Where every layer has the same vector, it is the model with that one vector: the loss, the gradient of every other
/// tensor, and of the vector the sum over its layers.
#[test]
fn layers_of_one_vector_learn_as_that_vector() {
    let model = reference::model();
    let stranger = random_word(&model, 1);
    let one = batch(&model, stranger.clone());
    let (plain, layered) = (plain(&model), layered(&model));
    let each = batch(&model, stranger.repeat_dim(0, layered.token_layers));
    let ((loss, gradients), (of_each, layer_gradients)) = (total(&model, &plain, &one), total(&model, &layered, &each));
    assert!((of_each / loss - 1.0).abs() < 1e-6, "{of_each} instead of {loss}");
    let token = plain.tokens[0];
    for (k, (gradient, of_layers)) in gradients.into_iter().zip(layer_gradients).enumerate() {
        let sum = if k == token { of_layers.sum_dim(0) } else { of_layers };
        let error = apart(&read(sum).unwrap(), &read(gradient).unwrap());
        assert!(error < 1e-4, "{}: {error}", plain.parameters[k].name);
    }
}

/// Along its own gradient, each layer's vector must change the loss by that gradient's length.
#[test]
fn gradients_of_each_layers_vector_are_finite_differences() {
    let model = reference::model();
    let start = apart_layered(&model);
    let batch = batch(&model, random_word(&model, start.token_layers));
    let gradients = total(&model, &start, &batch).1;
    let schedule = Schedule::new(&model.schedule).unwrap();
    let noisy = loss::noised(&batch.latents, &batch.noise, &batch.timesteps, &schedule);
    let target = loss::target(&batch.latents, &batch.noise, &batch.timesteps, &schedule);
    let times: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
    // What the prior adds does not depend on the token.
    let of_concept = |trainee: &Trainee| {
        let mounts = trainee.at_rest();
        let context = trainee.context(&model, &batch.text, &trainee.values(), &mounts);
        let said = model.unet.forward(noisy.clone(), &times, &context, &mounts);
        f64::from(loss::per_image(said, target.clone()).mean().into_scalar::<f32>())
    };
    let (loss, token) = (of_concept(&start), start.tokens[0]);
    let [layers, width] = gradients[token].dims();
    assert_eq!(layers, model.unet.cross_attentions);
    for layer in 0..layers {
        let gradient = gradients[token].clone().narrow(0, layer, 1);
        let length = read(gradient.clone()).unwrap().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let moved = |by: f64| {
            let mut trainee = start.clone();
            let rows = (0..layers).map(|row| match row == layer {
                true => gradient.clone() * (by / length),
                false => gradient.zeros_like(),
            });
            let value = &mut trainee.parameters[token].value;
            *value = value.clone() + Tensor::cat(rows.collect(), 0);
            of_concept(&trainee)
        };
        let size = 0.02 * (width as f64).sqrt();
        let by = (0.001 * loss / length).min(0.1 * size);
        let central = |by: f64| (moved(by) - moved(-by)) / (2.0 * by);
        let slope = (4.0 * central(by / 2.0) - central(by)) / 3.0;
        println!("layer {layer}: slope {slope:.6} along a gradient of length {length:.6}");
        assert!((slope / length - 1.0).abs() < 0.02, "layer {layer}: {slope} instead of {length}");
    }
}

#[test]
fn gradients_of_layers_are_the_same_when_stretches_run_again() {
    let model = reference::model();
    let mut trainee = apart_layered(&model);
    let batch = batch(&model, random_word(&model, trainee.token_layers));
    let (loss, whole) = total(&model, &trainee, &batch);
    trainee.recompute = true;
    let (again, pieces) = total(&model, &trainee, &batch);
    assert!((again / loss - 1.0).abs() < 1e-5, "{again} instead of {loss}");
    for ((whole, pieces), parameter) in whole.into_iter().zip(pieces).zip(&trainee.parameters) {
        let error = apart(&read(pieces).unwrap(), &read(whole).unwrap());
        assert!(error < 1e-4, "{}: {error}", parameter.name);
    }
}

/// A layer's vector is read by that layer alone, a prompt without the word is the same in all, and words of one vector
/// stand beside those of many.
#[test]
fn a_layer_reads_its_own_slice() {
    let model = reference::model();
    let layers = model.unet.cross_attentions;
    assert!(layers > 1, "the reference has several layers");
    let words = [word(), Word { text: "<b>".into(), vectors: 2 }];
    let texts = ["a <b> cat", "a <sks> cat", "a <b> and <sks>"];
    let prompts: Vec<_> = texts.iter().map(|text| model.tokenizer.encode(text, &words).unwrap()).collect();
    let (each, two) = (random_word(&model, layers), random_word(&model, 2).reshape([1, 2, -1]));
    let context = |each: &Tensor<3>| model.context(&prompts, &[each.clone(), two.clone()], 1, &Mounts::none());
    let found = context(&each);
    assert_eq!(found.slices().len(), layers);
    for layer in 0..layers {
        let alone = each.clone().narrow(0, layer, 1);
        let expected = model.context(&prompts, &[alone, two.clone()], 1, &Mounts::none());
        assert_eq!(expected.slices().len(), 1, "one vector, one context");
        let error = apart(&read(found.at(layer).clone()).unwrap(), &read(expected.at(layer).clone()).unwrap());
        assert!(error < 1e-6, "layer {layer}: {error}");
    }
    let rows = |context: &Context, layer: usize, row: usize| read(context.at(layer).clone().narrow(0, row, 1)).unwrap();
    let other =
        Tensor::cat(vec![each.clone().narrow(0, 0, layers - 1), each.clone().narrow(0, layers - 1, 1) * 3.0], 0);
    let other = context(&other);
    for layer in 0..layers {
        assert_eq!(rows(&found, layer, 0), rows(&found, 0, 0), "a prompt without the word");
        let moved = rows(&found, layer, 1) != rows(&other, layer, 1);
        assert_eq!(moved, layer == layers - 1, "layer {layer}");
    }
}

/// Slices are numbered in the order down, middle, up: a layer that is made deaf no longer hears its own, and only that.
#[test]
fn slices_belong_to_the_layers_in_their_order() {
    let model = reference::model();
    let listening: Vec<_> = model.layer_ids().filter(|(_, layer)| layer.path.ends_with(".attn2.to_v")).collect();
    let blocks: Vec<&str> = listening.iter().map(|(_, layer)| layer.path.split('_').next().unwrap()).collect();
    assert_eq!(listening.len(), model.unet.cross_attentions);
    assert!(blocks.is_sorted() && blocks.contains(&"mid"), "down, mid and up are so in the alphabet too: {blocks:?}");
    let prompts = encoded(&model, &["a <sks> cat"]);
    let each = random_word(&model, listening.len());
    let of = |each: &Tensor<3>, mounts: &Mounts| {
        let context = model.context(&prompts, std::slice::from_ref(each), 1, &Mounts::none());
        read(model.unet.forward(latents(&model, 5), &[321.0], &context, mounts)).unwrap()
    };
    for (number, (id, layer)) in listening.iter().enumerate() {
        let mut deaf = Mounts::none();
        deaf.add(*id, Change::Weight(-model.weight(*id).oi.clone()));
        for other in 0..listening.len() {
            let moved =
                (0..listening.len()).map(|at| each.clone().narrow(0, at, 1) * if at == other { 3.0 } else { 1.0 });
            let moved = Tensor::cat(moved.collect(), 0);
            assert_eq!(
                of(&each, &deaf) == of(&moved, &deaf),
                other == number,
                "slice {other} with {} deaf",
                layer.path
            );
        }
    }
}

/// What is saved is read, and a picture of equal vectors is the picture of one; a file for another model is refused.
#[test]
fn pictures_of_equal_vectors_are_those_of_one_also_through_a_file() {
    let model = reference::model();
    let layers = model.unet.cross_attentions;
    let vector = read(random_word(&model, 1)).unwrap();
    let mut file = LoraFile::default();
    file.tokens.insert("<sks>".into(), vec![vector.clone()]);
    let plain = file.clone();
    file.add_layers("<sks>", vec![vec![vector.clone()]; layers]);
    assert_eq!(file.tokens, plain.tokens, "others load the one vector");
    let mut several = file.clone();
    several.add_layers(
        "<sks>",
        read(random_word(&model, layers)).unwrap().chunks(vector.len()).map(|v| vec![v.to_vec()]).collect(),
    );
    let picture = |file: &LoraFile| {
        let file = through_disk(file);
        let tokens = file.words().into_iter().map(|meaning| Token::of(&model, meaning).unwrap()).collect();
        let mounted = Mounted { tokens, ..Mounted::default() };
        let request = Request { prompt: "a <sks> cat".into(), negative: "rain".into(), steps: 2, ..Request::default() };
        read(preview::sample(&model, &mounted, &request, &mut |_| Ok(())).unwrap().pixels).unwrap()
    };
    let one = picture(&plain);
    let (error, effect) = (apart(&picture(&file), &one), apart(&picture(&several), &one));
    println!("equal vectors {error:.1e}, other vectors {effect:.1e} of the largest value");
    assert!(error < 1e-5 && effect > 100.0 * error, "{error}, {effect}");

    several.add_layers("<sks>", vec![vec![vector.clone()]; layers + 1]);
    several.path = Path::new("other.safetensors").into();
    let refused = Token::of(&model, several.words()[0]).unwrap_err();
    assert!(refused.what.contains(&format!("{} cross-attention layers", layers + 1)), "{refused}");
    assert_eq!(refused.path.as_deref(), Some(Path::new("other.safetensors")));
}
