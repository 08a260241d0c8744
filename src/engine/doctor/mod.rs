//! What there is to know of a machine when something on it is slow or wrong.

mod adapter;
mod caches;
mod machine;
mod speed;

use serde::Serialize;

use crate::engine::device::{self, Choice};
use crate::engine::event::{Event, Watch};
use crate::engine::ops::self_test::{self, Check, LayerShape};
use crate::engine::{Result, cache};

pub use adapter::{Adapter, Limits};
pub use caches::Caches;
pub use machine::Machine;
pub use speed::Speed;

/// Everything, in the order in which it is worth reading.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    /// Those of the best graphics API, as `gpu:N` counts them.
    pub adapters: Vec<Adapter>,
    /// What `--device auto` takes, and why.
    pub automatic: String,
    /// What was tried.
    pub device: Device,
    pub caches: Caches,
    pub self_test: SelfTest,
    pub speed: Vec<Speed>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub name: String,
    pub reason: String,
    /// With its version, for a GPU.
    pub driver: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SelfTest {
    pub passed: bool,
    /// Whether gradients and layers were compared, or results alone.
    pub whole: bool,
    /// Whether the one at every start, without a model's layers, has passed with this driver before.
    pub remembered: bool,
    pub checks: Vec<Check>,
}

/// Looks at everything, and tries the device that `choice` takes, with layers of these shapes among what it tries.
pub fn examine(choice: Choice, layers: &[LayerShape], watch: &mut Watch<'_>) -> Result<Report> {
    let found = device::adapters();
    let automatic = match device::automatic(&found) {
        Ok(adapter) => format!("{} over {}, the first real GPU here", adapter.info.name, adapter.info.backend),
        Err(reason) => reason,
    };
    let opened = device::open(choice)?;
    let mark = |driver: &str| cache::folder().map(|cache| self_test::mark(driver, &[], &cache));
    let remembered = opened.driver.as_deref().and_then(mark).is_some_and(|mark| mark.is_file());
    let class = match opened.driver {
        None => speed::Class::Cpu,
        // By the name that both have of it: what imitates a GPU would be measured for minutes.
        Some(_) if found.iter().any(|adapter| adapter.is_software() && adapter.info.name == opened.name) => {
            speed::Class::Software
        }
        Some(_) => speed::Class::Gpu,
    };
    let whole = class != speed::Class::Software;
    let checks = match whole {
        true => told(self_test::checks(&opened.device, layers), watch)?,
        false => told(self_test::results(&opened.device), watch)?,
    };
    let passed = checks.iter().all(|check| check.fault().is_none());
    let self_test = SelfTest { passed, whole, remembered, checks };
    Ok(Report {
        machine: Machine::here(),
        adapters: found.iter().enumerate().map(|(number, adapter)| Adapter::of(number, adapter)).collect(),
        automatic,
        speed: speed::measure(&opened.device, class, watch)?,
        // After all that is kept in them.
        caches: Caches::here(),
        device: Device { name: opened.name, reason: opened.reason, driver: opened.driver },
        self_test,
    })
}

fn told(checks: impl ExactSizeIterator<Item = Check>, watch: &mut Watch<'_>) -> Result<Vec<Check>> {
    let total = checks.len();
    watch(Event::Stage { name: self_test::STAGE.into(), total })?;
    let checks = checks.zip(1..).map(|(check, done)| {
        watch(Event::Progress { done, total })?;
        Ok(check)
    });
    checks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_healthy_and_its_speed_is_a_number() {
        let mut stages = Vec::new();
        let mut watch = |event: Event| {
            if let Event::Stage { name, .. } = event {
                stages.push(name);
            }
            Ok(())
        };
        let layers = [LayerShape { out: 8, channels: 12, kernel: None }];
        let report = examine(Choice::Cpu, &layers, &mut watch).unwrap();
        assert_eq!(stages, [self_test::STAGE, "measuring"]);
        assert!(report.self_test.passed && report.self_test.whole && report.self_test.checks.len() > 20);
        assert!(report.self_test.checks.iter().any(|check| check.name == "layer of 12 → 8, linear"));
        assert!(report.speed.iter().all(|speed| speed.rate.is_finite() && speed.rate > 0.0), "{:?}", report.speed);
        assert!(report.automatic.contains("because") || !report.adapters.is_empty());
    }
}
