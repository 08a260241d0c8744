//! Whether a training fits, before anything of it starts.

use std::path::Path;

use crate::engine::adapter::{self, Method};
use crate::engine::model::StableDiffusion;
use crate::engine::session::{default_block, settings};
use crate::engine::train::config::{self, Config, FIELDS};
use crate::engine::train::estimate::{Estimate, Room};
use crate::engine::{Error, Result, words};

type Changes = [(String, String)];

/// What a training takes, and what there is.
#[derive(Clone, Debug)]
pub struct Preflight {
    pub estimate: Estimate,
    pub room: Room,
    /// Why it would not fit, and what would make it fit.
    pub refusal: Option<Error>,
}

impl Preflight {
    /// Of a training of the open `model` that writes `out`. A wrong field is an error.
    pub fn of(model: &StableDiffusion, method: &'static Method, changes: &Changes, out: &Path) -> Result<Self> {
        let on_cpu = model.device == crate::engine::device::cpu();
        Self::in_room(model, method, changes, Room::here(on_cpu, out))
    }

    fn in_room(model: &StableDiffusion, method: &'static Method, changes: &Changes, room: Room) -> Result<Self> {
        let estimate = estimate(model, method, changes)?;
        let refusal = match (room.memory, room.disk) {
            (Some(free), _) if beside_the_model(&estimate) > free => {
                Some(too_large(model, method, changes, &estimate, free))
            }
            (_, Some(free)) if estimate.disk > free => Some(Error::new(
                format!(
                    "This training may write {} and {} are free on the disk",
                    words::bytes(estimate.disk),
                    words::bytes(free)
                ),
                "Make room, or keep fewer steps: choose a larger Keep every, or Keep the last",
            )),
            _ => None,
        };
        Ok(Self { estimate, room, refusal })
    }
}

/// Predicted memory of a training with these fields.
pub fn estimate(model: &StableDiffusion, method: &'static Method, changes: &Changes) -> Result<Estimate> {
    let (method_settings, settings) = settings(method, changes)?;
    let config = Config::new(&settings, method, model)?;
    let context = adapter::Context { seed: 0, slot: 0, block: default_block(model) };
    let adapter = (method.build)(&method_settings, &context)?;
    Estimate::of(model, method, adapter.as_ref(), &config)
}

/// The weights are there already.
fn beside_the_model(estimate: &Estimate) -> u64 {
    estimate.total() - estimate.weights
}

fn too_large(
    model: &StableDiffusion,
    method: &'static Method,
    changes: &Changes,
    estimate: &Estimate,
    free: u64,
) -> Error {
    let needed = beside_the_model(estimate);
    let largest = estimate.parts().into_iter().skip(1).max_by_key(|(_, bytes)| *bytes).map_or("", |(name, _)| name);
    let what = format!(
        "This training would need {} beside the open model and {} are free; most of it is for {largest}",
        words::bytes(needed),
        words::bytes(free)
    );
    let advice = smaller(model, method, changes, free).unwrap_or_else(|| {
        "Close other programs, lower the rank or train fewer layers: no smaller picture or batch makes it fit".into()
    });
    Error::new(what, advice)
}

/// The first of ever smaller settings that fits, in words.
fn smaller(model: &StableDiffusion, method: &'static Method, changes: &Changes, free: u64) -> Option<String> {
    let (_, asked) = settings(method, changes).ok()?;
    let config = Config::new(&asked, method, model).ok()?;
    let at_once = config.batch.saturating_mul(config.accumulate).min(1024);
    let side = config.views.resolutions.iter().copied().max()?;
    let step = config::side_step(model);
    let part = |of: f64| ((side as f64 * of) as usize / step * step).max(step).to_string();
    let knobs = [
        (!config.recompute, vec![("recompute", "on".to_owned())]),
        (config.batch > 1, vec![("batch", "1".to_owned()), ("accumulate", at_once.to_string())]),
        (config.prior > 0.0 && config.prior_batch > 1, vec![("prior_batch", "1".to_owned())]),
        (!asked.text("resolutions").is_empty(), vec![("resolutions", String::new())]),
        (true, vec![("resolution", part(0.75))]),
        (true, vec![("resolution", part(0.5))]),
    ];
    let mut turned: Vec<(&str, String)> = Vec::new();
    for (_, knob) in knobs.into_iter().filter(|(turns, _)| *turns) {
        turned.retain(|(name, _)| knob.iter().all(|(other, _)| other != name));
        turned.extend(knob);
        let smaller = changes.iter().cloned().chain(turned.iter().map(|(name, value)| ((*name).into(), value.clone())));
        let estimate = self::estimate(model, method, &smaller.collect::<Vec<_>>()).ok()?;
        if beside_the_model(&estimate) <= free {
            let title = |name: &str| FIELDS.iter().find(|field| field.name == name).map_or("", |field| field.title);
            let set = |(name, value): &(&str, String)| match value.is_empty() {
                true => format!("{} to nothing", title(name)),
                false => format!("{} to {value}", title(name)),
            };
            let set: Vec<_> = turned.iter().map(set).collect();
            let bytes = words::bytes(beside_the_model(&estimate));
            return Some(format!("Set {}: then it needs {bytes}", set.join(" and ")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device;

    /// Largest anonymous memory of two steps on the CPU, in megabytes (`benches/memory.rs`).
    #[test]
    fn the_starter_takes_what_was_measured() {
        let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
        let measured = [
            ("orthogonal", "recompute", "off", 125.0),
            ("orthogonal", "recompute", "on", 93.0),
            ("lora", "rank", "64", 181.0),
            ("lora", "batch", "1", 70.0),
            ("lora", "batch", "8", 230.0),
            ("lora", "prior", "0", 100.0),
            ("lora", "targets", "*", 187.0),
            ("dora", "batch", "4", 150.0),
        ];
        for (method, field, value, megabytes) in measured {
            let changes = [(field.to_owned(), value.to_owned())];
            let estimate = estimate(&model, adapter::method(method).unwrap(), &changes).unwrap();
            let times = estimate.total() as f64 / 1e6 / megabytes;
            assert!((0.85..1.15).contains(&times), "{method} {field}={value}: {times:.2}, {estimate:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_settings_that_do() {
        let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
        let method = adapter::method("lora").unwrap();
        let changes = [("batch".to_owned(), "8".to_owned())];
        let with = |memory, disk| {
            Preflight::in_room(&model, method, &changes, Room { memory: Some(memory), disk: Some(disk) }).unwrap()
        };
        let needed = beside_the_model(&with(u64::MAX, u64::MAX).estimate);
        assert!(with(needed, u64::MAX).refusal.is_none());
        let refusal = with(needed - 1, u64::MAX).refusal.unwrap();
        assert!(refusal.advice.starts_with("Set Save memory to on: then it needs"), "{refusal}");
        let refusal = with(needed / 6, u64::MAX).refusal.unwrap();
        assert!(refusal.advice.contains("Batch to 1 and Accumulate to 8"), "{refusal}");
        assert!(with(1, u64::MAX).refusal.unwrap().advice.starts_with("Close other programs"));
        assert!(with(u64::MAX, 1).refusal.unwrap().what.contains("on the disk"));
    }
}
