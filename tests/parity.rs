//! Our numbers against PyTorch, diffusers, transformers and peft.
//!
//! Every shape and number comes from `tests/reference` (made by `make_reference.py` there), or from the folder that
//! `TRIPTYCH_REFERENCE` names. f32 on the CPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod reference;
#[path = "parity/sdxl.rs"]
mod sdxl;

use burn::tensor::Tensor;
use reference::{Reference, assert_close, training};
use triptych::engine::Result;
use triptych::engine::adapter::mount::{Strength, mount};
use triptych::engine::diffusion::sampler::{Denoiser, sampler};
use triptych::engine::diffusion::schedule::{Spacing, Steps};
use triptych::engine::diffusion::{Schedule, guidance, loss};
use triptych::engine::io::Folder;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::model::chunks::Prompt;
use triptych::engine::model::loader::Loader;
use triptych::engine::model::sd::{ScheduleConfig, TEXT_WEIGHTS};
use triptych::engine::model::tokenizer::Tokenizer;
use triptych::engine::model::vit::Vit;
use triptych::engine::model::{Hold, Mounts, Part, StableDiffusion, Table};
use triptych::engine::vision::Adapted;

/// Share of the largest value that one forward pass may differ by.
const FORWARD: f32 = 2e-4;
const SAMPLE: f32 = 1e-3;

#[test]
fn clip_vocabulary_gives_the_reference_ids() {
    let cases: Vec<serde_json::Value> = serde_json::from_str(&reference::text("tokenizer_reference.json")).unwrap();
    let tokenizer = Tokenizer::clip(77).unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, &[]).unwrap().ids, expected, "{text:?}");
    }
}

#[test]
fn token_ids() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let expected = r.ids("text.ids");
    let ids: Vec<Vec<u32>> = r.prompts().iter().map(|p| model.tokenizer.encode(p, &[]).unwrap().ids).collect();
    assert_eq!(ids, expected);
}

/// The same weights as one file in LDM layout, with `sd`'s configurations in a folder of its name beside it: heads and
/// groups leave no trace in the shapes of so small a model.
#[test]
fn single_file_is_the_folder() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let scratch = tempfile::tempdir().unwrap();
    let file = reference::single_file(scratch.path());
    let single = StableDiffusion::open(&Folder::Disk(file), &model.device).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(single.name, "single");
    assert_eq!(single.layers, model.layers);
    assert_eq!(context(&single, &r).into_data(), context(&model, &r).into_data(), "text");
    let unet = |model: &StableDiffusion| {
        let context = r.rows("text.last_hidden_state", &[0, 2]);
        model.unet.forward(r.tensor("unet.x"), &r.f32("unet.t"), &context.into(), &Mounts::none())
    };
    assert_eq!(unet(&single).into_data(), unet(&model).into_data(), "the same weights, bit for bit");
    assert_close("unet", unet(&single), r.tensor("unet.out"), FORWARD);
    assert_close("mean", single.vae.encode(r.tensor("vae.image")).0, r.tensor("vae.mean"), FORWARD);
    assert_close("decoded", single.vae.decode(r.tensor("vae.mean")), r.tensor("vae.decoded"), FORWARD);
    assert_eq!(single.schedule, model.schedule);
    // Alone, the file is read by rule, which is right where the model follows it.
    let bare = scratch.path().join("bare.safetensors");
    std::fs::rename(scratch.path().join("single.safetensors"), &bare).unwrap();
    let bare = StableDiffusion::open(&Folder::Disk(bare), &model.device).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((&bare.hash, &bare.vae_hash, &bare.text_hash), (&single.hash, &single.vae_hash, &single.text_hash));
    assert_eq!((&bare.layers, &bare.schedule), (&model.layers, &model.schedule));
    let told = |model: &StableDiffusion| {
        let (unet, vae, text) = (&model.unet.config, &model.vae.config, &model.text.config);
        (unet.heads(0), unet.norm_num_groups, vae.norm_num_groups, text.num_attention_heads)
    };
    if told(&bare) == told(&model) {
        assert_eq!(context(&bare, &r).into_data(), context(&model, &r).into_data(), "text");
        assert_eq!(unet(&bare).into_data(), unet(&model).into_data());
        assert_close("decoded", bare.vae.decode(r.tensor("vae.mean")), r.tensor("vae.decoded"), FORWARD);
    } else {
        println!("skipped: heads and groups are {:?}, and the rule says {:?}", told(&model), told(&bare));
    }
}

