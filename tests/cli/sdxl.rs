//! SDXL and SD 2.x by the command line: painted, taught, merged into a folder and a file, all on models small enough for a
//! test.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use triptych::engine::io::open_clip;
use triptych::engine::io::safetensors::Tensor;

use crate::command::{Desk, tensors};

const TRAIN: &str = "train --model xl --concept robot --class robot --batch 1 --set rank=2 --set prior=1 --lr 0.01 \
                     --set targets=attention,text,resnet,resample";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.copy("tests/reference/sdxl", "xl");
    desk
}

/// The latents a prompt ends in.
fn latents(desk: &Desk, line: &str) -> Tensor {
    desk.run(&format!("sample --steps 2 --seed 3 --out x.png --dump dump.safetensors {line}")).result();
    tensors(&desk.path("dump.safetensors")).0.remove("latents").expect("latents are dumped")
}

#[test]
fn an_adapter_has_the_names_that_other_programs_look_for() {
    let desk = desk();
    let report = desk.run(&format!("{TRAIN} --steps 3 --token <a> --out a.safetensors")).result();
    assert!(report["parameters"].as_u64() > Some(0), "{report}");
    let (content, metadata) = tensors(&desk.path("a.safetensors"));
    let modules: BTreeSet<&str> = content.keys().filter_map(|key| key.strip_suffix(".alpha")).collect();
    for module in [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_in_layers_2",
        "lora_unet_middle_block_1_transformer_blocks_2_attn2_to_out_0",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_k",
        "lora_unet_output_blocks_2_2_conv",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_2_mlp_fc2",
    ] {
        assert!(modules.contains(module), "{module} is not among {modules:?}");
    }
    assert!(modules.iter().all(|module| !module.contains("_blocks_0_attentions_") && !module.contains("lora_te_")));
    for (key, width) in [("bundle_emb.<a>.clip_l", 16), ("bundle_emb.<a>.clip_g", 16)] {
        assert_eq!(content[key].shape[1], width, "{key}");
    }
    assert_eq!(metadata["ss_base_model_version"], "sdxl_base_v1-0");
    assert_eq!(metadata["modelspec.architecture"], "stable-diffusion-xl-v1-base/lora");
    assert_eq!(desk.run("inspect a.safetensors").result()["family"], "SDXL");

    // The words and every network take part in the picture.
    let plain = latents(&desk, "--model xl --prompt 'a robot'");
    let with = latents(&desk, "--model xl --prompt 'a <a> robot' --adapter a.safetensors");
    assert_ne!(plain.bytes, with.bytes);
    assert_ne!(latents(&desk, "--model xl --prompt 'a <a> robot' --adapter a.safetensors:1:0").bytes, with.bytes);
    let failure = desk.run("sample --steps 1 --prompt x --adapter a.safetensors --out y.png").failure();
    assert!(failure.contains("made for another model than starter (it is for SDXL)"), "{failure}");
}

/// diffusers names an SDXL adapter's layers by its own paths.
#[test]
fn an_adapter_by_diffusers_paths_is_the_same() {
    let desk = desk();
    desk.run(&format!("{TRAIN} --steps 2 --token <a> --out a.safetensors")).result();
    let expected = latents(&desk, "--model xl --prompt 'a robot' --adapter a.safetensors");
    desk.edit("a.safetensors", |content| {
        let renamed = |key: &String| {
            key.replace("input_blocks_4_1_", "down_blocks_1_attentions_0_")
                .replace("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv")
                .replace("middle_block_1_", "mid_block_attentions_0_")
                .replace("lora_te1_", "lora_te_")
        };
        *content = std::mem::take(content).into_iter().map(|(key, tensor)| (renamed(&key), tensor)).collect();
    });
    assert_eq!(latents(&desk, "--model xl --prompt 'a robot' --adapter a.safetensors").bytes, expected.bytes);
}

/// PEFT's folders of the networks do not name each other, and only one of them tells the family.
#[test]
fn an_adapter_in_pefts_folders_is_the_same() {
    let desk = desk();
    desk.run(&format!("{TRAIN} --steps 2 --token <a> --out a.safetensors")).result();
    desk.run("convert a.safetensors --to peft --model xl --out p").result();
    let modules = |name: &str| desk.lora(name).modules().into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(modules("p"), modules("a.safetensors"));
    assert_eq!(desk.run("inspect p").result()["family"], "SDXL");
    let of = |adapter: &str| latents(&desk, &format!("--model xl --prompt 'a robot' --adapter {adapter}")).bytes;
    assert_eq!(of("p"), of("a.safetensors"));
    // A layer is one layer, whichever tool named it.
    desk.run("merge p a.safetensors --out both.safetensors").result();
    assert_eq!(modules("both.safetensors"), modules("a.safetensors"));
}

