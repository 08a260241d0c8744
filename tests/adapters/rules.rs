//! What single methods promise beyond the contract.

use std::sync::Arc;

use burn::tensor::Tensor;
use faer::{Mat, MatRef};
use triptych::engine::adapter::{self, Adapter, Method, Start, Stored};
use triptych::engine::device::read;
use triptych::engine::diffusion::Schedule;
use triptych::engine::model::{Change, LayerId, Mounts, Signal, Weight};
use triptych::engine::train::optimizer::Moments;

use crate::case::{Case, cases, delta, wide};
use crate::gradients::{Slopes, slope, summed, weights};
use crate::whole::{batch, begun, trained, with_token};
use crate::{apart, build, largest, reference, tensor};

fn row(name: &str) -> &'static Method {
    adapter::method(name).unwrap()
}

fn matrix(values: &[f32], [rows, columns]: [usize; 2]) -> Mat<f64> {
    MatRef::from_row_major_slice(values, rows, columns).map(|&x| f64::from(x))
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    read(tensor.clone()).unwrap()
}

fn row_major(m: &Mat<f64>) -> Vec<f32> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
}

fn tensors(case: &Case, starts: &[Start]) -> Vec<Tensor<2>> {
    starts.iter().map(|start| start.tensor(&case.weight.oi.device())).collect()
}

/// `∂L/∂ΔW` of the layer with the change `delta`, for the loss of [`Slopes`].
fn by_weight(case: &Case, delta: &Tensor<2>) -> Mat<f64> {
    let delta = delta.clone().autodiff().require_grad();
    let mut mounts = Mounts::none();
    mounts.add(LayerId(0), Change::Weight(delta.clone()));
    let y = case.run(&mounts, &case.x());
    let n = y.dims()[0];
    let gradients = (y * tensor(&weights(n), [n])).sum().backward();
    matrix(&values(&delta.grad(&gradients).unwrap()), delta.dims())
}

/// With `G = ∂L/∂(up·down)`: `∂up = diag(g)·G·downᵀ` and `∂down = upᵀ·diag(g)·G`.
#[test]
fn allora_scales_the_rows_of_the_product() {
    for case in cases() {
        let slopes = Slopes::new(&case, build(row("allora"), &[("eta_squared", "2.5")]));
        let [down, up] = &tensors(&case, &slopes.starts)[..] else { panic!("two tensors began") };
        let g_of = by_weight(&case, &up.clone().matmul(down.clone()));
        let [down, up] = [down, up].map(|t| matrix(&values(t), t.dims()));
        let product = &up * &down;
        let scaled = Mat::from_fn(g_of.nrows(), g_of.ncols(), |o, i| {
            g_of[(o, i)] / (product.row(o).norm_l2() + 1.0 / 2.5).sqrt()
        });
        let found = slopes.gradients().tensors;
        for (found, expected) in found.iter().zip([up.transpose() * &scaled, &scaled * down.transpose()]) {
            let error = apart(found.as_ref().unwrap(), &row_major(&expected));
            assert!(error < 1e-5, "on a {}: {error}", case.what);
        }
    }
}

/// At first, `η` times LoRA's gradient. As a rule for the update it leaves the gradient alone, and the step is η times
/// as long instead.
#[test]
fn allora_begins_eta_times_as_fast() {
    for case in cases() {
        let begin = |name: &str, changes: &[(&str, &str)]| {
            let adapter = build(row(name), changes);
            let starts = case.start(adapter.as_ref());
            Slopes { case: &case, adapter, starts }
        };
        let up = |slopes: &Slopes<'_>| slopes.gradients().tensors[1].clone().unwrap();
        let plain = up(&begin("lora", &[("alpha", "0")]));
        let twice: Vec<f32> = plain.iter().map(|x| 2.0 * x).collect();
        let found = up(&begin("allora", &[("eta_squared", "4")]));
        assert!(apart(&found, &twice) < 1e-6, "on a {}", case.what);

        let on_update = begin("allora", &[("eta_squared", "4"), ("rule", "update")]);
        assert!(apart(&up(&on_update), &plain) < 1e-6, "on a {}", case.what);
        let before = tensors(&case, &on_update.starts);
        let after: Vec<_> = before.iter().map(|t| t.clone() + 0.25).collect();
        let settled = on_update.adapter.settle(&before, after.clone());
        assert_eq!(values(&settled[0]), values(&after[0]));
        // `up` began at 0, so its rows' g is η.
        assert!(values(&settled[1]).iter().all(|x| (x - 0.5).abs() < 1e-6), "on a {}", case.what);
    }
}

