//! The exact sum.

use std::collections::BTreeMap;

use triptych::engine::adapter::mount::Strength;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::names;
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::merge::Source;

use crate::builders::*;

/// Mixed ranks, alphas (rank-stabilised among them), missing layers, strengths of either sign and 0.
fn random_set(seed: u64) -> Vec<Source> {
    let mut dice = Dice::new(seed);
    (0..=dice.below(4))
        .map(|i| {
            let certain = dice.below(LAYERS.len());
            let layers: Vec<_> = LAYERS
                .into_iter()
                .enumerate()
                .filter_map(|(at, (module, out, inputs))| {
                    let rank = 1 + dice.below(6);
                    let r = rank as f32;
                    let alpha = dice.pick(&[r, 1.0, 0.3, 16.0, 4.0 * r.sqrt(), -2.0]);
                    let layer = layer(out, inputs, rank, alpha, &mut dice);
                    (at == certain || dice.below(4) > 0).then_some((module, layer))
                })
                .collect();
            let mut strength = || dice.pick(&[1.0, 0.6, -0.75, 2.0, -2.0, 0.05, 0.0]);
            let strength = Strength { unet: strength(), text: strength(), ..Strength::default() };
            Source { file: named(&format!("set{seed}.{i}"), layers), strength }
        })
        .collect()
}

#[test]
fn sum_is_the_dense_sum() {
    let (mut merges, mut worst) = (0, [0.0_f64; 3]);
    for seed in 0..50 {
        let sources = random_set(seed);
        let mut expected = Dense::new();
        for Source { file, strength } in &sources {
            for (module, delta) in dense(file) {
                let w = f64::from(if module.starts_with(names::KOHYA_TEXT) { strength.text } else { strength.unet });
                if w != 0.0 {
                    let row = expected.entry(module).or_insert_with(|| vec![0.0; delta.len()]);
                    row.iter_mut().zip(delta).for_each(|(s, d)| *s += w * d);
                }
            }
        }
        if expected.is_empty() {
            let error = try_merge(&sources, sum().0, &vec![]).unwrap_err();
            assert!(error.what.contains("strength"), "{error}");
            continue;
        }
        merges += 1;
        let file = merged(&sources, &sum());
        worst[0] = worst[0].max(apart(&dense(&file), &expected));
        for (i, dtype) in [Dtype::F16, Dtype::BF16].into_iter().enumerate() {
            worst[i + 1] = worst[i + 1].max(apart(&dense(&stored(&file, dtype)), &expected));
        }
    }
    println!("{merges} merges: {:.1e}, after f16 {:.1e}, after bf16 {:.1e}", worst[0], worst[1], worst[2]);
    assert!(merges > 40, "{merges}");
    assert!(worst[0] < 1e-6 && worst[1] < 2e-3 && worst[2] < 1.5e-2, "{worst:?}");
}

/// `(Σ√c·up)(Σ√c·down)`, as two popular tools merge, has cross terms. The regression this whole file stands for.
#[test]
fn the_sum_of_factors_is_another_adapter() {
    let (a, b) = (plain(1), plain(2));
    let mut factors = a.clone();
    for (module, layer) in &mut factors.layers {
        let other = &b.layers[module];
        let add = |x: &mut [f32], y: &[f32]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        add(&mut layer.up, &other.up);
        add(&mut layer.down, &other.down);
    }
    let exact = weighted([(&a, 1.0), (&b, 1.0)]);
    let wrong = apart(&dense(&factors), &exact);
    println!("the factors' sum is {wrong:.2} of the exact sum's norm away");
    assert!(wrong > 0.5);
    assert_near("sum", &dense(&merged(&[at(&a, 1.0), at(&b, 1.0)], &sum())), &exact, 1e-6);
}

#[test]
fn two_halves_are_one_whole() {
    let a = plain(1);
    assert_near("sum", &dense(&merged(&[at(&a, 0.5), at(&a, 0.5)], &sum())), &dense(&a), 1e-6);
    assert_near("sum", &dense(&merged(&[at(&a, 1.5), at(&a, -0.5)], &sum())), &dense(&a), 1e-6);
}

fn keeping(how: &'static str) -> Variant {
    with("sum", &[("normalise", how)])
}

#[test]
fn keeping_strength_is_off_unless_asked() {
    let sources = [at(&plain(1), 1.0), at(&plain(2), 0.5)];
    let [plain_sum, off] = [sum(), keeping("off")].map(|variant| merged(&sources, &variant).layers);
    assert_eq!(plain_sum, off);
    assert_ne!(plain_sum, merged(&sources, &keeping("whole")).layers);
    assert_ne!(merged(&sources, &keeping("layer")).layers, merged(&sources, &keeping("whole")).layers);
}

