//! Group normalisation (Wu & He 2018, arXiv 1803.08494), with SiLU behind it where asked: one pass, which keeps its input
//! alone for the backward pass.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps as _;
use burn::backend::tensor::FloatTensor;
use burn::backend::wgpu::{CubeBackend, CubeTensor, into_contiguous};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

use super::cpu;
use super::cpu::norm::{Norm, group_norm as forward, group_norm_backward as backward};
use super::wgsl::{self, Wgsl};
use super::{Case, Op};

pub const OP: Op = Op {
    name: "group_norm",
    formula: "(x − mean) / √(variance + ε) · gain + offset of each group, then z·σ(z)",
    elements: &[[DType::F32, DType::F32], [DType::F16, DType::F16]],
    kernel: |[_, element]| {
        const TEXT: &str = concat!(
            include_str!("../../../shaders/common/total.wgsl"),
            include_str!("../../../shaders/ops/group_norm.wgsl"),
        );
        kernel(element, TEXT)
    },
    inputs: |case| inputs(case)[..3].into(),
    outputs: |case| vec![inputs(case)[0].0],
    run: |case, t| {
        if t[0].shape().num_elements() == 0 {
            return vec![t[0].clone()];
        }
        let (x, [gain, offset]) = tensors(case, t);
        vec![group_norm(x, gain, offset, case.rank, EPS, then(case)).reshape(t[0].dims())]
    },
    launch: |case, kernel, t, out| launch(kernel, &[&t[0], &t[1], &t[2], &out[0]], sizes(case), EPS),
    differentiable: &[0],
    tolerance: 2e-5,
};

pub const BACKWARD: Op = Op {
    name: "group_norm_backward",
    formula: "r·(g' − mean(g') − n·mean(g'·n)) of each group",
    kernel: |[_, element]| {
        const TEXT: &str = concat!(
            include_str!("../../../shaders/common/total.wgsl"),
            include_str!("../../../shaders/ops/group_norm_backward.wgsl"),
        );
        kernel(element, TEXT)
    },
    inputs: |case| inputs(case).into(),
    run: |case, t| {
        if t[0].shape().num_elements() == 0 {
            return vec![t[0].clone()];
        }
        let (x, [gain, offset]) = tensors(case, t);
        let g = t[3].clone().reshape(x.dims());
        let [x, g] = [x, g].map(Tensor::into_dispatch);
        let (gain, offset, silu) = (gain.into_dispatch(), offset.into_dispatch(), then(case) == Then::Silu);
        let by_x = Dispatch::group_norm_backward(x, gain, offset, g, case.rank, EPS, silu);
        vec![Tensor::<4>::from_dispatch(by_x).reshape(t[0].dims())]
    },
    launch: |case, kernel, t, out| launch(kernel, &[&t[0], &t[1], &t[2], &t[3], &out[0]], sizes(case), EPS),
    differentiable: &[],
    ..OP
};

const EPS: f64 = 1e-5;

/// Two channels to a group, `rank` groups, `columns + 2` places, a sixteenth of `rows` pictures: x, gain, offset and
/// the gradient. A group of
/// two numbers would be 1 and −1 whatever they are.
fn inputs(case: &Case) -> [([usize; 2], DType); 4] {
    let &Case { columns, rank, elements: [element, _], .. } = case;
    let (x, channel) = ([pictures(case), 2 * rank * (columns + 2)], [1, 2 * rank]);
    [x, channel, channel, x].map(|shape| (shape, element))
}

fn tensors(case: &Case, t: &[Tensor<2>]) -> (Tensor<4>, [Tensor<1>; 2]) {
    let channels = 2 * case.rank;
    (
        t[0].clone().reshape([pictures(case), channels, case.columns + 2, 1]),
        [1, 2].map(|i| t[i].clone().reshape([channels])),
    )
}

fn pictures(case: &Case) -> usize {
    case.rows.div_ceil(16)
}

/// Both are tried.
fn then(case: &Case) -> Then {
    if case.inner % 2 == 1 { Then::Silu } else { Then::Nothing }
}

fn sizes(case: &Case) -> Sizes {
    let silu = then(case) == Then::Silu;
    Sizes { batch: pictures(case), channels: 2 * case.rank, places: case.columns + 2, groups: case.rank, silu }
}

/// What follows the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Nothing,
    Silu,
}

/// `x [b, c, h, w]`, normalised over each of `groups` groups of channels, times `gain [c]` plus `offset [c]`. Gain and
/// offset are frozen: no gradient flows to them.
pub fn group_norm(x: Tensor<4>, gain: Tensor<1>, offset: Tensor<1>, groups: usize, eps: f64, then: Then) -> Tensor<4> {
    assert!(x.dims()[1].is_multiple_of(groups), "{groups} groups of {} channels", x.dims()[1]);
    if x.shape().num_elements() == 0 {
        return x;
    }
    let dtype = FloatDType::from(x.dtype());
    let [gain, offset] = [gain, offset].map(|channel| channel.cast(dtype).into_dispatch());
    let x = x.into_dispatch();
    Tensor::from_dispatch(Dispatch::group_norm(x, gain, offset, groups, eps, then == Then::Silu))
}

