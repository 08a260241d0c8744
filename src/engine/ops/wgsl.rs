//! Runs WGSL text on burn's own queue and buffers.

use burn::backend::wgpu::{CubeDim, CubeTensor, KernelSource, SourceKernel, SourceTemplate};
use burn::tensor::{DType, Shape};
use cubecl::prelude::{CubeCount, KernelId};
use cubecl::server::KernelArguments;

/// Groups along one axis that every GPU accepts.
const AXIS: usize = 65_535;

/// WGSL text with `{{ name }}` where an element type stands, and what stands there.
///
/// - The entry point is `main`, the workgroup size stands in the text.
/// - Every binding is `var<storage, read_write>`, because burn may place two tensors in one buffer, and a GPU buffer
///   has one use at a time.
/// - Every binding is used: the layout is derived from the text.
/// - Nothing checks indices but the text itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wgsl {
    pub text: &'static str,
    pub elements: Vec<(&'static str, &'static str)>,
}

/// The type of `dtype` in WGSL, if it has one.
pub fn element(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 | DType::Flex32 => Some("f32"),
        DType::F16 => Some("f16"),
        _ => None,
    }
}

/// Row-major memory for a tensor of this shape, beside `neighbour` and with anything in it.
pub fn empty(neighbour: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let (client, device) = (neighbour.client.clone(), neighbour.device.clone());
    let memory = client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(client, device, shape, memory, dtype)
}

impl Wgsl {
    /// The text as the GPU's compiler gets it.
    pub fn filled(&self) -> String {
        self.source().complete()
    }

    /// Runs at least `groups` workgroups. Bindings are `tensors` in this order, then the words of `numbers`.
    ///
    /// `tensors` are row-major without gaps, and none is empty. Group `(x, y)` is number `y · num_workgroups.x + x`; the
    /// last row of that grid can reach past `groups`.
    pub fn launch(self, groups: usize, tensors: &[&CubeTensor], numbers: &[u32]) {
        let client = &tensors[0].client;
        let words: Vec<u8> = numbers.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut buffers: Vec<_> = tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        buffers.push(client.create_from_slice(&words).binding());
        let columns = groups.clamp(1, AXIS);
        let grid = CubeCount::Static(columns as u32, groups.div_ceil(columns) as u32, 1);
        let kernel = SourceKernel::new(self, CubeDim::new_single());
        client.launch(Box::new(kernel), grid, KernelArguments::new().with_buffers(buffers));
    }
}

impl KernelSource for Wgsl {
    fn source(&self) -> SourceTemplate {
        let half = self.elements.iter().any(|&(_, element)| element == "f16");
        let text = format!("{}{}", if half { "enable f16;\n" } else { "" }, self.text);
        self.elements.iter().fold(SourceTemplate::new(text), |text, &(name, element)| text.register(name, element))
    }

    /// Compiled kernels are remembered by it, so it holds all that decides the text.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.clone())
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}
