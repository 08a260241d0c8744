//! The GPU that tests run on, software Vulkan included.
//!
//! Without any adapter each test says *skipped*; with `TRIPTYCH_REQUIRE_GPU=1` it fails instead. One test binary, one
//! lock: software rasterisers gain nothing from running two at once.

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use burn::tensor::Device;
use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};
use triptych::engine::device::{self, Choice};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Timing every candidate kernel takes a software rasteriser minutes, and nothing here depends on the fastest one.
fn still_autotune() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::default();
        config.autotune.level = AutotuneLevel::Minimal;
        config.autotune.bench.min_samples = 1;
        config.autotune.bench.max_samples = 1;
        config.autotune.bench.short_circuit_samples = 1;
        config.autotune.bench.speed_factor = 1.0;
        config.autotune.disable_cache = true;
        CubeClRuntimeConfig::set(config);
    });
}

pub fn gpu() -> Option<(Device, MutexGuard<'static, ()>)> {
    still_autotune();
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match device::open(Choice::Gpu(0)) {
        Ok(opened) => {
            println!("{}", opened.reason);
            Some((opened.device, guard))
        }
        Err(error) => {
            assert!(std::env::var_os("TRIPTYCH_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: no adapter");
            None
        }
    }
}
