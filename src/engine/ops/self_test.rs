//! Does this device compute what the CPU computes?
//!
//! Kernels that are picked by timing have been wrong on some shapes and drivers (burn #5237, #5626, cubek #519). So
//! before a device is trusted, what the networks are made of runs on it, small, forwards and backwards, and is compared
//! with the CPU.

mod layer;
mod rows;
mod trial;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::engine::Result;
use crate::engine::event::{Event, Watch};
use crate::engine::io::{atomic, safetensors};
use trial::Trial;
pub(in crate::engine) use trial::reason;

pub use layer::{LayerShape, PREFIX as LAYER};

/// The stage it is told as.
pub const STAGE: &str = "testing kernels";

/// How one operation came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    /// Largest difference from the CPU, of the result and of each gradient, as a share of the largest value.
    pub difference: f32,
    /// Until it came out, with the kernels that had to be made for it.
    pub milliseconds: f64,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "snake_case")]
pub enum Verdict {
    Right,
    /// What is wrong.
    Wrong(String),
    /// The device does not have it, and says so.
    Absent,
}

impl Check {
    pub fn fault(&self) -> Option<String> {
        match &self.verdict {
            Verdict::Wrong(why) => Some(format!("{}: {why}", self.name)),
            Verdict::Right | Verdict::Absent => None,
        }
    }
}

/// Each operation of the networks, each kernel of [`super::OPS`] and layers of these shapes, tried one after the other as
/// the iterator moves on.
pub fn checks(device: &Device, layers: &[LayerShape]) -> impl ExactSizeIterator<Item = Check> {
    trials(layers).into_iter().map(|trial| trial.check(device))
}

/// The same without gradients and layers: a software rasteriser takes seconds to make each kernel.
pub fn results(device: &Device) -> impl ExactSizeIterator<Item = Check> {
    trials(&[]).into_iter().map(|trial| trial.without_gradients().check(device))
}

/// The first that differs from the CPU, as a message.
pub fn run(device: &Device, layers: &[LayerShape]) -> Result<(), String> {
    checks(device, layers).find_map(|check| check.fault()).map_or(Ok(()), Err)
}

fn trials(layers: &[LayerShape]) -> Vec<Trial> {
    let layers = layers.iter().map(|layer| layer.trial());
    rows::ROWS.iter().map(Trial::of_row).chain(Trial::of_kernels()).chain(layers).collect()
}

/// What [`run`] finds, once for each driver version and set of shapes: a pass is remembered in `cache`.
pub fn cached(
    device: &Device,
    driver: &str,
    layers: &[LayerShape],
    cache: Option<&Path>,
    watch: &mut Watch<'_>,
) -> Result<Option<String>> {
    let mark = cache.map(|cache| mark(driver, layers, cache));
    if mark.as_deref().is_some_and(Path::is_file) {
        return Ok(None);
    }
    let checks = checks(device, layers);
    let total = checks.len();
    watch(Event::Stage { name: STAGE.into(), total })?;
    for (check, done) in checks.zip(1..) {
        if let Some(fault) = check.fault() {
            return Ok(Some(fault));
        }
        watch(Event::Progress { done, total })?;
    }
    if let Some(mark) = mark
        && let Err(error) = atomic::write(&mark, |out| out.write_all(driver.as_bytes()))
    {
        tracing::warn!("{error}");
    }
    Ok(None)
}

/// The file that says that all of it was right.
pub fn mark(driver: &str, layers: &[LayerShape], cache: &Path) -> PathBuf {
    // What is tried belongs to it: a pass of an earlier version says nothing of a kernel that is new.
    let names: Vec<String> = trials(layers).into_iter().map(|trial| trial.name).collect();
    let identity = format!("{driver} {} {names:?}", env!("CARGO_PKG_VERSION"));
    cache.join("self_test").join(&safetensors::hex(&Sha256::digest(identity.as_bytes()))[..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::cpu;
    use crate::engine::ops::OPS;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let layers = [None, Some([1, 1]), Some([3, 3])].map(|kernel| LayerShape { out: 24, channels: 40, kernel });
        run(&cpu(), &layers).unwrap();
    }

    #[test]
    fn every_kernel_is_tried_in_every_type_it_is_written_for() {
        let names: Vec<String> = trials(&[]).into_iter().map(|trial| trial.name).collect();
        for op in OPS {
            let tried = names.iter().filter(|name| name.starts_with(&format!("{} (", op.name))).count();
            assert_eq!(tried, op.elements.len(), "{}", op.name);
        }
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "each has a name of its own");
    }

    #[test]
    fn a_pass_is_remembered_for_one_driver_and_one_set_of_shapes() {
        let cache = tempfile::tempdir().unwrap();
        let shape = [LayerShape { out: 8, channels: 8, kernel: None }];
        let told = std::cell::Cell::new(0);
        let pass = || {
            let mut watch = |_| {
                told.set(told.get() + 1);
                Ok(())
            };
            cached(&cpu(), "driver 1", &shape, Some(cache.path()), &mut watch).unwrap()
        };
        assert_eq!(pass(), None);
        assert_eq!(told.replace(0), trials(&shape).len() + 1);
        assert_eq!((pass(), told.get()), (None, 0), "nothing is tried again");
        assert!(mark("driver 1", &shape, cache.path()).is_file());
        assert!(!mark("driver 2", &shape, cache.path()).is_file());
        assert!(!mark("driver 1", &[], cache.path()).is_file());
    }
}
