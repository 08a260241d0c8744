//! `ΔW` itself (LyCORIS `full`, ComfyUI's extraction).

use crate::engine::io::lora_file::Difference;
use crate::engine::io::lora_file::kinds::Read;
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong};

pub fn read(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let Array { values: weight, shape } = parts.array("diff")?;
    if !matches!(shape.len(), 2 | 4) {
        return Err(format!("its difference {shape:?} is no weight of a linear layer or convolution"));
    }
    Ok(Read::Whole(Difference { weight, shape, bias: None }))
}
