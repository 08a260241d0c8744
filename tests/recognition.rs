//! What is this file? A model opens however it is kept; whatever else was named is told by its name, with what to do, and
//! nothing is written.

#![allow(clippy::unwrap_used, reason = "a test that cannot prepare its files has failed")]

mod command;

use std::collections::BTreeMap;

use command::{Desk, TRAIN, tensors, tree};
use serde_json::json;
use triptych::engine::io::safetensors::{self, Dtype, Tensor};

const UNET: &str = "diffusion_pytorch_model";

fn save(desk: &Desk, name: &str, shapes: &[(&str, &[usize])]) {
    let zeros = |shape: &[usize]| Tensor::new(Dtype::F16, shape, &vec![0.0; shape.iter().product()]);
    let tensors = shapes.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
    safetensors::save(&desk.path(name), &tensors, &BTreeMap::new()).unwrap();
}

/// Enough of a whole checkpoint to be told: cross-attention that reads `context`, `channels` in, and a text encoder's key.
fn checkpoint(desk: &Desk, context: usize, channels: usize, text: &str) {
    let shapes: &[(&str, &[usize])] = &[
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &[4, context]),
        ("model.diffusion_model.input_blocks.0.0.weight", &[4, channels, 3, 3]),
        ("first_stage_model.quant_conv.weight", &[8, 8, 1, 1]),
        (text, &[4]),
    ];
    save(desk, "x.safetensors", shapes);
}

const CLIP: &str = "cond_stage_model.transformer.text_model.final_layer_norm.bias";

type Make = fn(&Desk);

/// Files that are no model for us, what is said of each, and what to do.
const NO_MODELS: [(Make, &str, &str); 12] = [
    (|d| checkpoint(d, 768, 9, CLIP), "takes 9 channels", "Models for inpainting or editing cannot be used"),
    (
        |d| save(d, "x.safetensors", &[("model.diffusion_model.joint_blocks.0.x", &[1])]),
        "for SD 3",
        "Only the families of SD 1.x",
    ),
    (
        |d| save(d, "x.safetensors", &[("double_blocks.0.img_mod.lin.bias", &[1])]),
        "for Flux",
        "Only the families of SD 1.x",
    ),
    (
        |d| save(d, "x.safetensors", &[("model.diffusion_model.input_blocks.0.0.weight", &[4, 4, 3, 3])]),
        "a denoiser without text encoder and autoencoder",
        "Name the whole checkpoint",
    ),
    (
        |d| save(d, "x.safetensors", &[("encoder.conv_in.weight", &[1]), ("decoder.conv_in.weight", &[1])]),
        "an autoencoder (VAE) alone, not a model",
        "Name the whole checkpoint",
    ),
    (
        |d| save(d, "x.safetensors", &[("text_model.encoder.layers.0.self_attn.q_proj.weight", &[1])]),
        "a text encoder alone, not a model",
        "Name the whole checkpoint",
    ),
    (
        |d| save(d, "x.safetensors", &[("control_model.zero_convs.0.0.bias", &[1])]),
        "a ControlNet, not a model",
        "choose a",
    ),
    (
        |d| {
            std::fs::copy(tree("tests/reference/lora_kohya.safetensors"), d.path("x.safetensors")).unwrap();
        },
        "a LoRA, not a model",
        "Add it under adapters",
    ),
    (
        |d| save(d, "x.safetensors", &[("emb_params", &[2, 768])]),
        "(an embedding) for SD 1.x, not a model",
        "choose a model",
    ),
    (|d| save(d, "x.safetensors", &[("weight", &[3, 5])]), "not a model that is known here", "Name a folder"),
    (|d| d.write("x.safetensors", b"PK\x03\x04 archive/data.pkl"), "This is a pickle", "convert it to safetensors"),
    (|d| d.write("x.safetensors", b"\x10\0\0\0\0\0\0\0{\"cut\":"), "not a whole safetensors file", "cut short"),
];

