//! OneTrainer's JSON (`modules/util/config/TrainConfig.py`, `ConceptConfig.py`). Its files hold every key it knows, so
//! those that would change the result and have no counterpart are listed here.

use serde_json::Value;

use super::{Foreign, Imported, number, says_something, sides, token};
use crate::engine::train::configuration::Together;

/// Named where they say something.
const MISSED: &[&str] = &[
    "additional_embeddings",
    "custom_conditioning_image",
    "dropout_probability",
    "force_epsilon_prediction",
    "force_v_prediction",
    "generalized_offset_noise",
    "layer_filter",
    "log_cosh_strength",
    "lora_model_name",
    "min_noising_strength",
    "multi_gpu",
    "perturbation_noise_weight",
    "rescale_noise_scheduler_to_zero_terminal_snr",
    "unmasked_probability",
    "vb_loss_strength",
];

pub fn import(mut from: Foreign) -> Imported {
    from.imported.configuration.model = from.text("base_model_name");
    from.imported.configuration.out = from.text("output_model_destination").map(Into::into);
    network(&mut from);
    concepts(&mut from);
    length(&mut from);
    rates(&mut from);
    losses(&mut from);
    from.copy_with_zero("clip_grad_norm", "clip");
    from.copy("offset_noise_weight", "noise_offset");
    // It counts the layers that are left out.
    if let Some(skipped) = from.count("text_encoder_layer_skip") {
        from.set("clip_skip", skipped.saturating_add(1));
    }
    frames(&mut from);
    masks(&mut from);
    if from.text("ema").is_some_and(|ema| ema != "OFF") {
        let decay = from.number("ema_decay").unwrap_or(0.999);
        // What is nearer to 1 than the field allows would average over more steps than a run here has.
        from.set("ema", decay.min(0.9999));
    }
    match from.text("output_dtype").as_deref() {
        Some("FLOAT_16") => from.set("dtype", "f16"),
        Some("BFLOAT_16") => from.set("dtype", "bf16"),
        _ => {}
    }
    every(&mut from, "save_every", "keep_every");
    every(&mut from, "sample_after", "sample_every");
    from.rest.retain(|key, value| MISSED.contains(&key.as_str()) && says_something(value));
    from.finish()
}

fn network(from: &mut Foreign) {
    let kind = from.text("training_method").unwrap_or_default();
    if !["", "LORA"].contains(&kind.as_str()) {
        from.miss(format!("training_method = {kind}: an adapter is taught instead"));
    }
    let method = match (from.text("peft_type").as_deref(), from.flag("lora_decompose")) {
        (None | Some("LORA"), true) => "dora",
        (None | Some("LORA"), false) => "lora",
        (Some(other), _) => {
            from.miss(format!("peft_type = {other}: a plain LoRA is taught instead"));
            "lora"
        }
    };
    from.imported.configuration.method = Some(method.into());
    from.copy("lora_rank", "rank");
    from.copy("lora_alpha", "alpha");
}

/// Sizes and shapes of the pictures.
fn frames(from: &mut Foreign) {
    let buckets = from.flag("aspect_ratio_bucketing");
    from.set("fit", if buckets { "bucket" } else { "crop" });
    let Some(value) = from.take("resolution") else { return };
    match &sides(&value)[..] {
        [] => from.miss(format!("resolution = {value}: sides of squares are used here")),
        [side] => from.set("resolution", side),
        several => {
            let sides: Vec<String> = several.iter().map(usize::to_string).collect();
            from.set("resolutions", sides.join(","));
        }
    }
}

fn masks(from: &mut Foreign) {
    if from.flag("masked_training") {
        from.set("mask", "file");
        from.copy_with_zero("unmasked_weight", "unmasked_weight");
        let normalised = from.flag("normalize_masked_area_loss");
        from.set("mask_normalise", normalised);
    } else {
        from.ignore(&["unmasked_probability"]);
    }
}

