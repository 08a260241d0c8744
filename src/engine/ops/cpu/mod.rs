//! Loops of our own for the CPU: what burn-flex does in many passes over memory, in one.

pub mod attention;
pub mod gate;
pub mod moments;
pub mod norm;
pub mod patches;
pub mod triangle;
pub mod winograd;

mod disjoint;
mod exp;
mod product;
mod reduce;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

/// The numbers of an f32 tensor, row after row; copied only where they do not lie so.
#[expect(clippy::needless_pass_by_value, reason = "what is not shared stays so: it can be written in place")]
pub fn contiguous(x: FlexTensor) -> FlexTensor {
    x.to_contiguous()
}

/// A tensor of these numbers, row after row.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}
