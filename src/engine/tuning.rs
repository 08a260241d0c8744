//! How kernels are picked on a GPU, and where what was found is kept.
//!
//! For each operation and rough size, cubecl tries several kernels when it first meets them and writes the fastest down:
//! left alone, in the Cargo project that the program is started in. Here the next start finds it, from anywhere.

use std::path::{Path, PathBuf};

use cubecl::config::autotune::{AutotuneConfig, AutotuneLevel};
use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};
use cubecl::environment;
use cubecl::records::RecordLevel;

use crate::engine::cache;

/// How the database calls what was tuned, as against other things that cubecl keeps.
const TUNED: &str = "autotune/";

/// Before a GPU opens; the first one decides for the process. What a `cubecl.toml` or `burn.toml` in or above the working
/// folder says, and the variables that begin with `CUBECL_`, are stronger.
pub fn begin(is_software: bool) {
    let config = ours(CubeClRuntimeConfig::from_current_dir(), cache::folder().as_deref(), is_software);
    // One that was set before stays: it is another program's that has the engine as a library.
    CubeClRuntimeConfig::try_set(config.override_from_env());
}

/// `config` with our choices where it has cubecl's own.
fn ours(mut config: CubeClRuntimeConfig, cache: Option<&Path>, is_software: bool) -> CubeClRuntimeConfig {
    if let (CacheConfig::Target, Some(cache)) = (&config.environment.path, cache) {
        config.environment.path = CacheConfig::Directory(cache.join("kernels"));
        // An account of every search, for who writes kernels; it would grow with each start.
        config.environment.records.level = RecordLevel::Off;
    }
    if let (true, AutotuneLevel::Balanced) = (is_software, &config.autotune.level) {
        still(&mut config.autotune);
    }
    config
}

/// Timing every candidate takes a software rasteriser minutes, and the fastest one gains little there.
fn still(autotune: &mut AutotuneConfig) {
    autotune.level = AutotuneLevel::Minimal;
    autotune.bench.min_samples = 1;
    autotune.bench.max_samples = 1;
    autotune.bench.short_circuit_samples = 1;
    autotune.bench.speed_factor = 1.0;
}

/// The database file of this process.
pub fn file() -> PathBuf {
    environment::path()
}

/// How many operations and sizes it knows the fastest kernel of.
pub fn tuned() -> u64 {
    // Asking makes the file.
    if !file().is_file() {
        return 0;
    }
    environment::namespaces().iter().filter(|space| space.namespace.starts_with(TUNED)).map(|space| space.entries).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_kept_in_the_users_cache_unless_a_file_names_another_place() {
        let cache = Path::new("cache");
        let place = |config, cache| match ours(config, cache, false).environment.path {
            CacheConfig::Directory(path) => Some(path),
            _ => None,
        };
        assert_eq!(place(CubeClRuntimeConfig::default(), Some(cache)), Some(cache.join("kernels")));
        assert_eq!(place(CubeClRuntimeConfig::default(), None), None, "without a cache cubecl's own place is as good");
        let mut theirs = CubeClRuntimeConfig::default();
        theirs.environment.path = CacheConfig::Global;
        assert_eq!(place(theirs, Some(cache)), None);
    }

    #[test]
    fn a_software_rasteriser_is_tuned_as_little_as_can_be_unless_a_file_says_how() {
        let samples = |level: AutotuneLevel, is_software| {
            let mut config = CubeClRuntimeConfig::default();
            config.autotune.level = level;
            ours(config, None, is_software).autotune.bench.max_samples
        };
        let usual = CubeClRuntimeConfig::default().autotune.bench.max_samples;
        assert_eq!(samples(AutotuneLevel::Balanced, true), 1);
        assert_eq!(samples(AutotuneLevel::Balanced, false), usual);
        assert_eq!(samples(AutotuneLevel::Full, true), usual);
    }
}
