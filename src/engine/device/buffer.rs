//! The memory behind a tensor, for a window that draws on the device that computes: painted where it lies, never read
//! back.

use burn::backend::wgpu::{CubeBackend, CubeTensor, Wgpu, WgpuResource, into_contiguous};
use burn::tensor::{DType, Tensor};
use cubecl::server::{BufferBinding, Handle};
use cubecl::wgpu::{AutoCompiler, WgpuServer};

use super::Opened;

/// The values of an f32 tensor in GPU memory, row by row. They stay as they are for as long as this is held.
#[derive(Debug)]
pub struct Buffer {
    resource: WgpuResource,
    /// Keeps the memory where it is, and from being handed out again.
    _binding: BufferBinding,
    /// Keeps operations on the tensor from writing their result into its own memory: they ask whether anyone else holds
    /// the handle, and a binding does not count.
    _handle: Handle,
    /// In bytes, without what the memory is rounded up to.
    size: u64,
}

impl Opened {
    /// The memory behind a tensor, where a window draws on this device and the tensor is an f32 one of it.
    ///
    /// Whatever is still to fill that memory is on the device's one queue when this returns, before any frame that is
    /// drawn from then on; nobody waits for it.
    pub fn buffer<const D: usize>(&self, tensor: Tensor<D>) -> Option<Buffer> {
        if !self.shared {
            return None;
        }
        // A model that the GPU gets wrong computes on the CPU although the GPU is open.
        let fused = tensor.try_into_primitive::<Wgpu>().ok()?;
        Buffer::behind(fused.client.clone().resolve_tensor_float::<CubeBackend>(fused))
    }
}

impl Buffer {
    pub(crate) fn behind(tensor: CubeTensor) -> Option<Self> {
        if tensor.dtype != DType::F32 {
            return None;
        }
        let CubeTensor { client, handle, meta, .. } = into_contiguous(tensor);
        let size = (meta.shape().num_elements() * DType::F32.size()) as u64;
        let binding = handle.clone().binding();
        // Submits what waits on the tensor's stream and on this thread's. A lost device is told by whoever reads.
        let resource = client.get_resource::<WgpuServer<AutoCompiler>>(handle.clone()).ok()?.resource().clone();
        Some(Self { resource, _binding: binding, _handle: handle, size })
    }

    /// What holds the values from [`Self::offset`] on, and other tensors' beside them.
    pub fn wgpu(&self) -> &wgpu::Buffer {
        &self.resource.buffer
    }

    /// In bytes.
    pub fn offset(&self) -> u64 {
        self.resource.offset
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}