#[test]
fn text_encoder() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    assert_close("text", context(&model, &r), r.tensor("text.last_hidden_state"), FORWARD);
}

#[test]
fn unweighed_short_prompts_read_as_captions_do() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let plain: Vec<String> = r.prompts().into_iter().filter(|p| !p.contains(['(', ')', '[', ']', '\\'])).collect();
    let captions: Vec<_> = plain.iter().map(|p| model.tokenizer.encode(p, &[]).unwrap()).collect();
    let fits = |i: &usize| captions[*i].dropped == 0;
    let captions_that_fit: Vec<_> = (0..plain.len()).filter(fits).map(|i| captions[i].clone()).collect();
    let prompts: Vec<_> =
        (0..plain.len()).filter(fits).map(|i| Prompt::new(&plain[i], &model.tokenizer, &[]).unwrap()).collect();
    assert!(!prompts.is_empty());
    let expected = model.condition(&captions_that_fit, &[], &Mounts::none());
    assert_eq!(model.read(&prompts, &[], 1, &Mounts::none()).at(0).to_data(), expected.into_data());
}

/// Weights, several chunks and clip skip against transformers' encoder (`make_prompt_reference.py`).
#[test]
fn prompts_with_weights_breaks_and_clip_skip() {
    if !reference::folder().join("prompt_reference.safetensors").is_file() {
        println!("skipped: the reference folder has no prompt_reference.safetensors");
        return;
    }
    let (model, r) = (reference::model(), Reference::open("prompt_reference"));
    for case in r.json("prompts").as_array().unwrap() {
        let of = |key: &str| case[key].as_str().unwrap();
        let prompt = Prompt::new(of("prompt"), &model.tokenizer, &[]).unwrap();
        let clip_skip = case["clip_skip"].as_u64().unwrap() as usize;
        let context = model.read(&[prompt], &[], clip_skip, &Mounts::none()).at(0).clone();
        assert_close(of("name"), context, r.tensor(of("name")), FORWARD);
    }
}

#[test]
fn unet_square() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let out = model.unet.forward(
        r.tensor("unet.x"),
        &r.f32("unet.t"),
        &r.rows("text.last_hidden_state", &[0, 2]).into(),
        &Mounts::none(),
    );
    assert_close("unet", out, r.tensor("unet.out"), FORWARD);
}

#[test]
fn unet_rectangular() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let out = model.unet.forward(
        r.tensor("unet_rect.x"),
        &[333.0],
        &r.rows("text.last_hidden_state", &[0]).into(),
        &Mounts::none(),
    );
    assert_close("unet_rect", out, r.tensor("unet_rect.out"), FORWARD);
}

#[test]
fn vae_encode() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let (mean, logvar) = model.vae.encode(r.tensor("vae.image"));
    assert_close("mean", mean, r.tensor("vae.mean"), FORWARD);
    assert_close("logvar", logvar, r.tensor("vae.logvar"), FORWARD);
}

#[test]
fn vae_decode() {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    assert_close("decoded", model.vae.decode(r.tensor("vae.mean")), r.tensor("vae.decoded"), FORWARD);
}

#[test]
fn sampler_ddim() {
    sample("ddim", "ddim", None, |_| {});
}

#[test]
fn sampler_ddim_v() {
    sample("ddim", "ddim_v", None, |config| config.prediction_type = "v_prediction".into());
}