/// N copies come back as one; N strangers of equal norm each at 1/√N.
#[test]
fn kept_strength_meets_its_limits() {
    for how in ["whole", "layer"] {
        for n in [2, 3, 7] {
            let copies = vec![at(&plain(1), 1.0); n];
            assert_near(
                &format!("{n} copies, {how}"),
                &dense(&merged(&copies, &keeping(how))),
                &dense(&plain(1)),
                1e-6,
            );

            // The same write side on disjoint reads: orthogonal, and of one norm.
            let strangers: Vec<LoraFile> = (0..n).map(|slot| in_slot(SHARED, slot, BLOCK, 3)).collect();
            let sources: Vec<Source> = strangers.iter().map(|file| at(file, 1.0)).collect();
            let expected = weighted(strangers.iter().map(|file| (file, (n as f64).powf(-0.5))));
            assert_near(&format!("{n} strangers, {how}"), &dense(&merged(&sources, &keeping(how))), &expected, 1e-6);
        }
    }
}

/// `target = Σw²‖ΔW‖ / Σ|w|` over the adapters that have a layer, computed here once more.
#[test]
fn kept_strength_is_the_faders_mean() {
    let (a, mut b) = (plain(1), plain(2));
    b.layers.remove(LAYERS[0].0);
    let (wa, wb) = (0.5, -1.25);
    let plain_sum = weighted([(&a, wa), (&b, wb)]);
    let target = |module: &String| {
        let terms =
            [(&a, wa), (&b, wb)].into_iter().filter_map(|(f, w): (&LoraFile, f64)| Some((f.layers.get(module)?, w)));
        let (weighted, total) =
            terms.fold((0.0, 0.0), |(n, d), (l, w)| (n + w * w * norm(&dense_layer(l)), d + w.abs()));
        weighted / total
    };
    let sources = [at(&a, wa as f32), at(&b, wb as f32)];
    for (module, delta) in dense(&merged(&sources, &keeping("layer"))) {
        assert!((norm(&delta) / target(&module) - 1.0).abs() < 1e-6, "{module}");
    }
    let total = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let g = total(&mut plain_sum.keys().map(target)) / total(&mut plain_sum.values().map(|d| norm(d)));
    assert_near("whole", &dense(&merged(&sources, &keeping("whole"))), &scaled(&plain_sum, g), 1e-6);
}

// ---- faders of single blocks

#[test]
fn block_faders_reach_their_layers_alone() {
    let (a, b) = (plain(1), plain(2));
    let blocks = BTreeMap::from([
        ("down_blocks.1".to_owned(), 0.5),
        ("mid_block".to_owned(), -2.0),
        ("up_blocks.0".to_owned(), 0.0),
    ]);
    let faders = Strength { unet: 0.8, text: 0.25, blocks };
    // In the order of LAYERS.
    let expected = [0.4, -1.6, 0.0, 0.25];
    let file = merged(&[Source { file: a.clone(), strength: faders }, at(&b, 1.0)], &sum());
    for ((module, ..), w) in LAYERS.into_iter().zip(expected) {
        let only = |file: &LoraFile| named("", [(module, file.layers[module].clone())]);
        let whole = weighted([(&only(&a), w), (&only(&b), 1.0)]);
        assert_near(module, &dense(&only(&file)), &whole, 1e-6);
        let silent = file.layers[module].rank == b.layers[module].rank;
        assert_eq!(silent, w == 0.0, "{module}: what is silent takes no rank");
    }
}

/// Tools disagree on whether `proj_in` is a linear layer or a 1×1 convolution; the model does not care, nor does a
/// merge, whose file keeps the convolution's shape.
#[test]
fn a_point_convolution_may_be_stored_as_linear() {
    let (a, mut b) = (plain(1), plain(2));
    let flat = b.layers.get_mut(LAYERS[1].0).unwrap();
    (flat.down_shape, flat.up_shape) = (vec![3, 40], vec![11, 3]);
    for files in [[&a, &b], [&b, &a]] {
        let file = merged(&files.map(|file| at(file, 1.0)), &sum());
        assert_near("sum", &dense(&file), &weighted([(&a, 1.0), (&b, 1.0)]), 1e-6);
        let layer = &file.layers[LAYERS[1].0];
        assert_eq!((&layer.down_shape[..], &layer.up_shape[..]), (&[6, 40, 1, 1][..], &[11, 6, 1, 1][..]));
    }
}
