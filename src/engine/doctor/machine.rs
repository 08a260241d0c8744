//! Program, system, processor and memory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::engine::device::cores;
use crate::engine::train::estimate::Room;

/// What was built together with this program.
const LOCK: &str = include_str!("../../../Cargo.lock");
/// What kernels depend on.
const LIBRARIES: [&str; 3] = ["burn", "cubecl", "wgpu"];

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub triptych: &'static str,
    pub libraries: BTreeMap<&'static str, &'static str>,
    pub system: String,
    pub processor: String,
    /// Threads that can run at once.
    pub cores: usize,
    pub memory_bytes: u64,
    /// `None` where nothing tells.
    pub free_bytes: Option<u64>,
}

impl Machine {
    pub(super) fn here() -> Self {
        let what = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(what);
        let name = System::long_os_version().unwrap_or_else(|| std::env::consts::OS.into());
        let processor = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
        Self {
            triptych: env!("CARGO_PKG_VERSION"),
            libraries: LIBRARIES.iter().filter_map(|name| Some((*name, version(name)?))).collect(),
            system: format!("{name}, {}", std::env::consts::ARCH),
            processor: processor.to_owned(),
            cores: cores(),
            memory_bytes: system.total_memory(),
            free_bytes: Room::here(true, Path::new(".")).memory,
        }
    }
}

/// Of a package, as it is locked.
fn version(name: &str) -> Option<&'static str> {
    let (_, package) = LOCK.split_once(&format!("name = \"{name}\"\n"))?;
    package.lines().next()?.strip_prefix("version = \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_has_its_version() {
        for name in LIBRARIES {
            assert!(version(name).is_some_and(|version| version.split('.').count() == 3), "{name}");
        }
        assert_eq!(version("triptych"), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(version("no such package"), None);
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20 && !machine.system.is_empty(), "{machine:?}");
    }
}
