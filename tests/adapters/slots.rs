//! Orthogonal Adaptation: concepts in different slots do not hear each other.

use std::collections::BTreeSet;

use triptych::engine::adapter::basis::Basis;
use triptych::engine::adapter::{self, Context, Spot};
use triptych::engine::device;
use triptych::engine::field::Settings;
use triptych::engine::model::{Layer, Part, StableDiffusion, Weight};
use triptych::engine::random::Philox;
use triptych::engine::session;
use triptych::engine::spectrum::{LowRank, Shape};

use crate::{reference, tensor};

/// The read side of a slot.
fn reads(changes: &[(&str, &str)], context: &Context, width: usize) -> triptych::engine::Result<Vec<f32>> {
    let method = adapter::method("orthogonal").unwrap();
    let settings = Settings::new(method.fields, changes.iter().copied()).unwrap();
    let layer = Layer { part: Part::Unet, path: String::new(), out: 1, channels: width, kernel: None, module: None };
    let weight = Weight { oi: tensor(&vec![0.0; width], [1, width]), bias: None };
    let spot = Spot { layer: &layer, weight: &weight, depth: 0.0, random: Philox::new(context.seed) };
    let starts = (method.build)(&settings, context)?.begin(&spot)?;
    assert!(!starts[0].trains && starts[1].trains, "only the write side trains");
    Ok(starts[0].values.clone())
}

fn slot(slot: usize, block: usize) -> Context {
    Context { seed: 7, slot, block }
}

/// Largest entry of `a · bᵀ`, less the identity where asked.
fn cross(a: &[f32], b: &[f32], width: usize, minus_identity: bool) -> f64 {
    let mut worst = 0.0_f64;
    for (i, a) in a.chunks_exact(width).enumerate() {
        for (j, b) in b.chunks_exact(width).enumerate() {
            let product: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            worst = worst.max((product - f64::from(u8::from(minus_identity && i == j))).abs());
        }
    }
    worst
}

#[test]
fn slots_do_not_meet_at_any_width_of_a_model() {
    let starter = StableDiffusion::open(&StableDiffusion::folder("starter"), &device::cpu()).unwrap();
    for model in [&reference::model(), &starter] {
        let block = session::default_block(model);
        let widths: BTreeSet<usize> = model.layers.iter().map(Layer::input).collect();
        let mut worst = 0.0_f64;
        for &width in &widths {
            // A late slot of a wide layer takes seconds, and differs from an early one by nothing but time.
            let last = (width / block - 1).min(5);
            let rank = (block - 3).to_string();
            let at = |t: usize| reads(&[], &slot(t, block), width).unwrap();
            let narrow = reads(&[("rank", &rank)], &slot(1, block), width).unwrap();
            let [a, b, c] = [0, 1, last].map(at);
            worst = worst.max(cross(&a, &b, width, false)).max(cross(&a, &narrow, width, false));
            if last > 1 {
                worst = worst.max(cross(&a, &c, width, false)).max(cross(&b, &c, width, false));
            }
            for rows in [&a, &b, &c] {
                assert_eq!(rows.len(), block * width);
                assert!(cross(rows, rows, width, true) < 1e-6, "{} at width {width}: not orthonormal", model.name);
            }
        }
        println!("{}: {worst:.1e} over {} widths, {widths:?}", model.name, widths.len());
        assert!(worst < 1e-6, "{}: {worst:e}", model.name);
    }
}

/// How loudly two adapters with random write sides hear each other: 0 in disjoint slots, about 1/√width with Gaussian
/// rows, about 1/√rank in one slot.
#[test]
fn only_slots_are_exactly_apart() {
    const WIDTH: usize = 320;
    const RANK: usize = 16;
    let delta = |kind: &str, t: usize, seed: u64| {
        let down = reads(&[("basis", kind)], &slot(t, RANK), WIDTH).unwrap();
        let up = Philox::new(seed).normal(0, 64 * RANK);
        LowRank::new(&up, &down, Shape { out: 64, rank: RANK, input: WIDTH }, 1.0).unwrap()
    };
    let crosstalk = |a: &LowRank, b: &LowRank| a.product_norm(b).unwrap() / (a.energy() * b.energy()).sqrt();
    let pairs = |kind: &str| -> Vec<f64> {
        let deltas: Vec<_> = (0..6).map(|t| delta(kind, t, t as u64)).collect();
        (0..6).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| crosstalk(&deltas[i], &deltas[j])).collect()
    };
    let [slots, random, gaussian] = ["slots", "random", "gaussian"].map(pairs);
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let most = |x: &[f64]| x.iter().copied().fold(0.0, f64::max);
    let same = crosstalk(&delta("slots", 0, 1), &delta("slots", 0, 2));
    println!(
        "slots {:.1e}, random {:.3}, gaussian {:.3} on average, one slot {same:.3}",
        most(&slots),
        mean(&random),
        mean(&gaussian)
    );
    assert!(most(&slots) < 1e-6);
    // 16 of 320 columns: two draws meet in 0.8 on average, and 15 pairs do not all stay apart.
    assert!(most(&random) > 0.02 && most(&random) < 0.2, "{random:?}");
    assert!(mean(&gaussian) > 0.04 && mean(&gaussian) < 0.075, "{gaussian:?}");
    assert!(same > 0.2 && same < 0.3, "{same}");
}

#[test]
fn impossible_slots_are_sentences() {
    let says = |changes: &[(&str, &str)], context: &Context| reads(changes, context, 36).unwrap_err();
    // 36 inputs hold four slots of eight columns.
    reads(&[], &slot(3, 8), 36).unwrap();
    let error = says(&[], &slot(4, 8));
    assert!(error.what.contains("36 inputs") && error.what.contains("4 concepts"), "{error}");
    assert!(error.advice.contains("lower slot"), "{error}");
    let error = says(&[("rank", "9")], &slot(0, 8));
    assert!(error.what.contains("Rank 9") && error.what.contains('8') && error.advice.contains("up to 8"), "{error}");
    // Chance needs no agreement: every slot number is a draw.
    for kind in ["random", "gaussian"] {
        reads(&[("basis", kind), ("rank", "9")], &slot(1000, 8), 36).unwrap();
        assert!(says(&[("basis", kind), ("rank", "37")], &slot(0, 8)).what.contains("36 inputs"), "{kind}");
    }
}

/// Two artists who share nothing but the identity text compute the same rows; every part of the identity counts.
#[test]
fn rows_come_from_the_identity_alone() {
    for kind in ["slots", "random", "gaussian"] {
        let of = |seed: &str, t: usize, run_seed: u64| {
            let context = Context { seed: run_seed, ..slot(t, 8) };
            reads(&[("basis", kind), ("basis_seed", seed)], &context, 64).unwrap()
        };
        let rows = of("5", 1, 7);
        assert_eq!(rows, of("5", 1, 8), "{kind}: the run's seed is no part of the basis");
        let identity: Basis = format!("{kind} v1 seed 5 block 8").parse().unwrap();
        assert_eq!(rows, identity.rows(64, 1, 8).unwrap(), "{kind}");
        assert_ne!(rows, of("6", 1, 7), "{kind}: another basis");
        assert_ne!(rows, of("5", 2, 7), "{kind}: another slot");
    }
}
