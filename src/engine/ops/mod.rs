//! What runs on the device below the networks.
//!
//! A kernel for GPUs is `shaders/ops/NAME.wgsl`, `src/engine/ops/NAME.rs` and its row in [`OPS`]; the tests read the row.
//! Parts of a long shader lie in `shaders/ops/NAME/`, what several need in `shaders/common/`.
//! On the CPU, and wherever WGSL lacks the element type, the same operation runs as plain tensor operations. What the CPU
//! has a loop of its own for is in `cpu`; its plain tensor operations are then for GPUs.

mod adamw;
mod attend;
mod convolve;
#[expect(clippy::inline_always, reason = "what is not inlined where it is dispatched runs without vector instructions")]
mod cpu;
mod fuse;
mod geglu;
mod gram;
mod group_norm;
mod layer_norm;
mod low_rank;
mod orthogonality;
mod outer;
mod overlap;
pub mod self_test;
mod spectra;
pub mod wgsl;
mod widen;

use std::sync::Arc;

use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Tensor};

use self::wgsl::Wgsl;

pub use adamw::{Step, adamw};
pub use attend::attend;
pub use convolve::convolve;
pub(in crate::engine) use cpu::triangle::triangle;
pub use fuse::fuse;
pub use geglu::geglu;
pub use group_norm::{Then, group_norm};
pub use layer_norm::layer_norm;
pub use low_rank::low_rank;
pub use orthogonality::orthogonality;
pub use overlap::overlap;
pub use spectra::{Factors, Spectra, WIDEST, spectra};
pub use widen::widen;

/// Every kernel.
pub const OPS: &[Op] = &[
    fuse::OP,
    gram::OP,
    group_norm::OP,
    group_norm::BACKWARD,
    low_rank::OP,
    orthogonality::OP,
    outer::OP,
    overlap::OP,
    spectra::OP,
];

/// One kernel, in all that its tests need to know.
#[derive(Clone, Copy)]
pub struct Op {
    pub name: &'static str,
    pub formula: &'static str,
    /// The element types it is written for: of the first input and of the outputs.
    pub elements: &'static [[DType; 2]],
    /// The shader for such types; none where WGSL lacks one.
    pub kernel: fn([DType; 2]) -> Option<Wgsl>,
    pub inputs: fn(&Case) -> Vec<Input>,
    /// Shapes: of the result, then of what else is kept for the backward pass.
    pub outputs: fn(&Case) -> Vec<[usize; 2]>,
    /// The public function, on any device.
    pub run: fn(&Case, &[Tensor<2>]) -> Vec<Tensor<2>>,
    /// The shader alone, on inputs without gaps, into outputs that are there already.
    pub launch: fn(&Case, Wgsl, &[CubeTensor], &[CubeTensor]),
    /// The inputs that gradients pass to.
    pub differentiable: &'static [usize],
    /// Largest difference between shader and formula in f32, as a share of the largest value.
    pub tolerance: f32,
}

/// Shape and element type.
pub type Input = ([usize; 2], DType);

/// Sizes and numbers to try a kernel with; each takes those that it has a use for.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub rank: usize,
    pub scale: f32,
    pub elements: [DType; 2],
}

impl Case {
    /// One for each rank, of both signs.
    fn scales(&self) -> Arc<[f32]> {
        (0..self.rank).map(|r| self.scale * (1.0 - 0.75 * (r % 3) as f32)).collect()
    }
}
