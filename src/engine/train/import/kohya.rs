//! sd-scripts' TOML (`--config_file`, `library/train_util.py`, `train_network.py`) and the JSON that `kohya_ss` saves
//! (`kohya_gui/lora_gui.py`). They share most names; where they differ, the JSON has the older ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Foreign, Imported, number, sides, token};
use crate::engine::train::configuration::Together;

/// What says where things lie, how fast it goes and what is logged.
const WITHOUT_EFFECT: &[&str] = &[
    "LoRA_type",
    "accelerate_config_file",
    "cache_latents",
    "cache_latents_to_disk",
    "caption_extension",
    "dynamo_backend",
    "dynamo_mode",
    "epoch",
    "extra_accelerate_launch_args",
    "full_bf16",
    "full_fp16",
    "gpu_ids",
    "gradient_checkpointing",
    "log_tracker_name",
    "log_with",
    "logging_dir",
    "lowram",
    "max_data_loader_n_workers",
    "max_token_length",
    "max_train_epochs",
    "max_train_steps",
    "mem_eff_attn",
    "mixed_precision",
    "model_list",
    "network_module",
    "num_cpu_threads_per_process",
    "num_machines",
    "num_processes",
    "persistent_data_loader_workers",
    "sample_sampler",
    "save_model_as",
    "save_state",
    "sdpa",
    "train_data_dir",
    "training_comment",
    "vae_batch_size",
    "xformers",
];

pub fn import(mut from: Foreign) -> Imported {
    model_and_pictures(&mut from);
    network(&mut from);
    rates(&mut from);
    length(&mut from);
    let batch = from.count("train_batch_size").unwrap_or(1);
    from.set("batch", batch);
    from.copy("gradient_accumulation_steps", "accumulate");
    from.copy_with_zero("max_grad_norm", "clip");
    from.copy("min_snr_gamma", "min_snr");
    from.copy("clip_skip", "clip_skip");
    from.copy("noise_offset", "noise_offset");
    from.copy("save_every_n_steps", "keep_every");
    from.copy("sample_every_n_steps", "sample_every");
    if from.flag("debiased_estimation_loss") {
        from.set("debiased", true);
    }
    match from.text("loss_type").as_deref() {
        None | Some("l2") => {}
        Some("l1") => from.set("loss", "absolute"),
        Some("huber") => {
            from.set("loss", "huber");
            let (c, schedule) = (from.number("huber_c"), from.text("huber_schedule"));
            if c.is_some_and(|c| (c - 0.1).abs() > 1e-9) || schedule.as_deref() != Some("constant") {
                from.miss("huber_c and huber_schedule: the constant 0.1 is used");
            }
        }
        Some(other) => from.miss(format!("loss_type = {other} has no counterpart: square is used")),
    }
    from.imported.configuration.seed = from.number("seed").filter(|seed| *seed >= 0.0).map(|seed| seed as u64);
    let flip = from.flag("flip_aug");
    from.set("flip", flip);
    frames(&mut from);
    masks(&mut from);
    if let Some(precision) = from.text("save_precision") {
        match precision.as_str() {
            "fp16" => from.set("dtype", "f16"),
            "bf16" => from.set("dtype", "bf16"),
            _ => {}
        }
    }
    prompts(&mut from);
    // Without regularisation pictures nothing of the base model is held there.
    match from.take("reg_data_dir") {
        Some(_) => from.miss("reg_data_dir: the model's own answers are kept instead, no pictures are needed (prior)"),
        None => from.set("prior", 0),
    }
    from.ignore(WITHOUT_EFFECT);
    from.ignore(&["prior_loss_weight", "output_dir", "output_name", "huber_c", "huber_schedule"]);
    from.finish()
}

