//! Attention that never holds all scores at once, forwards or backwards.
//!
//! At 512×512 pixels the first level of Stable Diffusion has 4096 places that look at each other in 8 heads: 0.5 GB of
//! scores for each picture, several times over while gradients flow. Here a band of queries is scored, used and
//! forgotten, and scored again on the way back (Dao et al. 2022, arXiv 2205.14135, without their kernel).

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::CubeBackend;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{Slice, Tensor};

use super::cpu;
use super::cpu::attention::{self, Shape};
use crate::engine::device::cpu as cpu_device;

/// Scores of a head that are alive at a time on the CPU: 1 MB, what a core's cache holds. With fewer queries in a band, the
/// keys are laid out anew too often.
const CPU_BAND: usize = 1 << 18;
/// Scores of all heads on a GPU: half of the 128 MiB that every adapter lets a kernel bind.
const GPU_BAND: usize = 1 << 24;

/// `softmax(q·kᵀ/√d)·v` on `heads` heads.
///
/// - `q`: `[batch, n, heads·d]`; `k`: `[batch, m, heads·d]`; `v`: `[batch, m, heads·e]`.
/// - the result: `[batch, n, heads·e]`. Any of the three may be tracked.
pub fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    let ([batch, n, _], [_, m, _]) = (q.dims(), k.dims());
    let scores = if q.device() == cpu_device() { CPU_BAND } else { GPU_BAND / (batch * heads) };
    let rows = (scores / m).clamp(1, n);
    in_bands(q, k, v, heads, rows)
}

/// With `rows` queries in a band.
fn in_bands(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, rows: usize) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::attend(q.into_dispatch(), k.into_dispatch(), v.into_dispatch(), heads, rows))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait Attend: Backend {
    #[fusion(default)]
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
        rows: usize,
    ) -> FloatTensor<Self> {
        plain::<Self>(q, k, v, heads, rows)
    }

    /// The gradients of `q`, `k` and `v` from `g`, that of the result.
    #[fusion(default)]
    fn attend_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        heads: usize,
        rows: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        plain_backward::<Self>(q, k, v, g, heads, rows)
    }
}

impl Attend for CubeBackend {}

impl Attend for Flex {
    fn attend(q: FlexTensor, k: FlexTensor, v: FlexTensor, heads: usize, rows: usize) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(cpu::contiguous);
        let shape = shape(&q, &k, &v, heads, rows);
        let out = attention::attend(q.storage(), k.storage(), v.storage(), shape);
        cpu::tensor(out, [shape.batch, shape.n, heads * shape.e])
    }

    fn attend_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        g: FlexTensor,
        heads: usize,
        rows: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [q, k, v, g] = [q, k, v, g].map(cpu::contiguous);
        let shape = shape(&q, &k, &v, heads, rows);
        let [by_q, by_k, by_v] = attention::backward(q.storage(), k.storage(), v.storage(), g.storage(), shape);
        (cpu::tensor(by_q, q.shape()), cpu::tensor(by_k, k.shape()), cpu::tensor(by_v, v.shape()))
    }
}

fn shape(q: &FlexTensor, k: &FlexTensor, v: &FlexTensor, heads: usize, rows: usize) -> Shape {
    let ([batch, n, d], [_, m, _], [_, _, e]) = (q.shape().dims(), k.shape().dims(), v.shape().dims());
    Shape { batch, heads, n, m, d: d / heads, e: e / heads, rows }
}

/// First query and one behind the last of each band.
fn bands(n: usize, rows: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..n).step_by(rows).map(move |first| [first, (first + rows).min(n)])
}

/// `[batch, n, heads·width] → [batch, heads, n, width]`.
fn split<B: Backend>(x: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let [batch, n, all] = x.shape().dims();
    B::float_swap_dims(B::float_reshape(x, [batch, n, heads, all / heads].into()), 1, 2)
}

/// And back.
fn joined<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, heads, n, width] = x.shape().dims();
    B::float_reshape(B::float_swap_dims(x, 1, 2), [batch, n, heads * width].into())
}

/// Queries with the scale, which is cheaper on them than on the scores.
fn scaled<B: Backend>(q: FloatTensor<B>, heads: usize) -> (FloatTensor<B>, f32) {
    let [_, _, all] = q.shape().dims();
    let scale = ((all / heads) as f32).sqrt().recip();
    (B::float_mul_scalar(split::<B>(q, heads), scale.into()), scale)
}

fn of_band<B: Backend>(x: &FloatTensor<B>, [first, end]: [usize; 2]) -> FloatTensor<B> {
    let whole = Slice::full();
    B::float_slice(x.clone(), &[whole, whole, Slice::from(first..end), whole])
}

/// `softmax(q·kᵀ)`, `[batch, heads, rows, m]`.
fn probabilities<B: Backend>(q: FloatTensor<B>, k_turned: FloatTensor<B>) -> FloatTensor<B> {
    B::softmax(B::float_matmul(q, k_turned), 3)
}

fn plain<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    heads: usize,
    rows: usize,
) -> FloatTensor<B> {
    let ((q, _), k, v) = (scaled::<B>(q, heads), split::<B>(k, heads), split::<B>(v, heads));
    let k_turned = B::float_swap_dims(k, 2, 3);
    let bands = bands(q.shape()[2], rows).map(|band| {
        let p = probabilities::<B>(of_band::<B>(&q, band), k_turned.clone());
        B::float_matmul(p, v.clone())
    });
    joined::<B>(B::float_cat(bands.collect(), 2))
}

