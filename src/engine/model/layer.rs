//! The table of layers that an adapter can sit on.

use burn::tensor::Tensor;

use crate::engine::io::names;
use crate::engine::ops::widen;

/// Index of a layer in its model's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub usize);

/// The network a layer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Text,
    /// SDXL's second text encoder.
    Text2,
    Unet,
    /// Never adapted.
    Vae,
    /// An image classifier.
    Vision,
}

impl Part {
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Text2)
    }
}

/// One linear or convolution layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub part: Part,
    /// Module path as in the diffusers or transformers file, without the part: `mid_block.attentions.0.proj_in`.
    pub path: String,
    pub out: usize,
    /// Channels in.
    pub channels: usize,
    /// `[height, width]` of the kernel; `None` for a linear layer.
    pub kernel: Option<[usize; 2]>,
    /// kohya's name of it, where that does not follow from part and path: in SDXL.
    pub module: Option<String>,
}

/// The untouched parameters of a layer: handles, the model keeps the numbers.
#[derive(Clone, Debug)]
pub struct Weight {
    /// `[out, in]`, for convolutions `[out, channels·kh·kw]`, as it is held: f32 or f16.
    pub oi: Tensor<2>,
    pub bias: Option<Tensor<1>>,
}

impl Weight {
    /// `[out, in]` in f32, to compute with.
    pub fn wide_oi(&self) -> Tensor<2> {
        widen(self.oi.clone())
    }
}

/// Layers with their weights, in the order of [`LayerId`].
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub layers: Vec<Layer>,
    pub weights: Vec<Weight>,
}

impl Layer {
    /// Width of the flattened weight `[out, input]`: `channels · kh · kw`.
    pub fn input(&self) -> usize {
        self.channels * self.kernel.map_or(1, |[h, w]| h * w)
    }

    /// Shape of `lora_down.weight` in files: `[rank, in]`, for convolutions `[rank, in, kh, kw]`.
    pub fn down_shape(&self, rank: usize) -> Vec<usize> {
        Self::factor_shape(rank, self.channels, self.kernel)
    }

    /// Shape of `lora_up.weight` in files: `[out, rank]`, for convolutions `[out, rank, 1, 1]`.
    pub fn up_shape(&self, rank: usize) -> Vec<usize> {
        Self::factor_shape(self.out, rank, self.kernel.map(|_| [1, 1]))
    }

    fn factor_shape(rows: usize, columns: usize, kernel: Option<[usize; 2]>) -> Vec<usize> {
        match kernel {
            None => vec![rows, columns],
            Some([h, w]) => vec![rows, columns, h, w],
        }
    }

    /// kohya's name of it, or ours where kohya has none; unique in the model: `lora_unet_mid_block_attentions_0_proj_in`,
    /// and in SDXL `lora_unet_middle_block_1_proj_in`.
    pub fn module(&self) -> String {
        self.module.clone().unwrap_or_else(|| self.flat_path())
    }

    /// The name that follows from its path: files for SDXL have it where they were written by diffusers.
    pub fn flat_path(&self) -> String {
        let prefix = match self.part {
            Part::Text => names::KOHYA_TEXT,
            Part::Text2 => names::KOHYA_TEXT_2,
            Part::Unet | Part::Vae => names::KOHYA_UNET,
            Part::Vision => names::VISION,
        };
        names::flat(prefix, &self.path)
    }
}
