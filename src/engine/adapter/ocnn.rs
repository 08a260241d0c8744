//! LoRA whose read side is drawn towards an orthogonal convolution: `y = W·x + s·up(down ∗ x)`, `L += λ·(‖conv(down, down) −
//! I‖² − max(0, rank − stride²·c))` (the loss: Wang et al., CVPR 2020, arXiv 1911.12207, with the padding of its text, and
//! Achour et al., JMLR 2022, arXiv 2108.05623; on the factor of an adapter: ours).

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, module};
use faer::Mat;

use crate::engine::Result;
use crate::engine::adapter::rank::{ALPHA, RANK, Rank};
use crate::engine::adapter::{Adapter, Context, FileKind, Method, Spot, Start, Stored};
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::{Branch, Change, ConvShape, Layer, Site, Weight};
use crate::engine::ops::orthogonality;

pub const METHOD: Method = Method {
    name: "ocnn",
    title: "Orthogonal convolutions",
    paper: "Wang et al., CVPR 2020, arXiv 1911.12207; Achour et al., JMLR 2022, arXiv 2108.05623",
    help: "LoRA whose read directions are drawn apart, in convolutions also where their kernels overlap: choose targets with convolutions, as attention,resnet,resample",
    fields: &[
        // What is charged takes time with the square of it.
        Field { kind: Kind::Integer { min: 1, max: 128 }, ..RANK },
        ALPHA,
        Field {
            name: "orthogonality",
            title: "Orthogonality λ",
            help: "How strongly what each layer reads is drawn towards an orthogonal convolution; 0 leaves a LoRA that starts from orthonormal rows",
            unit: "",
            default: "0.01",
            kind: Kind::Number { min: 0.0, max: 10.0 },
        },
    ],
    count: "rank·(i + o)",
    file: FileKind::Lora,
    gradient: None,
    rate: 1.0,
    takes_slot: false,
    build,
};

struct Ocnn {
    rank: Rank,
    lambda: f32,
}

#[expect(clippy::unnecessary_wraps, reason = "the registry's signature")]
fn build(settings: &Settings, _: &Context) -> Result<Box<dyn Adapter>> {
    Ok(Box::new(Ocnn { rank: Rank::of(settings), lambda: settings.number("orthogonality") as f32 }))
}

/// `‖conv(K, K) − I‖² − max(0, rank − stride²·channels)` of `K = down [rank, channels·kh·kw]` with itself as pictures, at
/// every shift by whole strides at which they still meet: 0 where the convolution is orthogonal. A linear layer is one
/// with kernels of one place.
fn loss(down: Tensor<2>, shape: Option<ConvShape>) -> Tensor<1> {
    let ConvShape { kernel: [height, width], stride, .. } = shape.unwrap_or(ConvShape::POINT);
    let [rank, input] = down.dims();
    let channels = input / (height * width);
    // Numbers that a filter alone reads: where the stride passes the kernel by, what lies between is read by none.
    let own = channels * stride.min(height) * stride.min(width);
    let surplus = rank.saturating_sub(own) as f32;
    let [reach_y, reach_x] = [height, width].map(|side| (side - 1) / stride);
    if [reach_y, reach_x] == [0, 0] {
        return orthogonality(down.transpose().unsqueeze()) - surplus;
    }
    let padding = [reach_y, reach_x].map(|reach| reach * stride);
    let one = Tensor::<2>::eye(rank, &down.device()).reshape([rank, rank, 1, 1]);
    let one = one.pad([(reach_y, reach_y), (reach_x, reach_x)], 0.0);
    let k = down.reshape([rank, channels, height, width]);
    let met = module::conv2d(k.clone(), k, None, ConvOptions::new([stride; 2], padding, [1; 2], 1));
    (met - one).powi_scalar(2).sum() - surplus
}

impl Adapter for Ocnn {
    /// Orthonormal rows (columns, where the rank is above the input's width), and 0.
    fn begin(&self, spot: &Spot<'_>) -> Result<Vec<Start>> {
        let (rank, input) = (self.rank.rank, spot.layer.input());
        let normal = spot.random.normal(0, rank * input);
        let normal = Mat::from_fn(rank.max(input), rank.min(input), |row, column| {
            f64::from(normal[row * rank.min(input) + column])
        });
        let q = normal.qr().compute_thin_Q();
        let row = |r: usize, i: usize| if rank <= input { q[(i, r)] } else { q[(r, i)] };
        let down = (0..rank * input).map(|at| row(at / input, at % input) as f32).collect();
        // Decay would shorten what shall keep its length.
        Ok(vec![
            Start { decays: false, ..Start::trained("lora_down", [rank, input], down) },
            Start::zeros("lora_up", [spot.layer.out, rank]),
        ])
    }

    fn change(&self, t: &[Tensor<2>], at: &Site<'_>) -> Vec<Change> {
        let [down, up] = t else { unreachable!("two tensors began") };
        if self.lambda > 0.0 {
            at.charge(|| loss(down.clone(), at.shape()) * self.lambda);
        }
        vec![self.rank.change(down, up)]
    }

    fn pair(&self, t: &[Tensor<2>], _: &Weight) -> Option<Branch> {
        let [down, up] = t else { unreachable!("two tensors began") };
        Some(self.rank.pair(down, up))
    }