/// The gradient is that of the same formula with the row norms held at what they are. Linear in each number, so that
/// differences are exact; and not linear where the norms move, which `gradients` shows.
#[test]
fn dora_holds_the_norms_fixed() {
    for case in cases() {
        let slopes = Slopes::new(&case, build(row("dora"), &[]));
        let w = matrix(&values(&case.weight.oi), case.weight.oi.dims());
        let v = |starts: &[Start]| {
            let [down, up, _] = [0, 1, 2].map(|k| matrix(&starts[k].values, starts[k].shape));
            // alpha / rank
            &w + faer::Scale(5.0 / 3.0) * (up * down)
        };
        let n: Vec<f64> = v(&slopes.starts).row_iter().map(|row| row.norm_l2()).collect();
        let loss = |starts: &[Start]| {
            let v = v(starts);
            let oi = Mat::from_fn(v.nrows(), v.ncols(), |o, i| f64::from(starts[2].values[o]) / n[o] * v[(o, i)]);
            let weight = Weight { oi: tensor(&row_major(&oi), case.weight.oi.dims()), ..case.weight.clone() };
            summed(&values(&case.run_as(&weight, &Mounts::none(), &case.x())))
        };
        for (which, found) in slopes.gradients().tensors.iter().enumerate() {
            let found = found.as_ref().unwrap();
            let expected: Vec<f32> = (0..found.len())
                .map(|k| {
                    slope(|by| {
                        let mut starts = slopes.starts.clone();
                        starts[which].values[k] += by;
                        loss(&starts)
                    }) as f32
                })
                .collect();
            let error = apart(found, &expected);
            assert!(error < 1e-4, "{} on a {}: {error}", slopes.starts[which].name, case.what);
        }
    }
}

/// Columns of `up` for each member of the group, times its rows of `down`.
fn members(t: &[Tensor<2>], group: usize) -> Vec<Mat<f64>> {
    let ([r, _], [down, up]) = (t[0].dims(), [0, 1].map(|k| matrix(&values(&t[k]), t[k].dims())));
    let r = r / group;
    (0..group).map(|n| up.subcols(n * r, r) * down.subrows(n * r, r)).collect()
}

/// Descending on what it charges and nothing else, the members turn away from each other. On a weight of zeros, where
/// the other loss, which shrinks them all, has nothing to say.
#[test]
fn pego_drives_its_members_apart() {
    let weight = Weight { oi: wide().weight.oi * 0.0, bias: None };
    let case = Case { weight, ..wide() };
    let adapter = build(row("pego"), &[("rank", "2"), ("group", "3")]);
    let charge = |t: &[Tensor<2>]| {
        let mounts = case.with(&adapter, t).charging();
        case.run(&mounts, &case.x());
        mounts.take_charges().expect("a charge")
    };
    let start = tensors(&case, &case.start(adapter.as_ref()));
    assert_eq!(values(&charge(&start)), [0.0]);

    let mut t = case.trained(adapter.as_ref());
    let met = |t: &[Tensor<2>]| {
        let members = members(t, 3);
        let pair = |n: usize, m: usize| (&members[n] * members[m].transpose()).norm_l2();
        let size: f64 = members.iter().map(|m| m.norm_l2().powi(2)).sum();
        (pair(0, 1) + pair(0, 2) + pair(1, 2)) / size
    };
    let before = (met(&t), values(&charge(&t))[0]);
    let mut moments: Vec<Moments> = t.iter().map(Moments::new).collect();
    for _ in 0..60 {
        let leaves: Vec<Tensor<2>> = t.iter().map(|t| t.clone().autodiff().require_grad()).collect();
        let gradients = charge(&leaves).backward();
        for ((t, leaf), moments) in t.iter_mut().zip(&leaves).zip(&mut moments) {
            *t = moments.step(t.clone(), leaf.grad(&gradients).expect("it trains"), 3e-3, 0.0);
        }
    }
    let after = (met(&t), values(&charge(&t))[0]);
    println!("‖ΔWₙ·ΔWₘᵀ‖ over ‖ΔW‖² and the charge: {before:.3?} → {after:.3?}");
    assert!(after.0 < 0.5 * before.0 && after.1 < 0.5 * before.1, "{before:?} → {after:?}");
}