#[test]
fn what_is_no_model_is_refused_by_name() {
    let desk = Desk::new();
    for (make, what, advice) in NO_MODELS {
        make(&desk);
        let before = desk.files();
        for line in [
            "sample --model x.safetensors --steps 1 --prompt x --out x.png",
            &format!("{TRAIN} --model x.safetensors --steps 1 --out out.safetensors"),
        ] {
            let failure = desk.run(line).failure();
            assert!(failure.contains(what) && failure.contains(advice), "{what}: {failure}");
            assert!(failure.ends_with("x.safetensors"), "{what}: {failure}");
        }
        assert_eq!(desk.files(), before, "{what}: something was written");
    }
}

/// Models of the families that can be used, of which something is missing or otherwise than it should be.
#[test]
fn other_models_of_a_known_family_are_refused_with_a_reason() {
    let desk = Desk::new();
    let xl = "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias";
    let marked = |desk: &Desk, mark: &str| {
        checkpoint(desk, 2048, 4, xl);
        desk.edit("x.safetensors", |t| drop(t.insert(mark.into(), Tensor::new(Dtype::F32, &[1], &[0.0]))));
    };
    let refused = |words: &str| {
        for line in ["sample --model x.safetensors --steps 1 --prompt x --out x.png", "inspect x.safetensors"] {
            let failure = desk.run(line).failure();
            assert!(failure.contains(words) && failure.ends_with("x.safetensors"), "{words}: {failure}");
        }
    };
    for mark in ["edm_vpred.sigma_max", "edm_mean"] {
        marked(&desk, mark);
        refused("taught on a schedule of its own");
    }
    checkpoint(&desk, 2048, 4, xl);
    refused("is not CLIP's");
    checkpoint(&desk, 1024, 4, "cond_stage_model.model.ln_final.bias");
    refused("is not CLIP's");
    // SDXL's refiner has one text encoder, in the place of the other.
    checkpoint(&desk, 1280, 4, "conditioner.embedders.0.model.ln_final.bias");
    refused("a tensor that no SDXL model has, such as conditioner.embedders.0.model.ln_final.bias");
}

#[test]
fn what_is_no_adapter_is_refused_by_name() {
    let desk = Desk::new();
    let to_k = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let cases: [(Make, &str); 6] = [
        (|d| checkpoint(d, 768, 4, CLIP), "This is an SD 1.x checkpoint, not an adapter"),
        (|d| checkpoint(d, 2048, 4, "conditioner.embedders.0.x.bias"), "This is an SDXL checkpoint, not an adapter"),
        (
            |d| save(d, "x.safetensors", &[("encoder.conv_in.weight", &[1]), ("decoder.conv_in.weight", &[1])]),
            "an autoencoder (VAE) alone, not an adapter",
        ),
        (|d| save(d, "x.safetensors", &[("control_model.zero_convs.0.0.bias", &[1])]), "a ControlNet, not an adapter"),
        (|d| d.write("x.safetensors", b"\x80\x02}q\0."), "This is a pickle"),
        (
            |d| {
                save(
                    d,
                    "x.safetensors",
                    &[("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", &[4, 64])],
                );
            },
            "This is a LoRA for Flux",
        ),
    ];
    let refused = |what: &str| {
        let before = desk.files();
        for line in [
            "sample --steps 1 --prompt x --adapter x.safetensors --out x.png",
            "merge x.safetensors --out out.safetensors",
        ] {
            let failure = desk.run(line).failure();
            assert!(failure.contains(what) && failure.ends_with("x.safetensors"), "{what}: {failure}");
        }
        assert_eq!(desk.files(), before, "{what}: something was written");
    };
    for (make, what) in cases {
        make(&desk);
        refused(what);
    }
    // Whole adapters of other families, which can be read: they do not fit, and the family is named.
    let families: [(&str, usize, &str); 5] = [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", 64, "SDXL"),
        (to_k, 2048, "SDXL"),
        (to_k, 1024, "SD 2.x"),
        ("lora_unet_double_blocks_0_img_attn_proj", 64, "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_proj", 64, "SD 3"),
    ];
    for (module, width, family) in families {
        let (down, up) = (format!("{module}.lora_down.weight"), format!("{module}.lora_up.weight"));
        save(&desk, "x.safetensors", &[(&down, &[2, width]), (&up, &[64, 2])]);
        let failure = desk.run("sample --steps 1 --prompt x --adapter x.safetensors --out x.png").failure();
        let words = format!("made for another model than starter (it is for {family})");
        assert!(failure.contains(&words) && !desk.path("x.png").exists(), "{family}: {failure}");
        assert_eq!(desk.run("inspect x.safetensors").result()["family"], family);
    }
}