#[backend_extension(Cube, Flex, Fusion, Autodiff)]
pub trait GroupNorm: Backend {
    #[fusion(dtype = x, shape = x)]
    fn group_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        plain::<Self>(x, gain, offset, groups, eps, silu)
    }

    /// The gradient of `x` from that of the result. With `n` the normalised input, `r` one over the deviation and `g'` the
    /// gradient before the gain: `r·(g' − mean(g') − n·mean(g'·n))`.
    #[fusion(dtype = x, shape = x)]
    fn group_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        g: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        plain_backward::<Self>(x, gain, offset, g, groups, eps, silu)
    }
}

fn plain<B: Backend>(
    x: FloatTensor<B>,
    gain: FloatTensor<B>,
    offset: FloatTensor<B>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FloatTensor<B> {
    let shape = x.shape();
    let (normal, _) = normal::<B>(x, groups, eps);
    let z = affine::<B>(B::float_reshape(normal, shape), gain, offset);
    match silu {
        true => B::float_mul(z.clone(), B::sigmoid(z)),
        false => z,
    }
}

fn plain_backward<B: Backend>(
    x: FloatTensor<B>,
    gain: FloatTensor<B>,
    offset: FloatTensor<B>,
    g: FloatTensor<B>,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FloatTensor<B> {
    let shape = x.shape();
    let (normal, r) = normal::<B>(x, groups, eps);
    let by_z = if silu {
        // σ(z)·(1 + z·(1 − σ(z)))
        let z = affine::<B>(B::float_reshape(normal.clone(), shape.clone()), gain.clone(), offset);
        let s = B::sigmoid(z.clone());
        let rest = B::float_add_scalar(B::float_neg(s.clone()), 1.0_f32.into());
        let slope = B::float_mul(s, B::float_add_scalar(B::float_mul(z, rest), 1.0_f32.into()));
        B::float_mul(g, slope)
    } else {
        g
    };
    let grouped = normal.shape();
    let by_normal = B::float_reshape(B::float_mul(by_z, by_channel::<B>(gain)), grouped);
    let mean = B::float_mean_dim(by_normal.clone(), 2);
    let along = B::float_mean_dim(B::float_mul(by_normal.clone(), normal.clone()), 2);
    let rest = B::float_sub(B::float_sub(by_normal, mean), B::float_mul(normal, along));
    B::float_reshape(B::float_mul(rest, r), shape)
}

/// The normalised numbers `[b, groups, n]` and one over their deviation `[b, groups, 1]`.
fn normal<B: Backend>(x: FloatTensor<B>, groups: usize, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let [b, c, h, w] = x.shape().dims();
    let x = B::float_reshape(x, [b, groups, c / groups * h * w].into());
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 2));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 2);
    let r = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, eps.into())));
    (B::float_mul(centred, r.clone()), r)
}

fn affine<B: Backend>(x: FloatTensor<B>, gain: FloatTensor<B>, offset: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(B::float_mul(x, by_channel::<B>(gain)), by_channel::<B>(offset))
}

fn by_channel<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [c] = x.shape().dims();
    B::float_reshape(x, [1, c, 1, 1].into())
}

