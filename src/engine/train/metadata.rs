//! What a trained file says of itself: kohya's `ss_*`, Stability's `modelspec.*` and our own keys. All of it is a
//! function of inputs and seed: no time, path or name of the output.

use std::collections::BTreeMap;

use serde_json::json;

use crate::engine::adapter::basis::Basis;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::metadata::{BASE, BASE_HASH, BASIS, CLASS, CLIP_SKIP, METHOD, RECIPE, RUN, SLOT, STEP, TOKEN};
use crate::engine::train::config::{self, Config};
use crate::engine::train::job::{Job, Subject};

pub fn of(
    job: &Job<'_>,
    file: &LoraFile,
    config: &Config,
    basis: Option<(Basis, usize)>,
    run: &str,
    step: usize,
) -> BTreeMap<String, String> {
    let [width, height] = config.views.largest();
    let ranks = file.ranks();
    let (dim, alpha) =
        (ranks.last().copied().unwrap_or(0), file.layers.values().next().map_or(0.0, |layer| layer.alpha));
    let whole = file.layers.is_empty() && !file.differences.is_empty();
    let is_v = job.model.schedule.prediction_type == "v_prediction";
    let family = job.model.family();
    let pictures: usize = job.subjects.iter().map(|subject| subject.concept.images.len() - config.held_out).sum();
    let triggers: Vec<_> = job.subjects.iter().map(|subject| &subject.trigger).collect();
    let called = triggers.iter().map(|t| format!("{} {}", t.token, t.class_word).trim().to_owned());
    let mut recipe = json!({
        "method": job.method_settings,
        "training": config::decisive(&job.settings),
        "seed": job.context.seed,
        "caption": job.template,
        "pictures": pictures,
    });
    if job.subjects.len() > 1 {
        let about = |subject: &Subject<'_>| {
            let Subject { concept, trigger, repeats, weight } = subject;
            json!({ "token": trigger.token, "class": trigger.class_word, "pictures": concept.images.len(),
                    "repeats": repeats, "weight": weight })
        };
        recipe["concepts"] = job.subjects.iter().map(about).collect();
    }
    let mut metadata = BTreeMap::from(
        [
            (METHOD, job.method.name.to_owned()),
            (TOKEN, triggers[0].token.clone()),
            (CLASS, triggers[0].class_word.clone()),
            (BASE, job.model.name.clone()),
            (BASE_HASH, job.model.hash.clone()),
            (RECIPE, recipe.to_string()),
            (RUN, run.to_owned()),
            ("ss_network_module", if whole { "lycoris.kohya" } else { "networks.lora" }.into()),
            ("ss_network_dim", dim.to_string()),
            ("ss_network_alpha", alpha.to_string()),
            ("ss_base_model_version", family.base_version(is_v).into()),
            ("ss_sd_model_name", job.model.name.clone()),
            ("ss_resolution", format!("({width}, {height})")),
            ("ss_num_train_images", pictures.to_string()),
            ("ss_seed", job.context.seed.to_string()),
            ("ss_steps", step.to_string()),
            ("modelspec.sai_model_spec", "1.0.1".into()),
            ("modelspec.architecture", format!("{}/lora", family.architecture(is_v))),
            ("modelspec.implementation", family.implementation().into()),
            ("modelspec.title", called.collect::<Vec<_>>().join(", ")),
            ("modelspec.resolution", format!("{width}x{height}")),
            ("modelspec.trigger_phrase", triggers.iter().map(|trigger| &*trigger.token).collect::<Vec<_>>().join(", ")),
            ("modelspec.prediction_type", if is_v { "v" } else { "epsilon" }.into()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if whole {
        metadata.insert("ss_network_args".into(), json!({ "algo": "full" }).to_string());
    }
    if config.clip_skip > 1 {
        metadata.insert(CLIP_SKIP.into(), config.clip_skip.to_string());
    }
    if let Some((basis, slot)) = basis {
        metadata.insert(BASIS.into(), basis.to_string());
        metadata.insert(SLOT.into(), slot.to_string());
    }
    if step < config.steps {
        metadata.insert(STEP.into(), step.to_string());
    }
    if job.stamp {
        let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        metadata.insert("ss_training_finished_at".into(), seconds.to_string());
        metadata.insert("triptych.version".into(), env!("CARGO_PKG_VERSION").into());
    }
    metadata
}