fn concepts(from: &mut Foreign) {
    let Some(Value::Array(all)) = from.take("concepts") else {
        if let Some(file) = from.text("concept_file_name") {
            from.miss(format!("The concepts are in {file}: choose the folder of pictures by hand"));
        }
        return;
    };
    let is_taught = |concept: &&Value| concept["enabled"] != false && concept["type"] != "VALIDATION";
    let taught = all.iter().filter(is_taught).filter(|concept| concept["type"] != "PRIOR_PREDICTION");
    // Its concepts of the base model's own answers are what prior preservation is here.
    if !all.iter().filter(is_taught).any(|concept| concept["type"] == "PRIOR_PREDICTION") {
        from.set("prior", 0);
    }
    let flips = ["enable_random_flip", "enable_fixed_flip"];
    let flips = taught.clone().any(|concept| flips.iter().any(|key| concept["image"][*key] == true));
    from.set("flip", flips);
    let mut concepts: Vec<Together> = taught.enumerate().filter_map(|(i, said)| concept(i, said)).collect();
    if concepts.is_empty() {
        return;
    }
    let first = concepts.remove(0);
    let configuration = &mut from.imported.configuration;
    configuration.concept = Some(first.concept);
    configuration.repeats = Some(first.repeats).filter(|repeats| *repeats > 1);
    configuration.weight = Some(first.weight).filter(|weight| weight.total_cmp(&1.0).is_ne());
    if concepts.is_empty() {
        return;
    }
    configuration.token = Some(first.token);
    configuration.together = concepts;
    from.miss("Each concept has a word of its own here: its name in OneTrainer; see that the captions use it");
}

/// `balancing` is how often its pictures are shown, where it counts repeats.
fn concept(place: usize, said: &Value) -> Option<Together> {
    let name = said["name"].as_str().map(str::trim).filter(|name| !name.is_empty());
    let repeats = number(&said["balancing"]).filter(|_| said["balancing_strategy"] != "SAMPLES");
    Some(Together {
        concept: said["path"].as_str()?.into(),
        token: token(name.unwrap_or(&format!("concept-{}", place + 1))),
        class: None,
        repeats: repeats.map_or(1, |repeats| repeats.round().max(1.0) as usize),
        weight: number(&said["loss_weight"]).map_or(1.0, |weight| weight as f32),
    })
}

fn length(from: &mut Foreign) {
    let [batch, accumulate] = ["batch_size", "gradient_accumulation_steps"].map(|key| from.count(key).unwrap_or(1));
    from.set("batch", batch);
    from.set("accumulate", accumulate);
    let epochs = from.count("epochs").unwrap_or(1);
    let steps = from.epochs(epochs, batch.saturating_mul(accumulate));
    if let Some(steps) = steps {
        from.set("steps", steps);
    }
    // Up to 1 it is a share of the steps.
    let warmup = from.number("learning_rate_warmup_steps").unwrap_or(0.0);
    let warmup = if warmup <= 1.0 { warmup * steps.unwrap_or(0) as f64 } else { warmup };
    from.set("warmup", warmup as usize);
}

fn rates(from: &mut Foreign) {
    let optimizer = from.take("optimizer").unwrap_or_default();
    let name = optimizer["optimizer"].as_str().unwrap_or("ADAMW").to_owned();
    let [unet, text] = ["unet", "text_encoder"].map(|key| from.take(key).unwrap_or_default());
    let whole = from.number("learning_rate");
    let mut targets = Vec::new();
    if unet["train"] != false {
        targets.extend(["attention", "feed_forward", "projections"]);
    }
    if text["train"] == true {
        targets.push("text");
    }
    from.set("targets", targets.join(","));
    let rate = |part: &Value| number(&part["learning_rate"]).filter(|rate| *rate > 0.0).or(whole);
    from.rates(&name, rate(&unet), rate(&text).filter(|_| text["train"] == true));
    if let Some(decay) = number(&optimizer["weight_decay"]) {
        from.set("decay", decay);
    }
    from.schedule("learning_rate_scheduler");
}

fn losses(from: &mut Foreign) {
    let strength = from.number("loss_weight_strength").unwrap_or(5.0);
    match from.text("loss_weight_fn").as_deref() {
        None | Some("CONSTANT") => {}
        Some("MIN_SNR_GAMMA") => from.set("min_snr", strength),
        Some("DEBIASED_ESTIMATION") => from.set("debiased", true),
        Some(other) => from.miss(format!("loss_weight_fn = {other} has no counterpart")),
    }
    let [square, absolute, huber] = ["mse_strength", "mae_strength", "huber_strength"].map(|key| from.number(key));
    match (square, absolute, huber) {
        (_, None, None) => {}
        (None, Some(_), None) => from.set("loss", "absolute"),
        (None, None, Some(_)) => from.set("loss", "huber"),
        _ => from.miss("A mixture of losses: square is used"),
    }
}