    fn store(&self, t: &[Tensor<2>], _: &Weight) -> Result<Stored> {
        let [down, up] = t else { unreachable!("two tensors began") };
        self.rank.store(down, up)
    }

    fn count(&self, layer: &Layer, _: f32) -> usize {
        self.rank.rank * (layer.input() + layer.out)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::engine::device::{cpu, read};
    use crate::engine::model::Part;
    use crate::engine::random::Philox;

    fn start(rank: usize, channels: usize, kernel: Option<[usize; 2]>) -> Tensor<2> {
        let layer = Layer { part: Part::Unet, path: "layer".into(), out: 6, channels, kernel, module: None };
        let weight = Weight { oi: Tensor::zeros([6, layer.input()], &cpu()), bias: None };
        let spot = Spot { layer: &layer, weight: &weight, depth: 0.0, random: Philox::new(5) };
        let start = Ocnn { rank: Rank::new(rank, 0.0), lambda: 1.0 }.begin(&spot).unwrap();
        start[0].tensor(&cpu())
    }

    fn value(loss: Tensor<1>) -> f32 {
        read(loss).unwrap()[0]
    }

    /// The loss of a kernel `[filters, channels, height, width]`, given number by number.
    fn of([m, c, h, w]: [usize; 4], stride: usize, number: impl Fn([usize; 4]) -> f32) -> f32 {
        let at = |i: usize| [i / w / h / c, i / w / h % c, i / w % h, i % w];
        let numbers = (0..m * c * h * w).map(|i| number(at(i))).collect();
        let down = Tensor::from_data(TensorData::new(numbers, [m, c * h * w]), &cpu());
        value(loss(down, Some(ConvShape { kernel: [h, w], stride, padding: 0 })))
    }

    /// Rows of a rotation.
    fn turn(m: usize, c: usize) -> f32 {
        [[0.6, 0.8], [-0.8, 0.6]][m][c]
    }

    #[test]
    fn orthogonal_convolutions_cost_nothing() {
        // One tap, wherever it stands, is a rotation of channels and a move.
        for tap in [[1, 1], [0, 2], [2, 1]] {
            let one_tap = |[m, c, y, x]: [usize; 4]| if [y, x] == tap { turn(m, c) } else { 0.0 };
            assert!(of([2, 2, 3, 3], 1, one_tap).abs() < 1e-6, "{tap:?}");
        }
        // Patches side by side, as those of a ViT, are rows of a matrix.
        assert!(of([2, 1, 1, 2], 2, |[m, _, _, x]| turn(m, x)).abs() < 1e-6);
        assert!(of([2, 2, 1, 3], 1, |[m, c, _, x]| if x == 2 { turn(m, c) } else { 0.0 }).abs() < 1e-6);
        // More filters than channels cannot be orthogonal to each other, but keep the lengths of what comes in.
        let half = 0.5_f32.sqrt();
        assert!(of([4, 2, 1, 1], 1, |[m, c, _, _]| half * turn(m % 2, c)).abs() < 1e-6);
        assert!(of([4, 2, 1, 1], 2, |[m, c, _, _]| half * turn(m % 2, c)).abs() < 1e-6, "a stride beyond the kernel");
        assert!((of([2, 2, 1, 1], 1, |[m, c, _, _]| 2.0 * turn(m, c)) - 18.0).abs() < 1e-4);
    }

    #[test]
    fn shifts_to_the_very_corners_count() {
        // Two opposite corners meet at a shift of 2 and 2 alone: √½·√½, once to either side.
        let half = 0.5_f32.sqrt();
        let corners = |[_, _, y, x]: [usize; 4]| if [y, x] == [0, 0] || [y, x] == [2, 2] { half } else { 0.0 };
        assert!((of([1, 1, 3, 3], 1, corners) - 0.5).abs() < 1e-6);
        assert!((of([1, 1, 3, 3], 2, corners) - 0.5).abs() < 1e-6);
        let delta = |[_, _, y, x]: [usize; 4]| f32::from(u8::from([y, x] == [1, 1]));
        assert!(of([1, 1, 3, 3], 2, delta).abs() < 1e-6, "at a stride of 2 the middle still meets itself");
    }

    #[test]
    fn starts_orthogonal_where_places_do_not_meet() {
        for (rank, channels) in [(4, 32), (4, 3)] {
            assert!(value(loss(start(rank, channels, None), None)).abs() < 1e-5, "{rank} of {channels}");
        }
        let patch = ConvShape { kernel: [2, 2], stride: 2, padding: 0 };
        assert!(value(loss(start(4, 3, Some([2, 2])), Some(patch))).abs() < 1e-5);
    }

    #[test]
    fn its_loss_alone_makes_a_convolution_orthogonal() {
        let mut down = start(4, 8, Some([3, 3]));
        let before = value(loss(down.clone(), Some(ConvShape::SAME3)));
        for _ in 0..300 {
            let tracked = down.clone().autodiff().require_grad();
            let gradients = loss(tracked.clone(), Some(ConvShape::SAME3)).backward();
            down = down - tracked.grad(&gradients).unwrap() * 0.05;
        }
        let after = value(loss(down, Some(ConvShape::SAME3)));
        assert!(before > 0.1 && after < 0.01 * before, "{before} → {after}");
    }
}
