//! Starts from a layer's own strongest directions, and what has moved since.

use burn::tensor::Tensor;
use faer::MatRef;

use crate::engine::Result;
use crate::engine::adapter::Spot;
use crate::engine::device::read;
use crate::engine::spectrum::{self, LowRank};

/// Up to this many rows or columns the whole SVD takes a fraction of a second. A weight's spectrum falls slowly, and the
/// sketch that serves wider layers would start from directions beside the strongest.
const SMALL: usize = 384;

/// The leading part `U·Σ·Vᵀ` of a weight.
pub struct Strongest {
    /// `U [out, rank]`
    pub write: Vec<f32>,
    pub values: Vec<f64>,
    /// `Vᵀ [rank, in]`
    pub read: Vec<f32>,
}

/// Directions that a layer narrower than the rank lacks are zeros: they never move.
pub fn strongest(spot: &Spot<'_>, rank: usize) -> Result<Strongest> {
    let (out, input) = (spot.layer.out, spot.layer.input());
    let weight = read(spot.weight.wide_oi())?;
    let weight = MatRef::from_row_major_slice(&weight, out, input).map(|&x| f64::from(x));
    let svd = match out.min(input) <= SMALL {
        true => LowRank::from_dense(weight).svd()?,
        false => spectrum::leading(weight.as_ref(), rank)?,
    };
    let of = |m: MatRef<'_, f64>, row: usize, k: usize| if k < m.ncols() { m[(row, k)] as f32 } else { 0.0 };
    Ok(Strongest {
        write: (0..out * rank).map(|at| of(svd.u.as_ref(), at / rank, at % rank)).collect(),
        values: (0..rank).map(|k| svd.s.get(k).copied().unwrap_or(0.0)).collect(),
        read: (0..rank * input).map(|at| of(svd.v.as_ref(), at % input, at / input)).collect(),
    })
}

/// `up·down − up₀·down₀` as `[up − up₀ | up₀]·[down; down − down₀]`: what has moved stands alone on one side of each
/// product, so that rounding to half precision costs a share of that and not of the layer.
pub fn moved([down, up]: [&Tensor<2>; 2], [down0, up0]: [&Tensor<2>; 2]) -> [Tensor<2>; 2] {
    let up = vec![up.clone() - up0.clone(), up0.clone()];
    let down = vec![down.clone(), down.clone() - down0.clone()];
    [Tensor::cat(down, 0), Tensor::cat(up, 1)]
}