fn model_and_pictures(from: &mut Foreign) {
    from.imported.configuration.model = from.text("pretrained_model_name_or_path");
    let out = from.text("output_name").map(|name| {
        let folder = from.text("output_dir").map(PathBuf::from).unwrap_or_default();
        folder.join(format!("{name}.safetensors"))
    });
    from.imported.configuration.out = out;
    let Some(folder) = from.rest.get("train_data_dir").and_then(Value::as_str).map(PathBuf::from) else { return };
    // `10_sks robot`: ten repeats, the word, the class. The pictures' own reader knows the repeats.
    let named = subfolders(&folder).into_iter().filter_map(|name| {
        let (repeats, rest) = name.split_once('_')?;
        repeats.parse::<usize>().ok()?;
        let (word, class) = rest.split_once(' ').unwrap_or((rest, ""));
        let class = Some(class.trim().to_owned()).filter(|class| !class.is_empty());
        Some(Together { concept: folder.join(&name), token: token(word), class, repeats: 1, weight: 1.0 })
    });
    let mut concepts: Vec<Together> = named.collect();
    let words: BTreeSet<&String> = concepts.iter().map(|concept| &concept.token).collect();
    // Folders of one word are one concept, and its reader looks into them all.
    let are_several = words.len() > 1 && words.len() == concepts.len();
    if words.len() > 1 && !are_several {
        from.miss("train_data_dir holds several concepts, some of the same word: they are learnt as one");
    }
    let configuration = &mut from.imported.configuration;
    configuration.concept = Some(folder);
    if concepts.is_empty() {
        return;
    }
    let first = concepts.remove(0);
    (configuration.token, configuration.class) = (Some(first.token), first.class);
    if are_several {
        (configuration.concept, configuration.together) = (Some(first.concept), concepts);
    }
}

/// Sizes and shapes of the pictures.
fn frames(from: &mut Foreign) {
    let buckets = from.flag("enable_bucket");
    from.set("fit", if buckets { "bucket" } else { "crop" });
    if from.flag("bucket_no_upscale") {
        from.set("upscale", false);
    }
    let usual = [("bucket_reso_steps", [64, 64]), ("min_bucket_reso", [256, 256]), ("max_bucket_reso", [1024, 2048])];
    for (key, usual) in usual {
        if let Some(side) = from.count(key).filter(|side| buckets && !usual.contains(side)) {
            from.miss(format!("{key} = {side}: buckets here reach from half the resolution to twice of it"));
        }
    }
    for key in ["resolution", "max_resolution"] {
        let Some(value) = from.take(key) else { continue };
        match sides(&value)[..] {
            [side] => from.set("resolution", side),
            [width, height] if width == height => from.set("resolution", width),
            // Of a frame that is not square, buckets keep the area.
            [width, height] if buckets => from.set("resolution", width.saturating_mul(height).isqrt() / 64 * 64),
            _ => from.miss(format!("{key} = {value}: without buckets, pictures are square here")),
        }
    }
}

/// Outside of its masks, sd-scripts counts nothing.
fn masks(from: &mut Foreign) {
    let (alpha, masked) = (from.flag("alpha_mask"), from.flag("masked_loss"));
    if !alpha && !masked {
        return;
    }
    from.set("mask", if alpha { "alpha" } else { "file" });
    from.set("unmasked_weight", 0);
    from.set("mask_normalise", false);
    if !alpha {
        from.miss("masked_loss: put each mask beside its picture, as NAME-masklabel.png");
    }
}

