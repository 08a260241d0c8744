//! Whatever is given to it: one sentence with advice and the file's name, exit code 1, nothing overwritten, no panic.

mod command;

use std::collections::BTreeMap;

use command::{Desk, TRAIN, tensors, tree};
use half::f16;
use serde_json::{Value, json};
use triptych::engine::io::safetensors::{self, Dtype, Tensor};

const UNET: &str = "sd/unet/diffusion_pytorch_model.safetensors";
const LAYER: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";

/// A whole adapter of the starter model, to be spoiled.
fn adapter(desk: &Desk) {
    desk.run(&format!("{TRAIN} --steps 2 --token <a> --out a.safetensors")).result();
}

fn f32s(shape: &[usize], value: f32) -> Tensor {
    Tensor::new(Dtype::F32, shape, &vec![value; shape.iter().product()])
}

fn bytes(shape: &[usize]) -> Tensor {
    Tensor { dtype: Dtype::U8, shape: shape.to_vec(), bytes: vec![7; shape.iter().product()] }
}

fn save(desk: &Desk, name: &str, tensors: &[(&str, Tensor)]) {
    let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    safetensors::save(&desk.path(name), &tensors, &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}"));
}

type Change = fn(&mut BTreeMap<String, Tensor>);

#[test]
fn a_spoiled_adapter_is_refused_by_every_command_that_takes_one() {
    let desk = Desk::new();
    adapter(&desk);
    let whole = desk.read("a.safetensors");
    let not_whole = "This is not a whole safetensors file";
    let files: &[(&str, Vec<u8>, &str)] = &[
        ("empty", Vec::new(), not_whole),
        ("cut in its header", whole[..100].to_vec(), not_whole),
        ("cut in its tensors", whole[..whole.len() - 1000].to_vec(), "fetch or export it again"),
        ("longer than promised", [&whole[..], b"more"].concat(), "file not fully covered"),
        ("a huge header", [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat(), not_whole),
        ("a header larger than the file", [&(1_u64 << 26).to_le_bytes()[..], &whole[8..]].concat(), not_whole),
        ("a header of noise", [&whole[..8], &vec![0xA5; whole.len() - 8]].concat(), not_whole),
        ("a zipped pickle", b"PK\x03\x04 archive/data.pkl and what it would run".to_vec(), "convert it to safetensors"),
        ("a bare pickle", b"\x80\x02}q\x00X\x04\x00\x00\x00evilq\x01".to_vec(), "convert it to safetensors"),
        ("a picture", std::fs::read(tree("assets/concepts/kenney_robot/idle.png")).unwrap(), not_whole),
    ];
    let changes: &[(&str, Change, &str)] = &[
        ("nothing", BTreeMap::clear, "holds no adapter"),
        ("one side", |t| drop(t.remove(&format!("{LAYER}.lora_up.weight"))), "its up side is missing"),
        ("NaN", |t| drop(t.insert(format!("{LAYER}.lora_up.weight"), f32s(&[128, 2], f32::NAN))), "it holds NaN"),
        (
            "infinite in f16",
            |t| {
                let up = Tensor::new(Dtype::F16, &[128, 2], &[f16::INFINITY.to_f32(); 256]);
                t.insert(format!("{LAYER}.lora_up.weight"), up);
            },
            "it holds NaN or infinite",
        ),
        (
            "NaN as alpha",
            |t| drop(t.insert(format!("{LAYER}.alpha"), f32s(&[], f32::NAN))),
            "its alpha is not a number",
        ),
        ("whole numbers", |t| drop(t.insert(format!("{LAYER}.lora_up.weight"), bytes(&[128, 2]))), "is stored as U8"),
        (
            "sides of two ranks",
            |t| drop(t.insert(format!("{LAYER}.lora_up.weight"), f32s(&[128, 3], 0.1))),
            "do not belong together",
        ),
        ("no axes", |t| drop(t.insert(format!("{LAYER}.lora_up.weight"), f32s(&[], 0.1))), "do not belong together"),
        (
            "rank 0",
            |t| {
                t.insert(format!("{LAYER}.lora_up.weight"), f32s(&[128, 0], 0.0));
                t.insert(format!("{LAYER}.lora_down.weight"), f32s(&[0, 128], 0.0));
            },
            "is empty",
        ),
        (
            "half a LoHa",
            |t| drop(t.insert(format!("{LAYER}.hada_w1_a"), f32s(&[128, 2], 0.1))),
            "cannot be read with the rest",
        ),
        (
            "a stranger",
            |t| drop(t.insert("optimizer.step".into(), f32s(&[1], 0.1))),
            "cannot be read with the rest: optimizer.step",
        ),
        ("a broken word", |t| drop(t.insert("bundle_emb.<a>.clip_l".into(), f32s(&[1, 128], f32::NAN))), "are damaged"),
        (
            "a word without a name",
            |t| drop(t.insert("bundle_emb..clip_l".into(), f32s(&[1, 128], 0.1))),
            "cannot be read with the rest",
        ),
    ];
    let refused = |case: &str, words: &str| {
        for line in [
            "inspect bad.safetensors",
            "spectrum bad.safetensors",
            "overlap a.safetensors bad.safetensors",
            "merge a.safetensors bad.safetensors --out out.safetensors",
            "sample --steps 1 --prompt x --adapter bad.safetensors --out out.png",
        ] {
            let failure = desk.refuses(line);
            assert!(failure.contains(words) && failure.ends_with("bad.safetensors"), "{case}, {line}: {failure}");
        }
    };
    for name in ["out.safetensors", "out.png"] {
        desk.write(name, "an earlier file");
    }
    for (case, content, words) in files {
        desk.write("bad.safetensors", content);
        refused(case, words);
    }
    for (case, change, words) in changes {
        desk.write("bad.safetensors", &whole);
        desk.edit("bad.safetensors", change);
        refused(case, words);
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_where_the_model_is_known() {
    let desk = Desk::new();
    adapter(&desk);
    std::fs::copy(tree("tests/reference/lora_kohya.safetensors"), desk.path("other.safetensors")).unwrap();
    desk.run("inspect other.safetensors").result();
    for name in ["x.safetensors", "x.png"] {
        desk.write(name, "an earlier file");
    }
    let sample = "sample --steps 1 --prompt x --out x.png --adapter";
    let failure = desk.refuses(&format!("{sample} other.safetensors"));
    assert!(failure.contains("made for another model than starter") && failure.contains("in the adapter"), "{failure}");
    let failure = desk.refuses("merge a.safetensors other.safetensors --out x.safetensors");
    assert!(failure.contains("(layer lora_") && failure.contains("made for the same model"), "{failure}");
    // Layers that no model has, and a word of another width.
    desk.write("b.safetensors", desk.read("a.safetensors"));
    desk.edit("b.safetensors", |t| drop(t.insert("bundle_emb.<a>.clip_l".into(), f32s(&[1, 32], 0.1))));
    assert!(desk.refuses(&format!("{sample} b.safetensors")).contains("vectors of another width"));
    let (down, up) = (f32s(&[2, 64], 0.1), f32s(&[64, 2], 0.1));
    save(&desk, "c.safetensors", &[("lora_unet_attic.lora_down.weight", down), ("lora_unet_attic.lora_up.weight", up)]);
    assert!(desk.refuses(&format!("{sample} c.safetensors")).contains("it has no layer lora_unet_attic"));
}

#[test]
fn an_adapter_that_lies_about_its_slot_gets_no_certificate() {
    let desk = Desk::new();
    adapter(&desk);
    desk.run(&format!("{TRAIN} --steps 2 --token <b> --out b.safetensors")).result();
    let (content, metadata) = tensors(&desk.path("b.safetensors"));
    let cases = [
        ("triptych.slot", "0", "is not in the slot it claims"),
        ("triptych.slot", "many", "Its metadata is damaged"),
        ("triptych.slot", "99999999999999", "There is no slot 99999999999999"),
        ("triptych.basis", "slots", "this program cannot read"),
        ("triptych.basis", "slots v2 seed 0 block 8", "slots v2 seed 0 block 8"),
        ("triptych.basis", "slots v1 seed 0 block 0", "block 0"),
    ];
    for (key, value, words) in cases {
        let mut lie = metadata.clone();
        lie.insert(key.into(), value.into());
        safetensors::save(&desk.path("b.safetensors"), &content, &lie).unwrap();
        let failure = desk.refuses("merge a.safetensors b.safetensors --out x.safetensors");
        assert!(failure.contains(words), "{key} {value}: {failure}");
        let alone = "merge b.safetensors --out x.safetensors";
        assert!(value.starts_with("slots v1") || !desk.refuses(alone).is_empty(), "{key} {value}");
    }
}

#[test]
fn a_file_of_a_methods_own_must_fit_the_model() {
    let desk = Desk::new();
    desk.run(&format!("{TRAIN} --method mola --steps 2 --token <a> --out a.safetensors")).result();
    let (content, metadata) = tensors(&desk.path("a.safetensors"));
    let key = |part: &str| content.keys().find(|name| name.ends_with(part)).unwrap().clone();
    for (part, shape) in [("mola_router", [0, 64]), ("mola_router", [1, 1]), ("mola_up", [3, 2]), ("mola_down", [2, 3])]
    {
        let mut spoiled = content.clone();
        let values = vec![0.5; shape[0] * shape[1]];
        spoiled.insert(key(part), Tensor::new(Dtype::F32, &shape, &values));
        safetensors::save(&desk.path("b.safetensors"), &spoiled, &metadata).unwrap();
        let failure = desk.refuses("sample --adapter b.safetensors --steps 1 --prompt x --out x.png");
        assert!(failure.contains("do not fit") || failure.contains("another model"), "{part} {shape:?}: {failure}");
    }
    let mut lie = metadata.clone();
    lie.insert("triptych.method".into(), "lora".into());
    safetensors::save(&desk.path("b.safetensors"), &content, &lie).unwrap();
    let failure = desk.refuses("sample --adapter b.safetensors --steps 1 --prompt x --out x.png");
    assert!(failure.contains("how its adapter works"), "{failure}");
    // It cannot be merged, and the way out is named.
    let failure = desk.refuses("merge a.safetensors --out x.safetensors");
    assert!(failure.contains("depends on the picture"), "{failure}");
}

/// A model folder that is spoiled by `change`: what `sample` and `train` say of it.
fn model(case: &str, change: impl FnOnce(&Desk)) -> String {
    let desk = Desk::new();
    desk.copy("tests/reference/sd", "sd");
    for name in ["x.safetensors", "x.png"] {
        desk.write(name, "an earlier file");
    }
    change(&desk);
    let failure = desk.refuses("sample --model sd --steps 1 --prompt x --out x.png");
    let training = desk.refuses(&format!("{TRAIN} --model sd --out x.safetensors"));
    assert_eq!(training, failure, "{case}");
    failure
}

#[test]
fn one_error_names_every_fault_of_the_weights() {
    let failure = model("faults", |desk| {
        desk.edit(UNET, |t| {
            t.remove("conv_in.bias").unwrap();
            t.remove("mid_block.attentions.0.proj_in.weight").unwrap();
            t.insert("conv_out.weight".into(), f32s(&[4, 16, 5, 5], 0.1)).unwrap();
            t.insert("time_embedding.linear_1.bias".into(), bytes(&[64])).unwrap();
            t.insert("mid_block.attentions.1.proj_in.weight".into(), f32s(&[32, 32], 0.1));
        });
    });
    for fault in [
        "conv_in.bias is missing",
        "mid_block.attentions.0.proj_in.weight is missing",
        "conv_out.weight is [4, 16, 5, 5] instead of [4, 16, 3, 3]",
        "time_embedding.linear_1.bias” is stored as U8",
        "mid_block.attentions.1.proj_in.weight is not part of this model",
    ] {
        assert!(failure.contains(fault), "{fault}: {failure}");
    }
    assert!(failure.contains("Check that the weights and config.json belong together") && failure.ends_with(UNET));
    // So many that nobody would read them are counted.
    let failure = model("empty", |desk| desk.edit(UNET, BTreeMap::clear));
    assert!(failure.contains("is missing; and ") && failure.len() < 2000, "{failure}");
}

/// One fault of a model folder.
enum Spoil {
    /// Fields of a JSON file.
    Config(&'static str, Value),
    Content(&'static str, &'static [u8]),
    Gone(&'static str),
    Weights(Change),
}

fn spoil(desk: &Desk, fault: Spoil) {
    match fault {
        Spoil::Config(name, changes) => {
            let mut config: Value = serde_json::from_slice(&desk.read(name)).unwrap_or_default();
            for (key, value) in changes.as_object().into_iter().flatten() {
                config[key] = value.clone();
            }
            desk.write(name, config.to_string());
        }
        Spoil::Content(name, content) => desk.write(name, content),
        Spoil::Gone(name) => std::fs::remove_file(desk.path(name)).unwrap_or_else(|e| panic!("{name}: {e}")),
        Spoil::Weights(change) => desk.edit(UNET, change),
    }
}

#[test]
fn a_model_folder_with_a_fault_is_a_sentence() {
    use Spoil::{Config, Content, Gone, Weights};
    let unet = |changes| Config("sd/unet/config.json", changes);
    let text = |changes| Config("sd/text_encoder/config.json", changes);
    let schedule = |changes| Config("sd/scheduler/scheduler_config.json", changes);
    let cases = [
        (Content("sd/unet/config.json", b"{\"in_channels\": 4, "), "The configuration cannot be read"),
        (Content("sd/vae/config.json", b"\xff\xfe{}"), "The file is not text"),
        (Content("sd/unet/config.json", b"{}"), "missing field"),
        (Gone("sd/text_encoder/config.json"), "Could not read"),
        (unet(json!({ "block_out_channels": "wide" })), "invalid type"),
        (unet(json!({ "addition_embed_type": "text_time" })), "pooled text and of its sizes"),
        (unet(json!({ "norm_num_groups": 0 })), "do not divide into 0 groups"),
        (unet(json!({ "attention_head_dim": 3 })), "do not divide into 3 heads"),
        (unet(json!({ "down_block_types": ["A", "B", "C", "D"] })), "the block “A”"),
        (unet(json!({ "cross_attention_dim": 64 })), "instead of [16, 64]"),
        // Would need more memory than there is, if it were believed.
        (unet(json!({ "block_out_channels": [16, 16, 32, 3_200_000] })), "instead of [3200000"),
        (text(json!({ "hidden_act": "relu" })), "the activation “relu”"),
        (text(json!({ "vocab_size": 100 })), "instead of [100, 32]"),
        (schedule(json!({ "prediction_type": "sample" })), "prediction type “sample”"),
        (schedule(json!({ "beta_schedule": "sigmoid" })), "noise schedule “sigmoid”"),
        (schedule(json!({ "num_train_timesteps": 0 })), "Check scheduler_config.json"),
        (Gone("sd/tokenizer/vocab.json"), "Put the model's own tokenizer"),
        (Content("sd/tokenizer/vocab.json", b"{\"a\": 0}"), "The vocabulary lacks"),
        (Gone(UNET), "The model folder is incomplete"),
        (Content(UNET, b"\x10\0\0\0\0\0\0\0{\"cut\":"), "The file is cut short"),
        (Content(UNET, b"PK\x03\x04 a pickle"), "convert it to safetensors"),
    ];
    for (fault, words) in cases {
        let failure = model(words, |desk| spoil(desk, fault));
        assert!(failure.contains(words), "{words}: {failure}");
    }
    let failure = model("a LoRA as weights", |desk| {
        std::fs::copy(tree("tests/reference/lora_kohya.safetensors"), desk.path(UNET)).map(drop).unwrap();
    });
    assert!(failure.contains("norm1.weight is missing; ") && failure.ends_with(UNET), "{failure}");
    let failure = model("nine channels in", |desk| {
        spoil(desk, unet(json!({ "in_channels": 9 })));
        spoil(desk, Weights(|t| drop(t.insert("conv_in.weight".into(), f32s(&[16, 9, 3, 3], 0.1)))));
    });
    assert!(failure.contains("Models for inpainting"), "{failure}");
}

#[test]
fn weights_that_are_not_numbers_or_not_whole_are_a_sentence_for_every_part() {
    for file in [UNET, "sd/vae/diffusion_pytorch_model.safetensors", "sd/text_encoder/model.safetensors"] {
        let mut spoiled = String::new();
        let failure = model("NaN", |desk| {
            desk.edit(file, |tensors| {
                let (name, tensor) = tensors.iter_mut().find(|(name, _)| name.ends_with("bias")).unwrap();
                spoiled.clone_from(name);
                *tensor = f32s(&tensor.shape, f32::NAN);
            });
        });
        let last = spoiled.rsplit('.').take(2).collect::<Vec<_>>();
        let named = format!("{}.{} holds NaN or infinite numbers", last[1], last[0]);
        assert!(failure.contains(&named) && failure.ends_with(file), "{failure}");

        let whole = std::fs::read(tree("tests/reference").join(file)).unwrap();
        for (case, content) in [
            ("cut in its header", whole[..100].to_vec()),
            ("cut in its tensors", whole[..whole.len() - 1000].to_vec()),
            ("a huge header", [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()),
            ("a header larger than the file", [&(1_u64 << 26).to_le_bytes()[..], &whole[8..]].concat()),
        ] {
            let failure = model(case, |desk| desk.write(file, &content));
            assert!(failure.contains("not a whole safetensors file") && failure.ends_with(file), "{case}: {failure}");
        }
    }
}

#[test]
fn given_latents_must_be_latents() {
    let desk = Desk::new();
    let cases = [
        ("noise", f32s(&[1, 4, 8, 8], 0.1), "The tensor “latents” is missing"),
        ("latents", f32s(&[4, 8, 8], 0.1), "does not have four axes"),
        ("latents", f32s(&[1, 3, 8, 8], 0.1), "They must be [n, 4, height, width]"),
        ("latents", f32s(&[0, 4, 8, 8], 0.1), "They must be [n, 4, height, width]"),
        ("latents", f32s(&[1, 4, 8, 8], f32::INFINITY), "NaN or infinite"),
        ("latents", bytes(&[1, 4, 8, 8]), "is stored as U8"),
    ];
    desk.write("x.png", "an earlier file");
    for (name, tensor, words) in cases {
        save(&desk, "start.safetensors", &[(name, tensor)]);
        let failure = desk.refuses("sample --steps 1 --prompt x --latents start.safetensors --out x.png");
        assert!(failure.contains(words), "{words}: {failure}");
    }
}

#[test]
fn a_folder_without_a_usable_picture_is_a_sentence() {
    let desk = Desk::new();
    let picture = desk.read("robot/idle.png");
    std::fs::create_dir(desk.path("empty")).unwrap();
    desk.write("x.safetensors", "an earlier file");
    desk.write("prose/a.txt", "a caption of nothing");
    desk.write("torn/a.png", &picture[..picture.len() / 2]);
    desk.write("raw/a.heic", "....ftypheic");
    desk.write("zero/a.jpg", "");
    let cases = [
        ("empty", "There are no pictures in this folder"),
        ("prose", "There are no pictures in this folder"),
        ("torn", "a.png: The picture is damaged"),
        ("raw", "a.heic: The file is not a picture that Triptych can read"),
        ("zero", "a.jpg: The file is empty"),
    ];
    for (folder, words) in cases {
        for line in [format!("inspect {folder}"), format!("train --concept {folder} --out x.safetensors")] {
            let failure = desk.refuses(&line);
            assert!(failure.contains(words) && failure.contains("Put 5 to 20 pictures"), "{line}: {failure}");
            assert!(failure.ends_with(folder), "{line}: {failure}");
        }
    }
}

#[test]
fn odd_pictures_train_and_broken_ones_are_left_out_by_name() {
    let desk = Desk::new();
    let whole = desk.read("robot/idle.png");
    desk.write("robot/torn.png", &whole[..whole.len() / 2]);
    desk.write("robot/latin.txt", b"ein gr\xfcner K\xe4fer");
    desk.write("robot/latin.png", &whole);
    let report = desk.run("inspect robot").result();
    assert_eq!((&report["pictures"], report["skipped"].as_array().unwrap().len()), (&json!(3), 2), "{report}");
    let done = desk.run(&format!("{TRAIN} --steps 2 --out a.safetensors"));
    done.result();
    for (name, why) in [("torn.png was left out", "damaged"), ("latin.txt was left out", "UTF-8")] {
        let notes = done.notes();
        assert!(notes.lines().any(|line| line.contains(name) && line.contains(why)), "{name}: {notes}");
    }
    // One pixel, one row, one column, one transparent point: each is a picture.
    for (width, height) in [(1, 1), (500, 1), (1, 500)] {
        std::fs::create_dir_all(desk.path("one")).unwrap();
        let picture = image::RgbaImage::from_pixel(width, height, image::Rgba([200, 30, 30, 0]));
        picture.save(desk.path("one/a.png")).unwrap();
        for fit in ["pad", "crop"] {
            let line = format!("{TRAIN} --steps 2 --set fit={fit} --out one.safetensors");
            desk.run(&line.replace("--concept robot", "--concept one")).result();
        }
    }
}

#[test]
fn training_that_runs_off_names_a_layer_and_keeps_what_was_there() {
    let desk = Desk::new();
    desk.write("out.safetensors", "an earlier file");
    // A thousand times what anyone would choose, on every layer there is.
    let line = "train --concept robot --class robot --batch 1 --steps 20 --method lora --set rank=1 --set alpha=4096 \
                --lr 1 --set clip=0 --set targets=* --set save_every=1 --out out.safetensors";
    let done = desk.run(line);
    let failure = done.failure();
    assert!(failure.contains("Training became unstable at step "), "{failure}");
    assert!(failure.contains("furthest in lora_") && failure.contains("Lower lr and token_lr"), "{failure}");
    assert_eq!(desk.read("out.safetensors"), b"an earlier file");
    let steps = done.lines().iter().filter(|line| line["event"] == "step").count();
    assert!(steps < 20, "it never ran off");
    // The last state that was saved is a sound one: it can be opened and holds numbers only.
    let (state, _) = tensors(&desk.path("out.safetensors.state/state.safetensors"));
    let sound = |tensor: &Tensor| tensor.bytes.as_chunks().0.iter().all(|b| f32::from_le_bytes(*b).is_finite());
    assert!(!state.is_empty() && state.values().all(sound));
}

#[test]
fn a_damaged_state_is_a_sentence() {
    let desk = Desk::new();
    let line = format!("{TRAIN} --method lora --steps 30 --set save_every=1 --out a.safetensors --resume");
    let state = "a.safetensors.state/state.safetensors";
    let mut running = desk.start(&line);
    assert!(running.reaches(2));
    assert_eq!(running.interrupt().code(), Some(130));
    let whole = desk.read(state);
    for content in [&b""[..], b"not tensors", &whole[..whole.len() - 100], &whole[..50]] {
        desk.write(state, content);
        let failure = desk.refuses(&line);
        assert!(
            failure.contains("not a whole safetensors file") && failure.ends_with("state.safetensors"),
            "{failure}"
        );
    }
    let changes: [Change; 3] = [
        |t| t.values_mut().filter(|t| t.shape.len() == 2).for_each(|t| *t = f32s(&t.shape, f32::NAN)),
        |t| t.values_mut().filter(|t| t.shape.len() == 2).for_each(|t| *t = f32s(&[1, 1], 0.5)),
        |t| t.retain(|name, _| !name.starts_with("mean")),
    ];
    for change in changes {
        desk.write(state, &whole);
        desk.edit(state, change);
        let failure = desk.refuses(&line);
        assert!(failure.contains("damaged") || failure.contains("is missing"), "{failure}");
        assert!(failure.ends_with("state.safetensors"), "{failure}");
    }
    save(&desk, state, &[("losses", f32s(&[1], 0.5))]);
    assert!(desk.refuses(&line).contains("other settings, pictures or model"));
    // What it was can still be gone on from.
    desk.write(state, &whole);
    desk.run(&line).result();
}
