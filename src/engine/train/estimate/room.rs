//! What is free, to be compared with what is needed.

use std::path::Path;

use sysinfo::{Disk, Disks, System};

use crate::engine::io::atomic::folder_of;

/// Bytes that are free; `None` where nothing tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub memory: Option<u64>,
    pub disk: Option<u64>,
}

impl Room {
    /// For a training that writes `out`. No GPU tells what it has left.
    pub fn here(on_cpu: bool, out: &Path) -> Self {
        Self { memory: on_cpu.then(memory).flatten(), disk: disk(out) }
    }
}

fn memory() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    // A container may have less than its machine; files that it has read can be forgotten.
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    Some(system.available_memory().min(limit)).filter(|&bytes| bytes > 0)
}

/// On the disk that `out` lies on.
fn disk(out: &Path) -> Option<u64> {
    // What is not there yet lies where the nearest folder that is there leads to.
    let folder = std::path::absolute(folder_of(out)).ok()?;
    let folder = folder.ancestors().find_map(|folder| folder.canonicalize().ok())?;
    let disks = Disks::new_with_refreshed_list();
    let holds = disks.list().iter().filter(|disk| folder.starts_with(disk.mount_point()));
    holds.max_by_key(|disk| disk.mount_point().as_os_str().len()).map(Disk::available_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::here(true, &folder.path().join("a.safetensors"));
        assert!(room.memory.is_some_and(|bytes| bytes > 1 << 20), "{room:?}");
        assert_eq!(Room::here(false, folder.path()).memory, None);
    }
}
