//! Methods with more parts than are needed, and how they choose among them.

use burn::tensor::Tensor;
use faer::Mat;
use triptych::engine::adapter::Stored;
use triptych::engine::diffusion::Schedule;
use triptych::engine::model::{Mounts, Signal, Weight};
use triptych::engine::random::Philox;
use triptych::engine::train::optimizer::Moments;

use crate::case::{Case, alone, cases, wide};
use crate::whole::{batch, begun, trained, with_token};
use crate::{apart, build, largest, matrix, reference, row, tensor, values};

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
        let mounts = alone(&adapter, t).charging();
        case.run(&mounts, &case.x());
        mounts.take_charges().expect("a charge")
    };
    let start = case.tensors(&case.start(adapter.as_ref()));
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

/// What is charged is where the layer's own kernel meets itself at the layer's own stride, term by term.
#[test]
fn ocnn_charges_what_a_kernel_meets_of_itself() {
    let adapter = build(row("ocnn"), &[("rank", "4"), ("orthogonality", "0.5")]);
    for case in cases() {
        let t = case.trained(adapter.as_ref());
        let mounts = alone(&adapter, &t).charging();
        case.run(&mounts, &case.x());
        let found = values(&mounts.take_charges().expect("a charge"))[0];

        let ([h, w], stride) = case.conv.map_or(([1, 1], 1), |shape| (shape.kernel, shape.stride as isize));
        let (down, channels) = (values(&t[0]), case.layer.input() / (h * w));
        let number = |m: usize, c: usize, y: isize, x: isize| {
            let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
            if inside { f64::from(down[((m * channels + c) * h + y as usize) * w + x as usize]) } else { 0.0 }
        };
        let mut expected = 0.0;
        for at in 0..4 * 4 * 25 {
            let (m, n, dy, dx) = (at / 100, at / 25 % 4, at as isize / 5 % 5 - 2, at as isize % 5 - 2);
            let mut met = if m == n && (dy, dx) == (0, 0) { -1.0 } else { 0.0 };
            for i in 0..channels * h * w {
                let (c, y, x) = (i / (h * w), (i / w % h) as isize, (i % w) as isize);
                met += number(m, c, y, x) * number(n, c, y - stride * dy, x - stride * dx);
            }
            expected += met * met;
        }
        // Of four filters at stride 1, three channels leave one over.
        let over = if channels == 3 && stride == 1 { 1.0 } else { 0.0 };
        let expected = 0.5 * (expected - over);
        assert!((f64::from(found) / expected - 1.0).abs() < 1e-4, "{}: {found} instead of {expected}", case.what);
    }
}

/// What a method adds to the loss is reported apart from it, and is in the gradients.
#[test]
fn charges_are_counted() {
    let model = reference::model();
    let (schedule, batch) = (Schedule::new(&model.schedule).unwrap(), batch(&model));
    // Weight of the charge, none at all, and whether there is one before training.
    for (name, field, from_the_start) in [
        ("pego", "apart", false),
        ("mola", "balance", true),
        ("sorsa", "orthonormal", true),
        ("ocnn", "orthogonality", true),
    ] {
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
        let plain = case.values(&alone(&lora, &pair), &case.x());

        let one = build(row("mola"), &[("experts", "1-1-1-1")]);
        let router = case.trained(one.as_ref())[2].clone();
        let found = case.values(&alone(&one, &[pair[0].clone(), pair[1].clone(), router]), &case.x());
        assert!(apart(&found, &plain) < 1e-6, "one expert on a {}: {}", case.what, apart(&found, &plain));

        let five = build(row("mola"), &[("experts", "1-1-1-5")]);
        let router = case.trained(five.as_ref())[2].clone();
        let (down, up) = (Tensor::cat(vec![pair[0].clone(); 5], 0), Tensor::cat(vec![pair[1].clone(); 5], 1));
        let found = case.values(&alone(&five, &[down, up, router]), &case.x());
        assert!(apart(&found, &plain) < 1e-6, "five alike on a {}: {}", case.what, apart(&found, &plain));
    }
}

/// Only the two experts that the router likes best answer, as their shares of both say.
#[test]
fn mola_calls_up_the_two_that_suit() {
    let case = Case::new("linear", [1, 3], None, None).without_bias();
    let adapter = build(row("mola"), &[("experts", "3-3-3-3"), ("rank", "2"), ("alpha", "2")]);
    // Each expert answers with a power of ten to the first input, by two directions together; the router's logits are
    // the inputs themselves.
    let down = tensor(&[1., 0., 0.].repeat(6), [6, 3]);
    let up = tensor(&[0.5, 0.5, 5., 5., 50., 50.], [1, 6]);
    let router = tensor(&[1., 0., 0., 0., 1., 0., 0., 0., 1.], [3, 3]);
    let mounts = alone(&adapter, &[down, up, router]);
    let x = Signal::Tokens(tensor(&[1., 2., 0., 1., 0., 1.], [2, 3]));
    let (with, base) = (case.values(&mounts, &x), case.values(&Mounts::none(), &x));
    // e/(e + e²) of the first and the rest of the second; halves of the first and the third.
    let share = 1.0 / (1.0 + 1.0_f32.exp());
    for ((with, base), expected) in with.iter().zip(&base).zip([share + 10.0 * (1.0 - share), 50.5]) {
        assert!((with - base - expected).abs() < 1e-4, "{} instead of {expected}", with - base);
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
        let live = case.values(&alone(&adapter, &t), &case.x());
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
    let settled = adapter.settling().unwrap().settle(&after, after.clone());
    assert_eq!(values(&settled[0]), values(&after[0]));
    assert_eq!(values(&settled[1]), values(&after[1]));
    for (found, expected) in values(&settled[2]).iter().zip([0.4, 0.0, 0.0, -0.27]) {
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }
}

/// The first and the last layer and as many between as were asked for, others in the next period.
#[test]
fn lisa_wakes_its_share() {
    let adapter = build(row("lisa"), &[("awake", "3"), ("period", "5")]);
    let drawn = |step: usize| adapter.awake(step, 12, &Philox::new(1)).unwrap();
    let periods: Vec<Vec<usize>> = (0..8).map(|period| drawn(5 * period)).collect();
    for (period, awake) in periods.iter().enumerate() {
        assert_eq!(*awake, drawn(5 * period + 4), "the same until the period ends");
        let between = awake.iter().filter(|&&layer| (1..11).contains(&layer)).count();
        assert!(awake.contains(&0) && awake.contains(&11) && between == 3, "{awake:?}");
    }
    assert!(periods.iter().any(|awake| *awake != periods[0]), "always the same: {periods:?}");
}