impl GroupNorm for CubeBackend {
    fn group_norm(
        x: CubeTensor,
        gain: CubeTensor,
        offset: CubeTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> CubeTensor {
        let Some(kernel) = (OP.kernel)([x.dtype; 2]) else { return plain::<Self>(x, gain, offset, groups, eps, silu) };
        let [x, gain, offset] = [x, gain, offset].map(into_contiguous);
        let out = wgsl::empty(&x, x.shape(), x.dtype);
        launch(kernel, &[&x, &gain, &offset, &out], Sizes::of(&x, groups, silu), eps);
        out
    }

    fn group_norm_backward(
        x: CubeTensor,
        gain: CubeTensor,
        offset: CubeTensor,
        g: CubeTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> CubeTensor {
        let Some(kernel) = (BACKWARD.kernel)([x.dtype; 2]) else {
            return plain_backward::<Self>(x, gain, offset, g, groups, eps, silu);
        };
        let [x, gain, offset, g] = [x, gain, offset, g].map(into_contiguous);
        let out = wgsl::empty(&x, x.shape(), x.dtype);
        launch(kernel, &[&x, &gain, &offset, &g, &out], Sizes::of(&x, groups, silu), eps);
        out
    }
}

fn kernel(element: DType, text: &'static str) -> Option<Wgsl> {
    Some(Wgsl { text, elements: vec![("element", wgsl::element(element)?)] })
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    channels: usize,
    /// In a channel.
    places: usize,
    groups: usize,
    silu: bool,
}

impl Sizes {
    fn of(x: &CubeTensor, groups: usize, silu: bool) -> Self {
        let [batch, channels, h, w] = x.shape().dims();
        Self { batch, channels, places: h * w, groups, silu }
    }
}

/// Input, gain, offset, for the backward pass the gradient, and the output.
fn launch(kernel: Wgsl, tensors: &[&CubeTensor], sizes: Sizes, eps: f64) {
    let Sizes { batch, channels, places, groups, silu } = sizes;
    let slices = batch * groups;
    let numbers = [slices, channels, places, groups, usize::from(silu)].map(|n| n as u32);
    kernel.launch(slices, tensors, &[&numbers[..], &[(eps as f32).to_bits()]].concat());
}

fn wide(x: FlexTensor) -> FlexTensor {
    Flex::float_cast(x, FloatDType::F32)
}

impl GroupNorm for Flex {
    fn group_norm(
        x: FlexTensor,
        gain: FlexTensor,
        offset: FlexTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FlexTensor {
        if x.dtype() != DType::F32 {
            let dtype = x.dtype().into();
            let [x, gain, offset] = [x, gain, offset].map(wide);
            return Self::float_cast(<Self as GroupNorm>::group_norm(x, gain, offset, groups, eps, silu), dtype);
        }
        let [x, gain, offset] = [x, gain, offset].map(cpu::contiguous);
        let shape = x.shape();
        let norm = Norm { gain: gain.storage(), offset: offset.storage(), eps: eps as f32 };
        cpu::tensor(forward(x.storage(), norm, shape.dims(), groups, silu), shape)
    }

    fn group_norm_backward(
        x: FlexTensor,
        gain: FlexTensor,
        offset: FlexTensor,
        g: FlexTensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FlexTensor {
        if x.dtype() != DType::F32 {
            let dtype = x.dtype().into();
            let [x, gain, offset, g] = [x, gain, offset, g].map(wide);
            let by_x = <Self as GroupNorm>::group_norm_backward(x, gain, offset, g, groups, eps, silu);
            return Self::float_cast(by_x, dtype);
        }
        let [x, gain, offset, g] = [x, gain, offset, g].map(cpu::contiguous);
        let shape = x.shape();
        let norm = Norm { gain: gain.storage(), offset: offset.storage(), eps: eps as f32 };
        cpu::tensor(backward(x.storage(), g.storage(), norm, shape.dims(), groups, silu), shape)
    }
}

impl<B: GroupNorm, C: CheckpointStrategy> GroupNorm for Autodiff<B, C> {
    fn group_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        let node = x.node();
        let inner = [x, gain, offset].map(FloatTensor::<Self>::into_primitive);
        let [x, gain, offset] = inner.clone();
        let out = B::group_norm(x, gain, offset, groups, eps, silu);
        match GroupNormBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inner, groups, eps, silu), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct GroupNormBackward;

impl<B: GroupNorm> Backward<B, 1> for GroupNormBackward {
    /// Input, gain and offset; groups, ε and whether SiLU follows.
    type State = ([FloatTensor<B>; 3], usize, f64, bool);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([x, gain, offset], groups, eps, silu) = ops.state;
        let g = gradients.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<B>(node.id, B::group_norm_backward(x, gain, offset, g, groups, eps, silu));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::random::Philox;
    use burn::tensor::{TensorData, activation};

    #[test]
    fn result_and_gradient_are_those_of_single_operations() {
        let (groups, [b, c, h, w]) = (3, [2, 6, 5, 7]);
        let tensor = |draw, n: usize| Philox::new(0).normal(draw, n);
        let x = Tensor::<4>::from_data(TensorData::new(tensor(0, b * c * h * w), [b, c, h, w]), &cpu());
        let x = (x * 3.0 + 1.0).autodiff().require_grad();
        let [gain, offset] = [1, 2].map(|draw| Tensor::<1>::from_data(TensorData::new(tensor(draw, c), [c]), &cpu()));
        let pull = Tensor::<4>::from_data(TensorData::new(tensor(3, b * c * h * w), [b, c, h, w]), &cpu()).autodiff();
        for then in [Then::Nothing, Then::Silu] {
            let run = |y: Tensor<4>| {
                let gradients = (y.clone() * pull.clone()).sum().backward();
                [read(y.inner()).unwrap(), read(x.grad(&gradients).unwrap()).unwrap()]
            };
            let grouped = x.clone().reshape([b, groups, c / groups * h * w]);
            let centred = grouped.clone() - grouped.mean_dim(2);
            let deviation = (centred.clone().powi_scalar(2).mean_dim(2) + 1e-5).sqrt();
            let [gain4, offset4] = [&gain, &offset].map(|x| x.clone().reshape([1, c, 1, 1]).autodiff());
            let z = (centred / deviation).reshape([b, c, h, w]) * gain4 + offset4;
            let plain = run(if then == Then::Silu { activation::silu(z) } else { z });
            let ours =
                run(group_norm(x.clone(), gain.clone().autodiff(), offset.clone().autodiff(), groups, 1e-5, then));
            for (a, b) in plain.iter().flatten().zip(ours.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{then:?}: {a} {b}");
            }
        }
    }
}
