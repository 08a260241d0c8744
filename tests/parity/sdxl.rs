//! SDXL: two text encoders, a pooled vector and sizes beside the text.

use burn::tensor::Tensor;
use triptych::engine::device::read;
use triptych::engine::io::Folder;
use triptych::engine::model::clip::Role;
use triptych::engine::model::recompute::{self, Pulled, leaf};
use triptych::engine::model::{Change, Context, Framing, Mounts, Part, Pooled, StableDiffusion};
use triptych::engine::preview::{self, Mounted, Request, Start};

use super::reference::{self, Reference, assert_close};
use super::{FORWARD, SAMPLE};

#[test]
fn token_ids() {
    let (model, r) = (reference::sdxl(), Reference::open("sdxl_reference"));
    let ids: Vec<Vec<u32>> = r.prompts().iter().map(|p| model.tokenizer.encode(p, &[]).unwrap().ids).collect();
    assert_eq!(ids, r.ids("text.ids"));
}

#[test]
fn text_of_both_encoders() {
    let (model, r) = (reference::sdxl(), Reference::open("sdxl_reference"));
    let context = read_prompts(&model, &r.prompts());
    assert_close("context", context.at(0).clone(), r.tensor("text.context"), FORWARD);
    assert_close("pooled", context.pooled().unwrap().text.clone(), r.tensor("text.pooled"), FORWARD);
}

/// Prompts as they are typed, of two lengths: the longer one's second chunk sums up nothing.
#[test]
fn the_first_chunk_sums_a_prompt_up() {
    let model = reference::sdxl();
    let prompt = |text: &str| preview_prompt(&model, text);
    let both = model.read(&[prompt("a cat"), prompt("a dog BREAK a tree")], &[], 1, &Mounts::none());
    assert_eq!(both.at(0).dims()[..2], [2, 2 * model.text.length()]);
    let alone = read_prompts(&model, &["a cat".into(), "a dog".into()]);
    assert_close("pooled", pooled(&both), pooled(&alone), FORWARD);
    let weighed = model.read(&[prompt("a (cat:1.5)")], &[], 1, &Mounts::none());
    assert_close("pooled", pooled(&weighed), pooled(&alone).narrow(0, 0, 1), FORWARD);
    assert_ne!(read(weighed.at(0).clone()).unwrap(), read(alone.at(0).clone().narrow(0, 0, 1)).unwrap());
}

#[test]
fn unet() {
    let (model, r) = (reference::sdxl(), Reference::open("sdxl_reference"));
    let sizes = r.f32("unet.time_ids");
    let context = told(r.tensor("text.context"), r.tensor("text.pooled"), &sizes);
    let out = model.unet.forward(r.tensor("unet.x"), &r.f32("unet.t"), &context, &Mounts::none());
    assert_close("unet", out, r.tensor("unet.out"), FORWARD);
}

/// A cut picture that is not square, under a prompt that the second encoder's tokenizer fills up with another word.
#[test]
fn unet_of_other_sizes() {
    let Some(r) = more("sdxl_sizes_reference") else { return };
    let mut model = reference::sdxl();
    model.second.as_mut().unwrap().pad = 0;
    let context = read_prompts(&model, &[r.text("prompt")]);
    assert_close("context", context.at(0).clone(), r.tensor("context"), FORWARD);
    assert_close("pooled", pooled(&context), r.tensor("pooled"), FORWARD);
    let context = told(r.tensor("context"), r.tensor("pooled"), &r.f32("unet.sizes"));
    let out = model.unet.forward(r.tensor("unet.x"), &[r.number("t") as f32], &context, &Mounts::none());
    assert_close("unet", out, r.tensor("unet.out"), FORWARD);
}