#[test]
fn sampler_ddim_v_at_zero_terminal_snr() {
    sample("ddim", "ddim_zsnr_v", Some(Spacing::Trailing), |config| {
        config.prediction_type = "v_prediction".into();
        config.rescale_betas_zero_snr = true;
    });
}

#[test]
fn sampler_euler() {
    sample("euler", "euler", None, |_| {});
}

#[test]
fn sampler_euler_trailing() {
    sample("euler", "euler_trailing", Some(Spacing::Trailing), |_| {});
}

#[test]
fn sampler_heun() {
    sample("heun", "heun", None, |_| {});
}

#[test]
fn sampler_dpmpp_2m() {
    sample("dpmpp_2m", "dpmpp_2m", None, |_| {});
}

#[test]
fn sampler_dpmpp_2m_karras() {
    sample("dpmpp_2m_karras", "dpmpp_2m_karras", None, |_| {});
}

#[test]
fn sampler_unipc() {
    sample("unipc", "unipc", None, |_| {});
}

#[test]
fn vision_transformer() {
    let (classifier, r) = (reference::classifier("vit"), Reference::open("vision_reference"));
    assert_close("logits", Adapted::plain(&classifier).logits(r.tensor("x")), r.tensor("vit.logits"), FORWARD);
    let folder = Folder::Disk(reference::folder().join("vit"));
    let (config, file) = (folder.json("config.json").unwrap(), folder.checkpoint(".", TEXT_WEIGHTS).unwrap());
    let hold = Hold::wide(&classifier.device);
    let loader = Loader::new(&file, |name| Some(name.to_owned()), hold, Part::Vision, Table::default());
    let hidden = Vit::load(&config, &loader.root().sub("vit")).hidden(r.tensor("x"), &Mounts::none());
    assert_close("hidden", hidden, r.tensor("vit.hidden"), FORWARD);
}

#[test]
fn resnet() {
    let (resnet, r) = (reference::classifier("resnet"), Reference::open("vision_reference"));
    assert_close("logits", Adapted::plain(&resnet).logits(r.tensor("x")), r.tensor("resnet.logits"), FORWARD);
}

fn context(model: &StableDiffusion, r: &Reference) -> Tensor<3> {
    let prompts: Vec<_> = r.prompts().iter().map(|p| model.tokenizer.encode(p, &[]).unwrap()).collect();
    model.condition(&prompts, &[], &Mounts::none())
}

fn sample(name: &str, part: &str, spacing: Option<Spacing>, change: impl Fn(&mut ScheduleConfig)) {
    let (model, r) = (reference::model(), Reference::open("sd_reference"));
    let expected = r.tensor::<4>(&format!("sample.{part}.out"));
    let mut config = model.schedule.clone();
    config.prediction_type = "epsilon".into();
    change(&mut config);
    let schedule = Schedule::new(&config).unwrap();
    let row = sampler(name).unwrap();
    let steps = row.steps(&schedule, spacing, r.number("steps") as usize).unwrap();
    let mut denoiser = Guided {
        model: &model,
        schedule: &schedule,
        steps: &steps,
        context: r.rows("text.last_hidden_state", &[1, 0]),
        scale: r.number("cfg"),
        timesteps: Vec::new(),
    };
    let out = row.sample(&steps, r.tensor("sample.latents"), None, &mut denoiser).unwrap();
    assert_eq!(
        denoiser.timesteps,
        r.f32(&format!("sample.{part}.timesteps")),
        "every pass of the network, in its order"
    );
    assert_close(part, out, expected, SAMPLE);
}

