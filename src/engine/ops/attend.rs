//! Attention that never holds all scores at once, forwards or backwards.
//!
//! At 512×512 pixels the first level of Stable Diffusion has 4096 places that look at each other in 8 heads: 0.5 GB of
//! scores for each picture, several times over while gradients flow. Here a band of queries is scored, used and
//! forgotten, and scored again on the way back (Dao et al. 2022, arXiv 2205.14135, without their kernel).

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{Slice, Tensor};

use crate::engine::device::cpu;

/// Scores that are alive at a time on the CPU: 4 MB, what a core's cache holds.
const CPU_BAND: usize = 1 << 20;
/// On a GPU: half of the 128 MiB that every adapter lets a kernel bind.
const GPU_BAND: usize = 1 << 24;

/// `softmax(q·kᵀ)·v`, for queries that are scaled already.
///
/// - `q`: `[batch, heads, n, d]`; `k`: `[batch, heads, m, d]`; `v`: `[batch, heads, m, e]`.
/// - the result: `[batch, heads, n, e]`. Any of the three may be tracked.
pub fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let ([batch, heads, n, _], [_, _, m, _]) = (q.dims(), k.dims());
    let scores = if q.device() == cpu() { CPU_BAND } else { GPU_BAND };
    let rows = (scores / (batch * heads * m)).clamp(1, n);
    in_bands(q, k, v, rows)
}

/// With `rows` queries in a band.
fn in_bands(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, rows: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::attend(q.into_dispatch(), k.into_dispatch(), v.into_dispatch(), rows))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Attend: Backend {
    #[fusion(default)]
    fn attend(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let k_turned = Self::float_swap_dims(k, 2, 3);
        let bands = bands(q.shape()[2], rows).map(|band| {
            let p = probabilities::<Self>(of_band::<Self>(&q, band), k_turned.clone());
            Self::float_matmul(p, v.clone())
        });
        Self::float_cat(bands.collect(), 2)
    }
}

impl Attend for CubeBackend {}

impl Attend for Flex {}

/// First query and one behind the last of each band.
fn bands(n: usize, rows: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..n).step_by(rows).map(move |first| [first, (first + rows).min(n)])
}

fn of_band<B: Backend>(x: &FloatTensor<B>, [first, end]: [usize; 2]) -> FloatTensor<B> {
    let whole = Slice::full();
    B::float_slice(x.clone(), &[whole, whole, Slice::from(first..end), whole])
}

/// `softmax(q·kᵀ)`, `[batch, heads, rows, m]`.
fn probabilities<B: Backend>(q: FloatTensor<B>, k_turned: FloatTensor<B>) -> FloatTensor<B> {
    B::softmax(B::float_matmul(q, k_turned), 3)
}

impl<B: Attend, C: CheckpointStrategy> Attend for Autodiff<B, C> {
    fn attend(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let nodes = [q.node(), k.node(), v.node()];
        let inner = [q, k, v].map(FloatTensor::<Self>::into_primitive);
        let [q, k, v] = inner.clone();
        let out = B::attend(q, k, v, rows);
        match AttendBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inner, rows), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct AttendBackward;

impl<B: Backend> Backward<B, 3> for AttendBackward {
    /// `q`, `k`, `v` and the queries in a band.
    type State = ([FloatTensor<B>; 3], usize);

    /// With `P = softmax(q·kᵀ)` and `D = g·vᵀ`: `∂v = Pᵀ·g`, `S = P∘(D − rowsum(P∘D))`, `∂q = S·k`, `∂k = Sᵀ·q`.
    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([q, k, v], rows) = ops.state;
        let g = gradients.consume::<B>(&ops.node);
        let turned = |x: &FloatTensor<B>| B::float_swap_dims(x.clone(), 2, 3);
        let sum = |sum: Option<FloatTensor<B>>, more| match sum {
            Some(sum) => Some(B::float_add(sum, more)),
            None => Some(more),
        };
        let (k_turned, v_turned) = (turned(&k), turned(&v));
        let (mut by_q, mut by_k, mut by_v) = (Vec::new(), None, None);
        for band in bands(q.shape()[2], rows) {
            let (q, g) = (of_band::<B>(&q, band), of_band::<B>(&g, band));
            let p = probabilities::<B>(q.clone(), k_turned.clone());
            by_v = sum(by_v, B::float_matmul(turned(&p), g.clone()));
            let d = B::float_matmul(g, v_turned.clone());
            let mean = B::float_sum_dim(B::float_mul(p.clone(), d.clone()), 3);
            let s = B::float_mul(p, B::float_sub(d, mean));
            by_k = sum(by_k, B::float_matmul(turned(&s), q));
            by_q.push(B::float_matmul(s, k.clone()));
        }
        let [q_node, k_node, v_node] = ops.parents;
        for (node, gradient) in [(q_node, Some(B::float_cat(by_q, 2))), (k_node, by_k), (v_node, by_v)] {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::read;
    use crate::engine::random::Philox;
    use burn::tensor::{TensorData, activation};

    /// Bands that do not divide the queries, other widths for keys and values: the same answer and the same gradients
    /// as from all scores at once.
    #[test]
    fn bands_change_nothing() {
        let tensor = |draw, shape: [usize; 4]| {
            let values = Philox::new(0).normal(draw, shape.iter().product());
            Tensor::<4>::from_data(TensorData::new(values, shape), &cpu()).autodiff().require_grad()
        };
        let (q, k, v) = (tensor(0, [2, 3, 7, 4]), tensor(1, [2, 3, 5, 4]), tensor(2, [2, 3, 5, 6]));
        let pull = tensor(3, [2, 3, 7, 6]).detach();
        let run = |out: Tensor<4>| {
            let gradients = (out.clone() * pull.clone()).sum().backward();
            let of = |x: &Tensor<4>| read(x.grad(&gradients).unwrap()).unwrap();
            [read(out.inner()).unwrap(), of(&q), of(&k), of(&v)]
        };
        let scores = q.clone().matmul(k.clone().transpose());
        let whole = run(activation::softmax(scores, 3).matmul(v.clone()));
        for rows in [1, 3, 7] {
            let banded = run(in_bands(q.clone(), k.clone(), v.clone(), rows));
            for (a, b) in whole.iter().flatten().zip(banded.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{rows} rows: {a} {b}");
            }
        }
    }
}
