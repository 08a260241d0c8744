//! What a training will take, before it starts.

use crate::engine::adapter;
use crate::engine::session;
use crate::engine::train::estimate::Estimate;
use crate::engine::{Error, Result};
use crate::ui::preferences::Preferences;
use crate::ui::studio::Studio;

/// Of the training the form asks for.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// A wrong field is told here, before anything starts.
    pub memory: Result<Estimate>,
    /// Bytes that are free on the device, where that can be known.
    pub free: Option<u64>,
    pub steps: usize,
    /// What the time of a step depends on.
    pub key: String,
    /// Of an earlier training like this one.
    pub step_seconds: Option<f64>,
}

impl Preflight {
    /// `None` until a model is open.
    pub fn of(studio: &Studio, preferences: &Preferences) -> Option<Self> {
        let with = studio.opened.ready()?;
        let form = &studio.project.training;
        let changes: Vec<_> = form.changes.clone().into_iter().collect();
        let mut steps = 0;
        let memory = adapter::method(&form.method).and_then(|method| {
            steps = session::settings(method, &changes)?.1.integer("steps");
            session::estimate(&with.model, method, &changes)
        });
        let value = |name: &str, default: &str| form.changes.get(name).map_or(default, String::as_str).to_owned();
        let shape = ["batch", "prior", "prior_batch", "resolution", "resolutions", "targets", "rank"]
            .map(|name| value(name, "·"))
            .join(" ");
        let key = format!("{} | {} | {} | {shape}", with.session.device.name, with.model.name, form.method);
        Some(Self {
            memory,
            free: with.session.device.driver.is_none().then(free_memory).flatten(),
            steps,
            step_seconds: preferences.step_seconds.get(&key).copied(),
            key,
        })
    }

    /// Why the training would not fit, and what to change.
    pub fn refusal(&self) -> Option<Error> {
        let memory = match &self.memory {
            Ok(memory) => memory,
            Err(error) => return Some(error.clone()),
        };
        let (needed, free) = (memory.total(), self.free?);
        let largest = memory.parts.iter().max_by_key(|(_, bytes)| bytes)?.0;
        (needed > free).then(|| {
            let advice = match largest {
                "activations" => "Lower the batch, the prior pictures or the resolution",
                "optimiser and gradients" => "Lower the rank, or train fewer layers",
                _ => "Close other programs, or open a smaller model",
            };
            Error::new(
                format!(
                    "This training would need about {:.1} GB and {:.1} GB are free; most of it is for {largest}",
                    needed as f64 / 1e9,
                    free as f64 / 1e9
                ),
                advice,
            )
        })
    }
}

fn free_memory() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    Some(system.available_memory()).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_what_to_change() {
        let preflight = |activations, free| Preflight {
            memory: Ok(Estimate { parts: vec![("weights", 10), ("activations", activations)] }),
            free,
            steps: 1,
            key: String::new(),
            step_seconds: None,
        };
        assert!(preflight(80, Some(100)).refusal().is_none());
        assert!(preflight(800, None).refusal().is_none());
        assert!(preflight(800, Some(100)).refusal().unwrap().advice.contains("batch"));
    }
}