/// With `P = softmax(q·kᵀ)` and `D = g·vᵀ`: `∂v = Pᵀ·g`, `S = P∘(D − rowsum(P∘D))`, `∂q = S·k`, `∂k = Sᵀ·q`.
fn plain_backward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    g: FloatTensor<B>,
    heads: usize,
    rows: usize,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let ((q, scale), k, v) = (scaled::<B>(q, heads), split::<B>(k, heads), split::<B>(v, heads));
    let g = split::<B>(g, heads);
    let turned = |x: &FloatTensor<B>| B::float_swap_dims(x.clone(), 2, 3);
    let sum = |sum: Option<FloatTensor<B>>, more| match sum {
        Some(sum) => B::float_add(sum, more),
        None => more,
    };
    let (k_turned, v_turned) = (turned(&k), turned(&v));
    let (mut by_q, mut by_k, mut by_v) = (Vec::new(), None, None);
    for band in bands(q.shape()[2], rows) {
        let (q, g) = (of_band::<B>(&q, band), of_band::<B>(&g, band));
        let p = probabilities::<B>(q.clone(), k_turned.clone());
        by_v = Some(sum(by_v, B::float_matmul(turned(&p), g.clone())));
        let d = B::float_matmul(g, v_turned.clone());
        let mean = B::float_sum_dim(B::float_mul(p.clone(), d.clone()), 3);
        let s = B::float_mul(p, B::float_sub(d, mean));
        by_k = Some(sum(by_k, B::float_matmul(turned(&s), q)));
        by_q.push(B::float_mul_scalar(B::float_matmul(s, k.clone()), scale.into()));
    }
    let [by_k, by_v] = [by_k, by_v].map(|by| by.map_or_else(|| unreachable!("there is a query"), joined::<B>));
    (joined::<B>(B::float_cat(by_q, 2)), by_k, by_v)
}

impl<B: Attend, C: CheckpointStrategy> Attend for Autodiff<B, C> {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
        rows: usize,
    ) -> FloatTensor<Self> {
        let nodes = [q.node(), k.node(), v.node()];
        let inner = [q, k, v].map(FloatTensor::<Self>::into_primitive);
        let [q, k, v] = inner.clone();
        let out = B::attend(q, k, v, heads, rows);
        match AttendBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inner, heads, rows), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct AttendBackward;

impl<B: Attend> Backward<B, 3> for AttendBackward {
    /// `q`, `k`, `v`, the heads and the queries in a band.
    type State = ([FloatTensor<B>; 3], usize, usize);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([q, k, v], heads, rows) = ops.state;
        let g = gradients.consume::<B>(&ops.node);
        let (by_q, by_k, by_v) = B::attend_backward(q, k, v, g, heads, rows);
        for (node, gradient) in ops.parents.into_iter().zip([by_q, by_k, by_v]) {
            if let Some(node) = node {
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
        let heads = 3;
        let tensor = |draw, shape: [usize; 3]| {
            let values = Philox::new(0).normal(draw, shape.iter().product());
            Tensor::<3>::from_data(TensorData::new(values, shape), &cpu_device()).autodiff().require_grad()
        };
        let (q, k, v) = (tensor(0, [2, 7, 12]), tensor(1, [2, 5, 12]), tensor(2, [2, 5, 18]));
        let pull = tensor(3, [2, 7, 18]).detach();
        let run = |out: Tensor<3>| {
            let gradients = (out.clone() * pull.clone()).sum().backward();
            let of = |x: &Tensor<3>| read(x.grad(&gradients).unwrap()).unwrap();
            [read(out.inner()).unwrap(), of(&q), of(&k), of(&v)]
        };
        let split = |x: &Tensor<3>| {
            let [b, n, c] = x.dims();
            x.clone().reshape([b, n, heads, c / heads]).swap_dims(1, 2)
        };
        let scores = split(&q).matmul(split(&k).transpose()) / 2.0;
        let whole = run(activation::softmax(scores, 3).matmul(split(&v)).swap_dims(1, 2).reshape([2, 7, 18]));
        for rows in [1, 3, 7] {
            let banded = run(in_bands(q.clone(), k.clone(), v.clone(), heads, rows));
            for (a, b) in whole.iter().flatten().zip(banded.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{rows} rows: {a} {b}");
            }
            // What a GPU runs.
            let flex = |x: &Tensor<3>| cpu::tensor(read(x.clone().inner()).unwrap(), x.dims());
            let (q, k, v, g) = (flex(&q), flex(&k), flex(&v), flex(&pull));
            let (by_q, by_k, by_v) = plain_backward::<Flex>(q.clone(), k.clone(), v.clone(), g, heads, rows);
            let plain = [plain::<Flex>(q, k, v, heads, rows), by_q, by_k, by_v];
            for (a, b) in whole.iter().zip(plain.map(cpu::contiguous)) {
                assert!(a.iter().zip(b.storage::<f32>()).all(|(a, b)| (a - b).abs() < 1e-5), "{rows} rows, plain");
            }
        }
    }
}
