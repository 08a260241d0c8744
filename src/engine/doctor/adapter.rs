//! A graphics adapter, in what decides whether and how the engine runs on it.

use serde::Serialize;
use wgpu::{DeviceType, Features};

use crate::engine::device;

#[derive(Clone, Debug, Serialize)]
pub struct Adapter {
    /// As `--device` names it.
    pub choice: String,
    pub name: String,
    /// Vulkan, Metal, …
    pub api: String,
    pub driver: String,
    /// `discrete GPU`, …
    pub kind: &'static str,
    /// Whether shaders can compute in f16 (`SHADER_F16`).
    pub f16: bool,
    pub limits: Limits,
}

/// Those that kernels run into first.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    pub buffer_bytes: u64,
    /// Of a buffer, as much as one kernel sees.
    pub binding_bytes: u64,
    pub storage_buffers: u32,
    pub workgroup_invocations: u32,
    pub workgroup_size: [u32; 3],
    pub workgroup_bytes: u32,
    pub workgroups_per_axis: u32,
}

impl Adapter {
    pub(super) fn of(number: usize, adapter: &device::Adapter) -> Self {
        let device::Adapter { info, limits, features, .. } = adapter;
        Self {
            choice: format!("gpu:{number}"),
            name: info.name.clone(),
            api: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            kind: match info.device_type {
                DeviceType::DiscreteGpu => "discrete GPU",
                DeviceType::IntegratedGpu => "integrated GPU",
                DeviceType::VirtualGpu => "virtual GPU",
                DeviceType::Cpu => "software, no GPU",
                DeviceType::Other => "of unknown kind",
            },
            f16: features.contains(Features::SHADER_F16),
            limits: Limits {
                buffer_bytes: limits.max_buffer_size,
                binding_bytes: limits.max_storage_buffer_binding_size,
                storage_buffers: limits.max_storage_buffers_per_shader_stage,
                workgroup_invocations: limits.max_compute_invocations_per_workgroup,
                workgroup_size: [
                    limits.max_compute_workgroup_size_x,
                    limits.max_compute_workgroup_size_y,
                    limits.max_compute_workgroup_size_z,
                ],
                workgroup_bytes: limits.max_compute_workgroup_storage_size,
                workgroups_per_axis: limits.max_compute_workgroups_per_dimension,
            },
        }
    }
}