#[test]
fn inspect_says_what_there_is() {
    let desk = Desk::new();
    for (make, what, advice) in &NO_MODELS[..7] {
        make(&desk);
        let report = desk.run("inspect x.safetensors").result();
        assert_eq!(report["kind"], "other", "{report}");
        assert!(report["what"].as_str().unwrap().contains(what), "{what}: {report}");
        assert!(report["advice"].as_str().unwrap().contains(advice), "{advice}: {report}");
        assert!(report["tensors"].as_u64() > Some(0) && report["dtype"] == "F16", "{report}");
        let prose = desk.say("inspect x.safetensors").stdout;
        assert!(prose.contains(what) && prose.contains(advice), "{prose}");
    }
    assert!(desk.path("x.safetensors").is_file());
    for (name, index, what) in [
        ("sd3", r#"{"_class_name": "StableDiffusion3Pipeline"}"#, "This is an SD 3 checkpoint"),
        ("flux", r#"{"_class_name": "FluxPipeline"}"#, "This is a Flux checkpoint"),
    ] {
        desk.write(&format!("{name}/model_index.json"), index);
        let report = desk.run(&format!("inspect {name}")).result();
        assert_eq!((&report["kind"], &report["tensors"]), (&json!("other"), &json!(0)));
        assert!(report["what"].as_str().unwrap().contains(what), "{report}");
        let failure = desk.run(&format!("sample --model {name} --steps 1 --prompt x --out x.png")).failure();
        assert!(failure.contains(what) && failure.ends_with(name), "{failure}");
    }
    // A model's file in a folder that is none.
    checkpoint(&desk, 768, 4, CLIP);
    desk.write("box/v1-5.safetensors", desk.read("x.safetensors"));
    let failure = desk.run("sample --model box --steps 1 --prompt x --out x.png").failure();
    assert!(failure.contains("Name the file inside it, such as v1-5.safetensors"), "{failure}");
    // A folder as PEFT saves it: what is inside is told.
    desk.write("peft/adapter_config.json", "{}");
    let lora = tree("tests/reference/lora_diffusers.safetensors");
    std::fs::copy(lora, desk.path("peft/adapter_model.safetensors")).unwrap();
    assert_eq!(desk.run("inspect peft").result()["kind"], "adapter");
}

#[test]
fn pickles_are_not_opened_wherever_they_lie() {
    let desk = Desk::new();
    desk.copy("tests/reference/sd", "sd");
    std::fs::remove_file(desk.path(&format!("sd/unet/{UNET}.safetensors"))).unwrap();
    desk.write(&format!("sd/unet/{UNET}.bin"), b"PK\x03\x04 archive/data.pkl");
    // The oldest pickles begin like text.
    desk.write("model.ckpt", "(dp0\nS'state_dict'\np1\n.");
    for (model, file) in [("sd", format!("{UNET}.bin")), ("model.ckpt", "model.ckpt".to_owned())] {
        let before = desk.files();
        let failure = desk.run(&format!("sample --model {model} --steps 1 --prompt x --out x.png")).failure();
        assert!(failure.contains("This is a pickle") && failure.contains("can run any code"), "{failure}");
        assert!(failure.contains("convert it to safetensors") && failure.ends_with(&file), "{failure}");
        assert_eq!(desk.files(), before);
    }
}

/// Pictures of one seed, as the latents they end in.
fn latents(desk: &Desk, model: &str) -> BTreeMap<String, Vec<u8>> {
    let line = "sample --steps 2 --seed 3 --prompt 'a robot' --out x.png --dump dump.safetensors --model";
    desk.run(&format!("{line} {model}")).result();
    tensors(&desk.path("dump.safetensors")).0.into_iter().map(|(name, tensor)| (name, tensor.bytes)).collect()
}

#[test]
fn one_file_and_shards_are_the_same_model_as_the_folder() {
    let desk = Desk::new();
    desk.run(&format!("{TRAIN} --steps 2 --lr 0.1 --token <a> --out a.safetensors")).result();
    desk.run("merge a.safetensors:2 --into starter --out folder").result();
    desk.run("merge a.safetensors:2 --into starter --out single.safetensors").result();
    let whole = latents(&desk, "folder");
    assert_ne!(whole, latents(&desk, "starter"));
    assert_eq!(whole, latents(&desk, "single.safetensors"));
    let report = desk.run("inspect single.safetensors").result();
    assert_eq!((&report["kind"], &report["name"]), (&json!("model"), &json!("single")));
    assert_eq!(report["prediction"], "v_prediction");
    // An adapter is taught on the file as on the folder.
    let line = format!("{TRAIN} --steps 1 --token <b> --out b.safetensors --model");
    desk.run(&format!("{line} single.safetensors")).result();
    assert_eq!(desk.run("inspect b.safetensors").result()["base"], "single");

    let unet = desk.path(&format!("folder/unet/{UNET}.safetensors"));
    let (content, metadata) = tensors(&unet);
    let middle = content.keys().nth(content.len() / 2).unwrap().clone();
    let mut first = content.clone();
    let second = first.split_off(&middle);
    let mut map = serde_json::Map::new();
    for (name, part) in [("1-of-2", first), ("2-of-2", second)] {
        let file = format!("{UNET}-{name}.safetensors");
        map.extend(part.keys().map(|tensor| (tensor.clone(), json!(file))));
        safetensors::save(&unet.with_file_name(&file), &part, &metadata).unwrap();
    }
    std::fs::remove_file(&unet).unwrap();
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    desk.write(&format!("folder/unet/{UNET}.safetensors.index.json"), index);
    assert_eq!(whole, latents(&desk, "folder"));
    std::fs::remove_file(unet.with_file_name(format!("{UNET}-2-of-2.safetensors"))).unwrap();
    let failure = desk.run("sample --model folder --steps 1 --prompt x --out y.png").failure();
    assert!(failure.ends_with(&format!("{UNET}-2-of-2.safetensors")), "{failure}");
}

/// Every tensor that is missing, superfluous or misshapen is told at once, under the name that our tables give it.
/// What is done to a file's tensors.
type Fault = fn(&mut BTreeMap<String, Tensor>);

#[test]
fn a_single_file_with_faults_is_a_sentence() {
    let desk = Desk::new();
    desk.run(&format!("{TRAIN} --steps 1 --token <a> --out a.safetensors")).result();
    desk.run("merge a.safetensors:0 --into starter --out m.safetensors").result();
    let whole = desk.read("m.safetensors");
    let cases: [(Fault, &str); 4] = [
        (|t| drop(t.remove("model.diffusion_model.time_embed.0.bias")), "time_embedding.linear_1.bias is missing"),
        (
            |t| drop(t.insert("model.diffusion_model.attic.bias".into(), Tensor::new(Dtype::F32, &[1], &[0.0]))),
            "attic.bias is not part of this model",
        ),
        (
            |t| drop(t.insert("optimizer.step".into(), Tensor::new(Dtype::F32, &[1], &[0.0]))),
            "a tensor that no SD 1.x model has, such as optimizer.step",
        ),
        (
            |t| {
                drop(
                    t.insert("first_stage_model.quant_conv.bias".into(), Tensor::new(Dtype::F32, &[8], &[f32::NAN; 8])),
                );
            },
            "quant_conv.bias holds NaN or infinite numbers",
        ),
    ];
    for (change, words) in cases {
        desk.write("m.safetensors", &whole);
        desk.edit("m.safetensors", change);
        let failure = desk.run("sample --model m.safetensors --steps 1 --prompt x --out x.png").failure();
        assert!(failure.contains(words) && failure.ends_with("m.safetensors"), "{words}: {failure}");
        assert!(!desk.path("x.png").exists());
    }
    // What is no weight is no fault.
    desk.write("m.safetensors", &whole);
    desk.edit("m.safetensors", |t| {
        for name in ["model_ema.decay", "alphas_cumprod", "cond_stage_model.logit_scale"] {
            t.insert(name.into(), Tensor::new(Dtype::F32, &[1], &[f32::NAN]));
        }
    });
    desk.run("sample --model m.safetensors --steps 1 --prompt x --out x.png").result();
}