fn subfolders(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?).filter(|entry| entry.path().is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn network(from: &mut Foreign) {
    let kind = from.text("LoRA_type").or_else(|| from.text("network_module")).unwrap_or_default();
    from.imported.configuration.method = Some("lora".into());
    if !["", "Standard", "networks.lora", "LyCORIS/LoCon", "Kohya LoCon"].contains(&kind.as_str()) {
        from.miss(format!("The network {kind} is not known here: a plain LoRA is taught instead"));
    }
    from.copy("network_dim", "rank");
    // sd-scripts takes alpha 1 where none is said, and the rank for 0, as we do.
    from.rest.entry("network_alpha").or_insert(1.into());
    from.copy_with_zero("network_alpha", "alpha");
    let mut conv = from.take("conv_dim").is_some() && kind.contains("LoCon");
    from.ignore(&["conv_dim", "conv_alpha"]);
    from.copy("loraplus_lr_ratio", "up_rate_ratio");
    for argument in arguments(from, "network_args") {
        match argument.split_once('=') {
            Some(("conv_dim", _)) => conv = true,
            Some(("conv_alpha", _)) => {}
            Some(("loraplus_lr_ratio" | "loraplus_unet_lr_ratio", ratio)) => from.set("up_rate_ratio", ratio),
            _ => from.miss(format!("network_args {argument} has no counterpart")),
        }
    }
    let mut targets = vec!["attention", "feed_forward", "projections"];
    if conv {
        targets.extend(["resnet", "resample"]);
        from.miss("conv_dim: convolutions take the same rank and alpha as the other layers");
    }
    let [unet_only, text_only] =
        ["network_train_unet_only", "network_train_text_encoder_only"].map(|key| from.flag(key));
    let still = |key: &str| from.rest.get(key).is_some_and(|value| number(value) == Some(0.0));
    let rests = !unet_only && !still("text_encoder_lr");
    // kohya_ss writes 0 where it learns to the end, and -1 where it does not learn.
    let text = match from.number("stop_text_encoder_training") {
        Some(stop) if stop > 0.0 && rests => {
            from.miss(format!("stop_text_encoder_training = {stop}: the text encoder learns to the end"));
            true
        }
        stop => rests && stop.is_none(),
    };
    if text_only {
        targets.clear();
    }
    if text || text_only {
        targets.push("text");
    }
    from.set("targets", targets.join(","));
}

/// A list in TOML, one text in JSON.
fn arguments(from: &mut Foreign, key: &str) -> Vec<String> {
    match from.take(key) {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(text)) => text.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn rates(from: &mut Foreign) {
    let optimizer = from.text("optimizer").or_else(|| from.text("optimizer_type")).unwrap_or_default();
    let [whole, unet] = ["learning_rate", "unet_lr"].map(|key| from.number(key));
    let text = match from.take("text_encoder_lr") {
        Some(Value::Array(list)) => list.first().and_then(number),
        Some(value) => number(&value),
        None => None,
    };
    from.rates(&optimizer, unet.or(whole), text.or(whole));
    for argument in arguments(from, "optimizer_args") {
        match argument.split_once('=') {
            Some(("weight_decay", decay)) => from.set("decay", decay),
            _ => from.miss(format!("optimizer_args {argument} has no counterpart")),
        }
    }
    from.schedule("lr_scheduler");
}

/// Steps, and the warm-up, which `kohya_ss`'s `lr_warmup` gives in per cent of them.
fn length(from: &mut Foreign) {
    let said = from.count("max_train_steps");
    let epochs = from.count("max_train_epochs").or_else(|| from.count("epoch"));
    let [batch, accumulate] = ["train_batch_size", "gradient_accumulation_steps"]
        .map(|key| from.rest.get(key).and_then(number).map_or(1, |n| n.max(1.0) as usize));
    // Epochs count where no steps are said, and in sd-scripts even then.
    let by_epochs = epochs.filter(|_| said.is_none() || from.imported.from == "sd-scripts");
    let steps = by_epochs.and_then(|epochs| from.epochs(epochs, batch.saturating_mul(accumulate))).or(said);
    if let Some(steps) = steps {
        from.set("steps", steps);
    }
    let percent = from.number("lr_warmup");
    let warmup = from.number("lr_warmup_steps").map(|given| match (given < 1.0, steps) {
        // sd-scripts takes a fraction as a share of the steps.
        (true, Some(steps)) => given * steps as f64,
        _ => given,
    });
    let warmup = warmup.or_else(|| Some(percent? / 100.0 * steps? as f64));
    from.set("warmup", warmup.unwrap_or(0.0) as usize);
}

/// `kohya_ss` keeps the prompts themselves, one a line with options after ` --`; sd-scripts names a file of them.
fn prompts(from: &mut Foreign) {
    let Some(text) = from.text("sample_prompts") else { return };
    let file = Path::new(&text);
    let lines = if file.is_file() { std::fs::read_to_string(file).unwrap_or_default() } else { text.clone() };
    let is_path = !file.is_file() && text.ends_with(".txt");
    let prompts: Vec<&str> = lines
        .lines()
        .map(|line| line.split(" --").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !is_path)
        .collect();
    match prompts.is_empty() {
        true => from.miss(format!("sample_prompts: {text} is not here")),
        false => from.set("sample_prompts", prompts.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::train::configuration::Configuration;
    use crate::engine::train::import::open;
    use crate::engine::train::import::tests::assert_valid;

    /// As `kohya_ss` saves its LoRA form, shortened; the pictures lie in `10_sks robot`.
    #[test]
    fn the_form_of_kohya_ss_with_its_warm_up_in_per_cent_and_its_repeats() {
        let desk = tempfile::tempdir().unwrap();
        let pictures = desk.path().join("img/10_sks robot");
        std::fs::create_dir_all(&pictures).unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            image::RgbImage::new(8, 8).save(pictures.join(name)).unwrap();
        }
        let data = pictures.parent().unwrap().display().to_string();
        let form = serde_json::json!({
            "LoRA_type": "Standard", "pretrained_model_name_or_path": "models/sd15", "train_data_dir": data,
            "output_dir": "out", "output_name": "robot", "network_dim": 16, "network_alpha": 8, "optimizer": "AdamW8bit",
            "learning_rate": 0.0001, "unet_lr": 0.0002, "text_encoder_lr": 5e-5, "lr_scheduler": "cosine",
            "lr_warmup": 10, "epoch": 4, "max_train_steps": "", "train_batch_size": 2, "gradient_accumulation_steps": "1",
            "min_snr_gamma": 5, "noise_offset": 0.05, "seed": "1234", "flip_aug": false, "max_resolution": "512,512",
            "save_precision": "fp16", "mixed_precision": "bf16", "keep_tokens": 1, "shuffle_caption": true, "clip_skip": "2",
            "sample_every_n_steps": 50, "sample_prompts": "sks robot --w 512\n# off\na photo --s 20", "xformers": "xformers",
            "stop_text_encoder_training": 0, "enable_bucket": true, "bucket_no_upscale": true, "max_bucket_reso": 2048, "alpha_mask": true,
        });
        let path = desk.path().join("kohya.json");
        std::fs::write(&path, form.to_string()).unwrap();
        let imported = open(&path).unwrap();
        let configuration = imported.configuration;
        // 4 epochs of 3 pictures, 10 times each, two at once; a tenth of 60 steps.
        let expected = [
            ("steps", "60"),
            ("warmup", "6"),
            ("rank", "16"),
            ("alpha", "8"),
            ("lr", "0.0002"),
            ("text_lr", "0.00005"),
            ("schedule", "cosine"),
            ("min_snr", "5"),
            ("clip_skip", "2"),
            ("noise_offset", "0.05"),
            ("batch", "2"),
            ("fit", "bucket"),
            ("upscale", "false"),
            ("mask", "alpha"),
            ("unmasked_weight", "0"),
            ("resolution", "512"),
            ("dtype", "f16"),
            ("flip", "false"),
            ("prior", "0"),
            ("sample_every", "50"),
            ("targets", "attention,feed_forward,projections,text"),
            ("sample_prompts", "sks robot; a photo"),
        ];
        let changes = configuration.changes().unwrap();
        for (name, text) in expected {
            assert!(changes.iter().any(|(n, t)| (n.as_str(), t.as_str()) == (name, text)), "{name}: {changes:?}");
        }
        assert_eq!((configuration.seed, configuration.model.as_deref()), (Some(1234), Some("models/sd15")));
        assert_eq!((configuration.token.as_deref(), configuration.class.as_deref()), (Some("<sks>"), Some("robot")));
        assert_eq!(configuration.out.unwrap(), std::path::Path::new("out/robot.safetensors"));
        assert_valid("lora", &changes);
        assert_eq!(imported.from, "kohya_ss");
        let left = imported.left_out.join("\n");
        assert!(left.contains("keep_tokens = 1") && left.contains("shuffle_caption"), "{left}");
        assert_eq!(imported.left_out.len(), 2, "{left}");
    }

    #[test]
    fn folders_of_several_words_are_concepts_that_are_taught_together() {
        let desk = tempfile::tempdir().unwrap();
        for name in ["5_hut house", "10_sks robot"] {
            std::fs::create_dir_all(desk.path().join(name)).unwrap();
            image::RgbImage::new(8, 8).save(desk.path().join(name).join("a.png")).unwrap();
        }
        let path = desk.path().join("kohya.json");
        let form = serde_json::json!({
            "LoRA_type": "Standard", "network_alpha": 0, "train_data_dir": desk.path(), "epoch": 2, "max_resolution": "640,768",
        });
        std::fs::write(&path, form.to_string()).unwrap();
        let Configuration { concept, token, together, fields, .. } = open(&path).unwrap().configuration;
        assert_eq!((concept, token.as_deref()), (Some(desk.path().join("10_sks robot")), Some("<sks>")));
        assert_eq!((&together[0].concept, &*together[0].token), (&desk.path().join("5_hut house"), "<hut>"));
        assert_eq!(together[0].class.as_deref(), Some("house"));
        assert_eq!(fields["steps"].as_integer(), Some(30), "two epochs of ten and five");
        assert!(!fields.contains_key("resolution"), "not square, and without buckets");
        assert_eq!(fields["alpha"].as_integer(), Some(0), "the rank");
    }

    /// As a user of sd-scripts writes it, with sections.
    #[test]
    fn the_file_of_sd_scripts_and_an_optimiser_that_is_not_ours() {
        let desk = tempfile::tempdir().unwrap();
        let path = desk.path().join("config.toml");
        let text = "[model]\npretrained_model_name_or_path = \"sd15\"\n[network]\nnetwork_module = \"networks.lora\"\n\
                    network_dim = 32\nnetwork_args = [\"conv_dim=8\", \"loraplus_lr_ratio=16\"]\n\
                    network_train_unet_only = true\n[training]\noptimizer_type = \"Prodigy\"\nlearning_rate = 1.0\n\
                    optimizer_args = [\"weight_decay=0.05\", \"d_coef=2\"]\nlr_scheduler = \"cosine_with_restarts\"\n\
                    max_train_steps = 800\nlr_warmup_steps = 0.05\nmax_grad_norm = 0\nloss_type = \"huber\"\n";
        std::fs::write(&path, text).unwrap();
        let imported = open(&path).unwrap();
        let changes = imported.configuration.changes().unwrap();
        let of = |name: &str| changes.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
        assert_eq!(of("lr"), None, "Prodigy's rate of 1 is not ours");
        assert_eq!((of("steps"), of("warmup"), of("alpha")), (Some("800"), Some("40"), Some("1")));
        assert_eq!((of("up_rate_ratio"), of("decay"), of("loss")), (Some("16"), Some("0.05"), Some("huber")));
        assert_eq!((of("clip"), of("batch")), (Some("0"), Some("1")));
        assert_eq!(of("targets"), Some("attention,feed_forward,projections,resnet,resample"));
        let left = imported.left_out.join("\n");
        for piece in ["Prodigy", "d_coef=2", "cosine_with_restarts", "conv_dim", "huber_schedule"] {
            assert!(left.contains(piece), "{piece}: {left}");
        }
        assert_valid("lora", &changes);
    }
}
