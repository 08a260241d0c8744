//! Picks and opens what computes: a GPU through wgpu, or the CPU through burn-flex.

mod buffer;

use std::fmt;
use std::str::FromStr;

pub use buffer::Buffer;
use burn::backend::DispatchDevice;
pub use burn::backend::wgpu::WgpuSetup;
use burn::tensor::{Device, DeviceKind, Tensor, TensorReadError};
use wgpu::{AdapterInfo, Backend, Backends, DeviceType, Features, Limits};

use crate::engine::{Error, Result, tuning};

/// Kernels submitted at once on a device that also draws: a frame waits for one such slice at most.
const SHARED_TASKS: usize = 16;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A real GPU where there is one, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    /// The first GPU, or the one of this number; a software rasteriser counts only here.
    Gpu(usize),
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(0)),
            _ => text
                .strip_prefix("gpu:")
                .and_then(|n| n.parse().ok())
                .map(Self::Gpu)
                .ok_or_else(|| Error::usage(format!("“{text}” is not a device"), "Choose auto, cpu, gpu or gpu:N")),
        }
    }
}

/// A device ready for work.
#[derive(Clone, Debug)]
pub struct Opened {
    pub device: Device,
    /// `CPU`, or the adapter's name.
    pub name: String,
    /// One line: which device, and why this one.
    pub reason: String,
    /// Name, driver and version of a GPU: what a self-test's result holds for.
    pub driver: Option<String>,
    /// Whether a window draws with it: what lies in its memory can be painted from there.
    pub shared: bool,
}

/// The CPU.
pub fn cpu() -> Device {
    Device::flex()
}

/// Whether shaders run on it.
pub fn is_gpu(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// Runs `work` on one of so many threads of its own that share what it computes: from any other thread, each operation on
/// the CPU would be handed over and waited for.
pub fn on_workers<T: Send>(name: &'static str, threads: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("{name} {i}"))
        .build()
        .map_err(|e| Error::new(format!("No threads could be started ({e})"), "Close other programs"))?;
    Ok(pool.install(work))
}

/// As many as can run at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// A tensor's values on the host. Waits for the device, which may have been unplugged or reset meanwhile.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let values = || -> Result<Vec<f32>, TensorReadError> { Ok(tensor.try_into_data()?.try_to_vec()?) };
    values().map_err(|e| lost(&e.to_string()))
}

/// Waits until a device has done all that was asked of it.
pub fn wait(device: &Device) -> Result<()> {
    device.sync().map_err(|e| lost(&e.to_string()))
}

fn lost(why: &str) -> Error {
    Error::new(
        format!("The device did not return its result ({})", cause(why)),
        "Start Triptych again once the device is back, or use --device cpu; files and saved states are as they were",
    )
}

/// The line that says why: libraries put theirs before it and a trace after it.
fn cause(text: &str) -> &str {
    let told = text.split("Backtrace:").next().unwrap_or_default().trim_end();
    told.rsplit("Caused by:").next().unwrap_or_default().trim_start().lines().next().unwrap_or_default()
}

/// Opens what `choice` asks for.
pub fn open(choice: Choice) -> Result<Opened> {
    let on_cpu = |reason: String| Opened { device: cpu(), name: "CPU".into(), reason, driver: None, shared: false };
    match choice {
        Choice::Cpu => Ok(on_cpu("CPU, as asked".into())),
        Choice::Auto => {
            let adapters = adapters();
            match automatic(&adapters) {
                Ok(adapter) => adapter
                    .open("the first real GPU here")
                    .or_else(|error| Ok(on_cpu(format!("CPU, because of this: {}", error.what)))),
                Err(reason) => Ok(on_cpu(reason)),
            }
        }
        Choice::Gpu(index) => {
            let adapters = adapters();
            let adapter = adapters.get(index).ok_or_else(|| match adapters.len() {
                0 => Error::new("No GPU driver was found", "Install a Vulkan driver, or use --device cpu"),
                1 => Error::new(format!("There is no GPU number {index}"), "The only one here is gpu:0"),
                n => Error::new(format!("There is no GPU number {index}"), format!("Choose gpu:0 to gpu:{}", n - 1)),
            })?;
            adapter.open("as asked")
        }
    }
}

/// The adapter that [`Choice::Auto`] takes, or why it takes the CPU.
pub fn automatic(adapters: &[Adapter]) -> Result<&Adapter, String> {
    adapters.iter().find(|adapter| !adapter.is_software()).ok_or_else(|| match adapters.first() {
        None => "CPU, because no GPU driver was found".into(),
        Some(adapter) => format!("CPU, because {} only imitates a GPU in software", adapter.info.name),
    })
}

