//! What a thing is painted from, and the GPU buffer that holds it.

use std::sync::Arc;

use wgpu::util::DeviceExt as _;

use crate::engine::device::Buffer;

/// Bytes of one.
const SIZE: u64 = size_of::<f32>() as u64;

/// A list of numbers, shared.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// On the host: copied to the GPU when it is another list than the last one.
    Host(Arc<[f32]>),
    /// The engine's, on the device that the window draws with: read where it lies.
    Engine(Arc<Buffer>),
}

/// Where a list lies on the GPU.
#[derive(Clone)]
pub(super) struct Slice {
    buffer: wgpu::Buffer,
    /// In bytes, as far as bindings can begin anywhere.
    start: u64,
    /// The first number's place from there.
    pub first: u32,
    /// In bytes from `start`.
    size: u64,
}

impl PartialEq for Numbers {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(a), Self::Host(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Engine(a), Self::Engine(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Numbers {
    pub(super) fn on(&self, device: &wgpu::Device) -> Slice {
        match self {
            Self::Host(list) => {
                // No buffer is empty.
                let list = if list.is_empty() { &[0.0][..] } else { list };
                let contents: Vec<u8> = list.iter().flat_map(|x| x.to_ne_bytes()).collect();
                let usage = wgpu::BufferUsages::STORAGE;
                let descriptor = wgpu::util::BufferInitDescriptor { label: Some("paint"), contents: &contents, usage };
                let size = contents.len() as u64;
                Slice { buffer: device.create_buffer_init(&descriptor), start: 0, first: 0, size }
            }
            Self::Engine(buffer) => {
                let step = u64::from(device.limits().min_storage_buffer_offset_alignment);
                let past = buffer.offset() % step;
                let (start, first) = (buffer.offset() - past, (past / SIZE) as u32);
                Slice { buffer: buffer.wgpu().clone(), start, first, size: past + buffer.size() }
            }
        }
    }
}

impl Slice {
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: self.start,
            size: wgpu::BufferSize::new(self.size),
        })
    }
}