/// What a method adds to the loss is reported apart from it, and is in the gradients.
#[test]
fn charges_are_counted() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    // Weight of the charge, none at all, and whether there is one before training.
    for (name, field, from_the_start) in [("pego", "apart", false), ("mola", "balance", true)] {
        let outcome = |weight: &str, begun_only: bool| {
            let adapter = build(row(name), &[(field, weight)]);
            let trainee = if begun_only { begun(&model, &adapter) } else { trained(&model, &adapter, 1) };
            let outcome = with_token(&model, trainee).gradients(&model, &schedule, &batch);
            let first = values(outcome.gradients[0].as_ref().unwrap());
            (values(&outcome.loss)[0], outcome.charged.map(|charged| values(&charged)[0]), first)
        };
        let (with, without, double) = (outcome("0.01", false), outcome("0", false), outcome("0.02", false));
        assert_eq!((with.0, without.1), (without.0, None), "{name}: the concept's loss alone");
        let [once, twice] = [&with, &double].map(|o| o.1.expect("a charge"));
        assert!(once > 0.0 && (twice / once - 2.0).abs() < 1e-3, "{name}: {once} and {twice}");
        let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>();
        let [one, two] = [&with, &double].map(|o| difference(&o.2, &without.2));
        let doubled: Vec<f32> = one.iter().map(|x| 2.0 * x).collect();
        // The rounding of the concept's own gradient, which is taken off.
        let noise = 1e-5 * largest(&without.2) / largest(&one);
        assert!(largest(&one) > 0.0 && apart(&two, &doubled) < 1e-3 + noise, "{name}: the gradient of the charge");
        assert_eq!(outcome("0.01", true).1.unwrap() > 0.0, from_the_start, "{name} before training");
    }
}

/// One expert is a plain LoRA; and identical experts are one, whoever answers, because their gates sum to one.
#[test]
fn mola_shares_one_answer_among_its_experts() {
    for case in cases().into_iter().map(|case| case.at_depth(0.9)) {
        let lora = build(row("lora"), &[]);
        let pair = case.trained(lora.as_ref());
        let plain = case.values(&case.with(&lora, &pair), &case.x());

        let one = build(row("mola"), &[("experts", "1-1-1-1")]);
        let router = case.trained(one.as_ref())[2].clone();
        let found = case.values(&case.with(&one, &[pair[0].clone(), pair[1].clone(), router]), &case.x());
        assert!(apart(&found, &plain) < 1e-6, "one expert on a {}: {}", case.what, apart(&found, &plain));

        let five = build(row("mola"), &[("experts", "1-1-1-5")]);
        let router = case.trained(five.as_ref())[2].clone();
        let (down, up) = (Tensor::cat(vec![pair[0].clone(); 5], 0), Tensor::cat(vec![pair[1].clone(); 5], 1));
        let found = case.values(&case.with(&five, &[down, up, router]), &case.x());
        assert!(apart(&found, &plain) < 1e-6, "five alike on a {}: {}", case.what, apart(&found, &plain));
    }
}