/// Computes on a device that a window already draws with: one queue, nothing copied between the two.
///
/// Once per device: each call starts a runtime of its own.
pub fn share(setup: WgpuSetup) -> Result<Opened> {
    let info = setup.adapter.get_info();
    tuning::begin(is_software(&info));
    let device = Device::wgpu_options().setup(setup).tasks_max(SHARED_TASKS).init().map_err(|error| {
        Error::new(
            format!("The window's GPU “{}” cannot compute ({error})", info.name),
            "Update its driver, or choose the CPU",
        )
    })?;
    Ok(Opened { shared: true, ..opened(device, &info, "shared with the window") })
}

fn opened(device: Device, info: &AdapterInfo, why: &str) -> Opened {
    Opened {
        device,
        name: info.name.clone(),
        reason: format!("{} over {}, {why}", info.name, info.backend),
        driver: Some(format!("{} {} {} {}", info.name, info.backend, info.driver, info.driver_info)),
        shared: false,
    }
}

/// One adapter as burn names it.
pub struct Adapter {
    pub info: AdapterInfo,
    pub limits: Limits,
    pub features: Features,
    kind: DeviceKind,
}

fn is_software(info: &AdapterInfo) -> bool {
    info.device_type == DeviceType::Cpu
}

impl Adapter {
    pub fn is_software(&self) -> bool {
        is_software(&self.info)
    }

    fn open(&self, why: &str) -> Result<Opened> {
        let Self { info, kind, .. } = self;
        tuning::begin(self.is_software());
        // A runtime can be registered once; later calls reuse it.
        match Device::wgpu_options().device_kind(kind.clone()).init() {
            Ok(_) | Err(burn::tensor::wgpu::WgpuInitError::Registration { .. }) => {}
            Err(error) => {
                return Err(Error::new(
                    format!("The GPU “{}” could not be opened ({error})", info.name),
                    "Update its driver, or use --device cpu",
                ));
            }
        }
        Ok(opened(Device::wgpu(kind.clone()), info, why))
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.info.name, self.info.device_type)
    }
}

/// Every adapter of the best graphics API, real GPUs before software.
///
/// burn tries the same APIs in the same order and counts each type of adapter on its own.
pub fn adapters() -> Vec<Adapter> {
    let chain =
        if cfg!(target_os = "macos") { &[Backend::Metal][..] } else { &[Backend::Vulkan, Backend::Dx12, Backend::Gl] };
    let mut best: Vec<wgpu::Adapter> = Vec::new();
    for &backend in chain {
        let found = probe(backend);
        let real = found.iter().any(|adapter| !is_software(&adapter.get_info()));
        if real || best.is_empty() {
            best = found;
        }
        if real {
            break;
        }
    }
    let mut counts = [0; 3];
    let mut adapters: Vec<Adapter> = best
        .into_iter()
        .map(|adapter| {
            let info = adapter.get_info();
            let mut next = |i: usize| {
                counts[i] += 1;
                counts[i] - 1
            };
            let kind = match info.device_type {
                DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(next(0)),
                DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(next(1)),
                DeviceType::VirtualGpu => DeviceKind::VirtualGpu(next(2)),
                DeviceType::Cpu => DeviceKind::Cpu,
                DeviceType::Other => DeviceKind::DefaultDevice,
            };
            Adapter { info, limits: adapter.limits(), features: adapter.features(), kind }
        })
        .collect();
    adapters.sort_by_key(|adapter| match adapter.info.device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    adapters
}

fn probe(backend: Backend) -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: Backends::from(backend),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    pollster::block_on(instance.enumerate_adapters(backend.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_parse() {
        assert_eq!("gpu:2".parse::<Choice>().unwrap(), Choice::Gpu(2));
        assert_eq!("auto".parse::<Choice>().unwrap(), Choice::Auto);
        assert!("gpu:x".parse::<Choice>().is_err_and(|e| e.advice.contains("gpu:N")));
    }

    #[test]
    fn a_cause_is_one_line() {
        let nested =
            "An error happened\nCaused by:\n  An error happened\nCaused by:\n  Lost: unplugged\nBacktrace:\n 0: main";
        assert_eq!(cause(nested), "Lost: unplugged");
        assert_eq!(cause("not contiguous"), "not contiguous");
    }

    #[test]
    fn auto_never_takes_a_software_rasteriser() {
        let opened = open(Choice::Auto).unwrap();
        let software = adapters().into_iter().filter(Adapter::is_software).map(|a| a.info.name).collect::<Vec<_>>();
        assert!(!software.contains(&opened.name), "{}", opened.reason);
    }
}