/// A distance, where it is in steps.
fn every(from: &mut Foreign, key: &str, field: &str) {
    let unit = from.text(&format!("{key}_unit")).unwrap_or_default();
    match (from.number(key), unit.as_str()) {
        (Some(steps), "STEP") => from.set(field, steps),
        (Some(count), "EPOCH" | "SECOND" | "MINUTE" | "HOUR") => {
            from.miss(format!("{key} = {count} {unit}: {field} counts steps"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::engine::train::configuration::{Configuration, Together};
    use crate::engine::train::import::open;
    use crate::engine::train::import::tests::assert_valid;

    /// As OneTrainer saves it, shortened.
    #[test]
    fn a_file_of_onetrainer() {
        let desk = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png", "d.png", "e.png"] {
            image::RgbImage::new(8, 8).save(desk.path().join(name)).unwrap();
        }
        let house = tempfile::tempdir().unwrap();
        image::RgbImage::new(8, 8).save(house.path().join("a.png")).unwrap();
        let config = serde_json::json!({
            "__version": 12, "training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "base_model_name": "sd15",
            "output_model_destination": "models/lora.safetensors", "output_dtype": "BFLOAT_16", "peft_type": "LORA",
            "concepts": [
                { "name": "robot", "path": desk.path(), "enabled": true, "type": "STANDARD",
                  "image": { "enable_random_flip": true } },
                { "name": "a house", "path": house.path(), "enabled": true, "type": "STANDARD", "balancing": 3.0,
                  "balancing_strategy": "REPEATS", "loss_weight": 0.5 },
            ],
            "learning_rate": 0.0003, "learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 0.2,
            "epochs": 20, "batch_size": 2, "gradient_accumulation_steps": 2, "ema": "GPU", "ema_decay": 0.99,
            "mse_strength": 0.0, "mae_strength": 0.0, "huber_strength": 1.0, "huber_delta": 1.0,
            "loss_weight_fn": "DEBIASED_ESTIMATION", "loss_weight_strength": 5.0, "clip_grad_norm": 1.0,
            "unet": { "train": true, "learning_rate": null }, "text_encoder": { "train": true, "learning_rate": 5e-5 },
            "lora_rank": 16, "lora_alpha": 1.0, "lora_decompose": false, "optimizer": { "optimizer": "ADAMW",
            "weight_decay": 0.01 }, "sample_after": 10, "sample_after_unit": "MINUTE", "save_every": 100,
            "save_every_unit": "STEP", "text_encoder_layer_skip": 1, "lokr_dim": 10000, "oft_block_size": 32, "dataloader_threads": 2,
        });
        let pictures = serde_json::json!({
            "resolution": "512,768", "aspect_ratio_bucketing": true, "masked_training": true, "unmasked_weight": 0.2,
            "unmasked_probability": 0.1, "offset_noise_weight": 0.0, "perturbation_noise_weight": 0.1,
        });
        let config =
            Value::Object([config, pictures].into_iter().flat_map(|part| part.as_object().cloned().unwrap()).collect());
        let path = desk.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let imported = open(&path).unwrap();
        let changes = imported.configuration.changes().unwrap();
        let expected = [
            ("steps", "40"),
            ("warmup", "8"),
            ("batch", "2"),
            ("accumulate", "2"),
            ("lr", "0.0003"),
            ("text_lr", "0.00005"),
            ("rank", "16"),
            ("ema", "0.99"),
            ("clip_skip", "2"),
            ("loss", "huber"),
            ("debiased", "true"),
            ("keep_every", "100"),
            ("flip", "true"),
            ("prior", "0"),
            ("targets", "attention,feed_forward,projections,text"),
            ("fit", "bucket"),
            ("resolutions", "512,768"),
            ("mask", "file"),
            ("unmasked_weight", "0.2"),
            ("mask_normalise", "false"),
        ];
        let Configuration { token, together, .. } = &imported.configuration;
        let said =
            Together { concept: house.path().into(), token: "<a-house>".into(), class: None, repeats: 3, weight: 0.5 };
        assert_eq!((token.as_deref(), &together[..]), (Some("<robot>"), &[said][..]));
        for (name, text) in expected {
            assert!(changes.iter().any(|(n, t)| (n.as_str(), t.as_str()) == (name, text)), "{name}: {changes:?}");
        }
        assert_valid("lora", &changes);
        let left = imported.left_out.join("\n");
        for piece in ["own here", "sample_after = 10 MINUTE", "unmasked_probability", "perturbation_noise_weight = 0.1"]
        {
            assert!(left.contains(piece), "{piece}: {left}");
        }
        assert_eq!((imported.from, imported.left_out.len()), ("OneTrainer", 4), "{left}");
    }
}