/// Only the two experts that the router likes best answer, as their shares of both say.
#[test]
fn mola_calls_up_the_two_that_suit() {
    let case = Case::new("linear", [1, 3], None, None).without_bias();
    let adapter = build(row("mola"), &[("experts", "3-3-3-3"), ("rank", "1"), ("alpha", "1")]);
    // Each expert answers with a power of ten to the first input; the router's logits are the inputs themselves.
    let down = tensor(&[1., 0., 0., 1., 0., 0., 1., 0., 0.], [3, 3]);
    let (up, router) = (tensor(&[1., 10., 100.], [1, 3]), tensor(&[1., 0., 0., 0., 1., 0., 0., 0., 1.], [3, 3]));
    let mounts = case.with(&adapter, &[down, up, router]);
    let x = Signal::Tokens(tensor(&[1., 2., 0., 1., 0., 1.], [2, 3]));
    let (with, base) = (case.values(&mounts, &x), case.values(&Mounts::none(), &x));
    // e/(e + e²) of the first and the rest of the second; halves of the first and the third.
    let share = 1.0 / (1.0 + 1.0_f32.exp());
    for ((with, base), expected) in with.iter().zip(&base).zip([share + 10.0 * (1.0 - share), 50.5]) {
        assert!((with - base - expected).abs() < 1e-4, "{} instead of {expected}", with - base);
    }
}

/// Lengths of the weight's rows and the angles between them are what they were: `W'·W'ᵀ = W·Wᵀ`.
#[test]
fn oft_keeps_lengths_and_angles() {
    for case in cases().into_iter().chain([wide()]) {
        for block_size in ["2", "3", "4", "32"] {
            let adapter = build(row("oft"), &[("block_size", block_size)]);
            // Far from where it began: numbers near 0.4.
            let t: Vec<_> = case.trained(adapter.as_ref()).into_iter().map(|t| t * 4.0).collect();
            let changed = case.changed_by(&adapter.store(&t, &case.weight).unwrap());
            let gram = |oi: &Tensor<2>| values(&oi.clone().matmul(oi.clone().transpose()));
            let (before, after) = (gram(&case.weight.oi), gram(&changed.oi));
            let error = apart(&after, &before);
            assert!(error < 1e-5, "blocks of {block_size} on a {}: {error}", case.what);
            // Blocks of one have nothing to turn.
            if t[0].shape().num_elements() > 0 {
                assert!(apart(&values(&changed.oi), &values(&case.weight.oi)) > 0.1, "nothing turned");
            }
        }
    }
}

/// What is taken off the weight at the start are its strongest directions, and both sides learn from the first step.
#[test]
fn pissa_starts_from_the_strongest_directions() {
    for case in cases().into_iter().chain([wide()]) {
        let adapter = build(row("pissa"), &[]);
        let starts = case.start(adapter.as_ref());
        let [down, up] = [0, 1].map(|k| matrix(&starts[k].values, starts[k].shape));
        let weight = matrix(&values(&case.weight.oi), case.weight.oi.dims());
        let all = weight.singular_values().unwrap();
        let rest = (&weight - faer::Scale(5.0 / 3.0) * (up * down)).singular_values().unwrap();
        for (k, s) in rest.iter().enumerate() {
            let expected = all.get(k + 3).copied().unwrap_or(0.0);
            assert!((s - expected).abs() < 1e-5 * all[0], "on a {}: {rest:?} of {all:?}", case.what);
        }
        let untrained = Slopes { case: &case, adapter, starts };
        for gradient in untrained.gradients().tensors.iter().take(2) {
            assert!(largest(gradient.as_ref().unwrap()) > 1e-2, "on a {}: a side stands still", case.what);
        }
    }
}