#[test]
fn a_merged_model_is_the_same_as_folder_and_as_file() {
    let desk = desk();
    desk.run(&format!("{TRAIN} --steps 2 --token <a> --out a.safetensors")).result();
    desk.run("merge a.safetensors:2 --into xl --out folder").result();
    desk.run("merge a.safetensors:2 --into xl --out file.safetensors").result();
    let of = |model: &str| latents(&desk, &format!("--model {model} --prompt 'a robot'")).bytes;
    assert_ne!(of("folder"), of("xl"));
    assert_eq!(of("folder"), of("file.safetensors"));
    let (content, metadata) = tensors(&desk.path("file.safetensors"));
    assert_eq!(metadata["modelspec.architecture"], "stable-diffusion-xl-v1-base");
    let (names, fused) = ("conditioner.embedders.1.model.", "transformer.resblocks.0.attn.in_proj_weight");
    assert_eq!(content[&format!("{names}{fused}")].shape, [48, 16]);
    // From that file into another: the fused and the turned tensors take the adapter in as well.
    desk.run("merge a.safetensors:-2 --into file.safetensors --out back.safetensors").result();
    let back = tensors(&desk.path("back.safetensors")).0;
    assert_eq!(back.keys().collect::<Vec<_>>(), content.keys().collect::<Vec<_>>());
    let name = format!("{names}{fused}");
    assert_ne!(back[&name].bytes, content[&name].bytes);
    let report = desk.run("inspect file.safetensors").result();
    assert_eq!((&report["kind"], &report["prediction"]), (&json!("model"), &json!("epsilon")));
    // Its words come as textual inversions for two encoders.
    let words = tensors(&desk.path("folder/embeddings/a.safetensors")).0;
    assert_eq!(words.keys().collect::<Vec<_>>(), ["clip_g", "clip_l"]);
}

#[test]
fn a_single_file_says_that_it_predicts_v() {
    let desk = desk();
    desk.run(&format!("{TRAIN} --steps 1 --token <a> --out a.safetensors")).result();
    desk.run("merge a.safetensors:0 --into xl --out file.safetensors").result();
    std::fs::remove_file(desk.path("file/scheduler/scheduler_config.json")).unwrap();
    for (mark, prediction) in [("none", "epsilon"), ("v_pred", "v_prediction")] {
        if mark != "none" {
            desk.edit("file.safetensors", |content| {
                content.insert(mark.into(), Tensor::new(triptych::engine::io::Dtype::F16, &[0], &[]));
            });
        }
        assert_eq!(desk.run("inspect file.safetensors").result()["prediction"], prediction);
    }
}

/// SD 2.x is SD 1.x with other settings: linear projections, another text encoder, v, prompts filled up with `!`.
#[test]
fn sd2_is_a_matter_of_configuration() {
    let desk = Desk::new();
    desk.copy("tests/reference/sd", "sd1");
    desk.copy("tests/reference/sd", "sd2");
    let set = |name: &str, key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&desk.read(name)).unwrap();
        config[key] = value;
        desk.write(name, config.to_string());
    };
    set("sd2/unet/config.json", "use_linear_projection", json!(true));
    let of = |model: &str| latents(&desk, &format!("--model {model} --prompt 'a robot'")).bytes;
    assert_eq!(of("sd2"), of("sd1"), "a 1×1 convolution is a linear layer");
    set("sd2/text_encoder/config.json", "hidden_act", json!("gelu"));
    set("sd2/scheduler/scheduler_config.json", "prediction_type", json!("v_prediction"));
    let filled_up_with_the_end = of("sd2");
    assert_ne!(filled_up_with_the_end, of("sd1"));
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        set(&format!("sd2/tokenizer/{file}"), "pad_token", json!("!"));
    }
    assert_ne!(of("sd2"), filled_up_with_the_end);
    assert_eq!(desk.run("inspect sd2").result()["prediction"], "v_prediction");
    desk.run(&format!("{TRAIN} --steps 1 --token <a> --out a.safetensors").replace("--model xl", "--model sd2"))
        .result();
    assert_eq!(desk.run("inspect a.safetensors").result()["base"], "sd2");

    // As a single file: OpenCLIP's names, and the layer that is never read.
    desk.run("merge a.safetensors:0 --into sd2 --out one.safetensors").result();
    desk.edit("one.safetensors", |content| {
        const PREFIX: &str = "cond_stage_model.transformer.";
        let ours: Vec<String> = content.keys().filter(|name| name.starts_with(PREFIX)).cloned().collect();
        let mut parts: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
        for name in ours {
            let (tensor, name) = (content.remove(&name).unwrap(), name[PREFIX.len()..].to_owned());
            let last = name.contains("encoder.layers.2.").then(|| name.replace("layers.2.", "layers.3."));
            for name in last.into_iter().chain([name]) {
                parts.entry(open_clip::stored(&name).unwrap()).or_default().push((name, tensor.clone()));
            }
        }
        let fused = parts.into_iter().map(|(name, parts)| (name, open_clip::fuse(parts).unwrap()));
        content.extend(fused.map(|(name, tensor)| (format!("cond_stage_model.model.{name}"), tensor)));
    });
    assert_eq!(of("one.safetensors"), of("sd2"));
}