/// How the loss of a picture changes with weights of every network: also of those that only reach it by the pooled vector,
/// and whether the denoiser's activations are kept or made again.
#[test]
fn gradients_reach_both_text_encoders() {
    let Some(r) = more("sdxl_sizes_reference") else { return };
    let mut model = reference::sdxl();
    model.second.as_mut().unwrap().pad = 0;
    let names: Vec<String> = r.names().filter_map(|name| name.strip_prefix("gradient.").map(str::to_owned)).collect();
    let layer = |name: &String| {
        let (part, path) = name.split_once('.').unwrap();
        let (part, path) = match part {
            "unet" => (Part::Unet, path.to_owned()),
            "text" => (Part::Text, format!("text_model.{path}")),
            _ => (Part::Text2, format!("text_model.{path}")),
        };
        model.layer_ids().find(|(_, layer)| (layer.part, &layer.path) == (part, &path)).unwrap().0
    };
    let encoded = [model.tokenizer.encode(&r.text("prompt"), &[]).unwrap()];
    let six = r.f32("unet.sizes");
    let (x, target, t) = (r.tensor::<4>("unet.x"), r.tensor::<4>("target"), [r.number("t") as f32]);
    for recomputes in [false, true] {
        let mut mounts = Mounts::none();
        let leaves: Vec<Tensor<2>> = names
            .iter()
            .map(|name| {
                let [out, input] = r.shape(&format!("gradient.{name}")).try_into().unwrap();
                let zero = leaf(Tensor::zeros([out, input], &model.device));
                mounts.add(layer(name), Change::Weight(zero.clone()));
                zero
            })
            .collect();
        let context = model.context(&encoded, &[], 1, &mounts).framed(&framings(&six));
        let loss = |said: Tensor<4>| (said - target.clone()).powi_scalar(2).mean();
        let mut pulled = Pulled::new(&leaves);
        if recomputes {
            let inner = context.clone().inner();
            let (said, passed) = recompute::forward(&model.unet, x.clone(), &t, inner, &Mounts::none());
            let said = leaf(said);
            let gradient = said.grad(&loss(said.clone()).backward()).unwrap();
            let by_context = recompute::backward(&model.unet, passed, gradient, &leaves, &mounts, &mut pulled);
            pulled.pull(context.dot(&by_context), None, &leaves);
        } else {
            let loss = loss(model.unet.forward(x.clone(), &t, &context, &mounts));
            assert_close("loss", loss.clone().inner(), r.tensor("loss"), FORWARD);
            pulled.pull(loss, None, &leaves);
        }
        for (name, found) in names.iter().zip(pulled.leaves) {
            let found = found.unwrap_or_else(|| panic!("{name} has no gradient"));
            assert_close(name, found, r.tensor(&format!("gradient.{name}")), SAMPLE);
        }
    }
}

/// From prompt to latents, as the command line goes: the sizes are the picture's own.
#[test]
fn sample_euler() {
    let (model, r) = (reference::sdxl(), Reference::open("sdxl_reference"));
    let shape = r.shape("sample.latents").try_into().unwrap();
    let request = Request {
        prompt: r.prompts()[0].clone(),
        negative: r.prompts()[1].clone(),
        sampler: "euler".into(),
        changes: [("spacing".to_owned(), "leading".to_owned())].into(),
        steps: r.number("steps") as usize,
        cfg: r.number("cfg"),
        start: Some(Start { values: r.f32("sample.latents"), shape }),
        ..Request::default()
    };
    let pictures = preview::sample(&model, &Mounted::default(), &request, &mut |_| Ok(())).unwrap();
    assert_close("euler", pictures.latents, r.tensor("sample.euler.out"), SAMPLE);
}

/// The same weights as one file, the second text encoder in OpenCLIP's form.
#[test]
fn single_file_is_the_folder() {
    if more("sdxl_sizes_reference").is_none() {
        return;
    }
    let (model, r) = (reference::sdxl(), Reference::open("sdxl_reference"));
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("xl.safetensors");
    std::fs::copy(reference::folder().join("sdxl_single_file.safetensors"), &file).unwrap();
    let beside = |name: &str| {
        let to = scratch.path().join("xl").join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(reference::folder().join("sdxl").join(name), to).unwrap();
    };
    // Heads leave no trace in the shapes of so small a model, and its vocabulary is cut.
    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        beside(&format!("{part}/config.json"));
    }
    for file in ["vocab.json", "merges.txt"] {
        beside(&format!("tokenizer/{file}"));
    }
    let mut single = StableDiffusion::open(&Folder::Disk(file), &model.device).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((&single.layers, &single.schedule.prediction_type), (&model.layers, &model.schedule.prediction_type));
    for (ours, theirs) in single.weights.iter().zip(&model.weights) {
        assert_eq!(ours.oi.to_data(), theirs.oi.to_data());
    }
    let second = single.second.as_mut().unwrap();
    assert_eq!(second.pad, 0, "nothing beside the file says otherwise");
    second.pad = model.second.as_ref().unwrap().pad;
    let [one, other] = [&single, &model].map(|model| read_prompts(model, &r.prompts()));
    assert_eq!(one.at(0).to_data(), other.at(0).to_data(), "text");
    assert_eq!(pooled(&one).to_data(), pooled(&other).to_data(), "pooled");
}