/// Directions whose gate is shut are left out, and the file does what the layer did.
#[test]
fn sora_prunes_without_a_change() {
    let adapter = build(row("sora"), &[("rank", "5")]);
    for case in cases() {
        let mut t = case.trained(adapter.as_ref());
        t[2] = tensor(&[0.5, 0.0, -1.5, 0.0, 0.25], [1, 5]);
        let stored = adapter.store(&t, &case.weight).unwrap();
        assert!(matches!(stored, Stored::Lora { rank: 3, .. }), "on a {}", case.what);
        let live = case.values(&case.with(&adapter, &t), &case.x());
        let pruned = values(&case.run_as(&case.changed_by(&stored), &Mounts::none(), &case.x()));
        assert!(apart(&pruned, &live) < 1e-6, "on a {}: {}", case.what, apart(&pruned, &live));
    }
}

/// After every step, each gate is the nearest that its price allows; nothing else is touched.
#[test]
fn sora_pays_after_every_step() {
    let adapter = build(row("sora"), &[("rank", "4"), ("sparsity", "0.1")]);
    let case = wide();
    let mut after = case.trained(adapter.as_ref());
    after[2] = tensor(&[0.5, -0.05, 0.1, -0.37], [1, 4]);
    let settled = adapter.settle(&after, after.clone());
    assert_eq!(values(&settled[0]), values(&after[0]));
    assert_eq!(values(&settled[1]), values(&after[1]));
    for (found, expected) in values(&settled[2]).iter().zip([0.4, 0.0, 0.0, -0.27]) {
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }
}

/// `W'` of one layer with tensors given by hand; and `b'`.
fn by_hand(name: &str, changes: &[(&str, &str)], weight: Weight, t: &[Tensor<2>]) -> (Vec<f32>, Option<Vec<f32>>) {
    let adapter: Arc<dyn Adapter> = build(row(name), changes);
    let [out, input] = weight.oi.dims();
    let case = Case { weight, ..Case::new("by hand", [out, input], None, None) };
    let changed = case.changed_by(&adapter.store(t, &case.weight).unwrap());
    (values(&changed.oi), changed.bias.as_ref().map(values))
}

#[test]
fn small_layers_by_hand() {
    let one = [("rank", "1"), ("alpha", "1")];
    // W = [3, 4] and m = 10: the direction stays, the length is m.
    let weight = Weight { oi: tensor(&[3., 4.], [1, 2]), bias: None };
    let t = [tensor(&[7., 7.], [1, 2]), tensor(&[0.], [1, 1]), tensor(&[10.], [1, 1])];
    let (found, _) = by_hand("dora", &one, weight, &t);
    assert!(apart(&found, &[6., 8.]) < 1e-6, "{found:?}");

    // W = diag(1, 2), b = (1, 1), and only the branch behind the layer: it hears W·x + b.
    let weight = Weight { oi: tensor(&[1., 0., 0., 2.], [2, 2]), bias: Some(tensor(&[1., 1.], [2])) };
    let nothing = [tensor(&[0., 0.], [1, 2]), tensor(&[0., 0.], [2, 1])];
    let t = [&nothing[..], &[tensor(&[1., 1.], [1, 2]), tensor(&[1., 0.], [2, 1])]].concat();
    let (found, bias) = by_hand("hydra", &[one[0], one[1], ("sequential", "1")], weight, &t);
    assert!(apart(&found, &[2., 2., 0., 2.]) < 1e-6 && apart(&bias.unwrap(), &[3., 1.]) < 1e-6, "{found:?}");

    // W = diag(4, 1): the first direction, its root on either side.
    let oi = tensor(&[4., 0., 0., 1.], [2, 2]);
    let case = Case { weight: Weight { oi, bias: None }, ..Case::new("by hand", [2, 2], None, None) };
    let starts = case.start(build(row("pissa"), &one).as_ref());
    for (start, expected) in starts.iter().zip([[2., 0.]; 4]) {
        assert!(apart(&start.values, &expected) < 1e-6, "{}: {:?}", start.name, start.values);
    }
    assert!(
        delta(&build(row("pissa"), &one).store(&tensors(&case, &starts), &case.weight).unwrap(), [2, 2])
            .0
            .iter()
            .all(|x| x.abs() < 1e-6)
    );
}