struct Guided<'a> {
    model: &'a StableDiffusion,
    schedule: &'a Schedule,
    steps: &'a Steps,
    context: Tensor<3>,
    scale: f64,
    /// Those of the passes so far.
    timesteps: Vec<f32>,
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Tensor<4>, i: usize) -> Result<Tensor<4>> {
        let (sigma, t) = (self.steps.sigmas[i], self.steps.timesteps[i] as f32);
        self.timesteps.push(t);
        let input = guidance::network_input(x.clone(), sigma);
        let out = self.model.unet.forward(
            Tensor::cat(vec![input.clone(), input], 0),
            &[t, t],
            &self.context.clone().into(),
            &Mounts::none(),
        );
        let out = guidance::guided(out.clone().narrow(0, 0, 1), out.narrow(0, 1, 1), self.scale);
        Ok(guidance::denoised(x.clone(), out, sigma, self.schedule.prediction))
    }

    fn noise(&mut self, _: &Tensor<4>, _: usize) -> Tensor<4> {
        unreachable!("deterministic samplers draw no noise")
    }

    fn done(&mut self, _: usize, x: Tensor<4>) -> Result<Tensor<4>> {
        Ok(x)
    }
}

#[test]
fn lora_kohya_file() {
    lora("lora_kohya", 1.0, "unet.out_scale1");
}

#[test]
fn lora_kohya_file_at_minus_a_quarter() {
    lora("lora_kohya", -0.25, "unet.out_strength_minus_quarter");
}

#[test]
fn lora_diffusers_file() {
    lora("lora_diffusers", 1.0, "unet.out_diffusers_file");
}

/// The text encoder's part is always at full strength; only the denoiser's follows `strength`.
fn lora(file: &str, strength: f32, part: &str) {
    let (model, base, r) = (reference::model(), Reference::open("sd_reference"), Reference::open("lora_reference"));
    let file =
        LoraFile::open(&reference::folder().join(format!("{file}.safetensors"))).unwrap_or_else(|e| panic!("{e}"));
    let mut mounts = Mounts::none();
    mount(&mut mounts, &model, &file, &Strength { text: 1.0, unet: strength, ..Strength::default() }).unwrap();
    let prompts: Vec<_> = base.prompts().iter().map(|p| model.tokenizer.encode(p, &[]).unwrap()).collect();
    let text = model.condition(&prompts, &[], &mounts);
    assert_close("text", text.clone(), r.tensor("text.last_hidden_state"), FORWARD);
    let context = Tensor::cat(vec![text.clone().narrow(0, 0, 1), text.narrow(0, 2, 1)], 0);
    let out = model.unet.forward(base.tensor("unet.x"), &base.f32("unet.t"), &context.into(), &mounts);
    assert_close(part, out, r.tensor(part), FORWARD);
}

#[test]
fn training_losses_gradients_and_weights() {
    let (model, r) = (reference::model(), Reference::open("train_reference"));
    let schedule = Schedule::new(&model.schedule).unwrap();
    let mut trainee = training::trainee(&model, &r);
    let (losses, snr_losses) = (r.f32("losses"), r.f32("losses_min_snr_5"));
    for (i, (expected, expected_snr)) in losses.iter().zip(&snr_losses).enumerate() {
        let mut batch = training::batch(&r, i, &model.device);
        let outcome = trainee.gradients(&model, &schedule, &batch);
        training::assert_relative(&format!("loss {i}"), outcome.loss.into_scalar(), *expected, 1e-4);
        batch.weights = batch.timesteps.iter().map(|&t| loss::min_snr_weight(&schedule, t, 5.0) as f32).collect();
        let weighted = trainee.gradients(&model, &schedule, &batch);
        training::assert_relative(&format!("min-SNR loss {i}"), weighted.loss.into_scalar(), *expected_snr, 1e-4);
        if i == 0 {
            let found = outcome.gradients.iter().cloned().map(|g| g.expect("every parameter has a gradient"));
            training::assert_norm("gradients", &trainee, found.collect(), &r, "grad0", 1e-3);
        }
        trainee.update(outcome.gradients, training::RATES);
    }
    training::assert_norm("weights", &trainee, trainee.values(), &r, "final", 1e-3);
}