/// The first encoder's last layer and norm are never computed: merged checkpoints hold NaN there.
#[test]
fn what_is_never_read_may_be_broken() {
    let model = reference::sdxl();
    assert_eq!(Role::First, model.text.role());
    let idle = model.layers.iter().filter(|layer| layer.part == Part::Text).count();
    assert_eq!(idle, 6 * model.text.config.num_hidden_layers, "its layers can be adapted all the same");
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("broken");
    copy(&reference::folder().join("sdxl"), &folder);
    let path = folder.join("text_encoder/model.safetensors");
    let last = format!("encoder.layers.{}.", model.text.config.num_hidden_layers - 1);
    let broken = |break_it: &dyn Fn(&str) -> bool| {
        let file =
            triptych::engine::io::Checkpoint::open(&reference::folder().join("sdxl/text_encoder/model.safetensors"));
        let file = file.unwrap();
        let tensors = file.entries().keys().map(|name| {
            let mut tensor = file.raw(name).unwrap();
            if break_it(name) {
                tensor.bytes.fill(0xFF);
            }
            (name.clone(), tensor)
        });
        triptych::engine::io::safetensors::save(&path, &tensors.collect(), file.metadata()).unwrap();
        StableDiffusion::open(&Folder::Disk(folder.clone()), &model.device)
    };
    let r = Reference::open("sdxl_reference");
    let open =
        broken(&|name| name.contains(&last) || name.contains("final_layer_norm")).unwrap_or_else(|e| panic!("{e}"));
    assert_close("context", read_prompts(&open, &r.prompts()).at(0).clone(), r.tensor("text.context"), FORWARD);
    let error = broken(&|name| name.contains("encoder.layers.0.")).err().expect("what is read must be whole");
    assert!(error.what.contains("holds NaN"), "{error}");
}

fn read_prompts(model: &StableDiffusion, prompts: &[String]) -> Context {
    let encoded: Vec<_> = prompts.iter().map(|prompt| model.tokenizer.encode(prompt, &[]).unwrap()).collect();
    model.context(&encoded, &[], 1, &Mounts::none())
}

fn preview_prompt(model: &StableDiffusion, text: &str) -> triptych::engine::model::chunks::Prompt {
    triptych::engine::model::chunks::Prompt::new(text, &model.tokenizer, &[]).unwrap()
}

fn pooled(context: &Context) -> Tensor<2> {
    context.pooled().unwrap().text.clone()
}

/// A context as the reference has it: six numbers for each picture.
fn told(text: Tensor<3>, pooled: Tensor<2>, sizes: &[f32]) -> Context {
    Context::from(text).with_pooled(Pooled { text: pooled, framings: framings(sizes) })
}

fn framings(sizes: &[f32]) -> Vec<Framing> {
    let framing = |six: &[f32]| {
        let pair = |at: usize| [six[at] as usize, six[at + 1] as usize];
        Framing { original: pair(0), crop: pair(2), target: pair(4) }
    };
    sizes.chunks(6).map(framing).collect()
}

/// What `make_sdxl_reference.py` adds to a reference folder.
fn more(name: &str) -> Option<Reference> {
    let is_there = reference::folder().join(format!("{name}.safetensors")).is_file();
    if !is_there {
        println!("skipped: the reference folder has no {name}.safetensors");
    }
    is_there.then(|| Reference::open(name))
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}
