//! Whole differences and biases: every method treats them as it treats factors.

use triptych::engine::io::lora_file::{BIAS, Difference, LoraFile};
use triptych::engine::merge::{METHODS, Promise, Source};
use triptych::engine::random::Philox;

use crate::builders::*;

/// The same adapter with its weights multiplied out.
fn whole(file: &LoraFile) -> LoraFile {
    let differences = file.layers.iter().map(|(module, layer)| (module.clone(), layer.product())).collect();
    let biased = file.differences.iter().map(|(module, d)| (module, d.bias.clone()));
    let mut whole = LoraFile { layers: [].into(), differences, ..file.clone() };
    for (module, bias) in biased {
        if let Some(difference) = whole.differences.get_mut(module) {
            difference.bias = bias;
        }
    }
    whole
}

/// Factors, and a bias on every layer.
fn biased(seed: u64) -> LoraFile {
    let mut file = plain(seed);
    for (n, (module, layer)) in file.layers.iter().enumerate() {
        let bias = Some(Philox::new(seed).stream(9).normal(n as u32, layer.out()));
        file.differences.insert(module.clone(), Difference { bias, ..Difference::default() });
    }
    file
}

/// Everything a file changes, however it keeps it.
fn all(file: &LoraFile) -> Dense {
    let weights = file.modules().into_iter().filter_map(|m| Some((m.clone(), dense_layer(&*file.pair(m)?))));
    let wide = |bias: &[f32]| bias.iter().map(|&b| f64::from(b)).collect();
    let bias = |(m, d): (&String, &Difference)| Some((format!("{m}{BIAS}"), wide(d.bias.as_ref()?)));
    weights.chain(file.differences.iter().filter_map(bias)).collect()
}

/// Nothing left out for smallness.
fn lossless() -> Vec<Variant> {
    let all = [("rank", "64"), ("keep", "1")];
    let has = |method: &triptych::engine::merge::Method, name: &str| method.fields.iter().any(|f| f.name == name);
    METHODS.iter().map(|m| (m, all.into_iter().filter(|(name, _)| has(m, name)).collect())).collect()
}

fn sources(files: &[LoraFile]) -> Vec<Source> {
    files.iter().map(|file| at(file, 0.7)).collect()
}

#[test]
fn whole_weights_merge_as_their_factors_do() {
    let files = [plain(1), plain(2)];
    let wholes = [whole(&files[0]), whole(&files[1])];
    for variant in lossless() {
        // Pictures are told apart by factors here.
        if variant.0.name == "fisher" {
            continue;
        }
        let (found, expected) = (merged(&sources(&wholes), &variant), merged(&sources(&files), &variant));
        assert_near(variant.0.name, &all(&found), &all(&expected), 1e-4);
        // What would be larger as factors is written whole.
        for (module, layer) in &found.layers {
            assert!(layer.rank * (layer.out() + layer.input()) <= layer.out() * layer.input(), "{module}");
        }
    }
}

#[test]
fn biases_keep_what_a_method_promises() {
    let (a, b) = (biased(1), biased(2));
    let bias = |file: &LoraFile| -> Dense { all(file).into_iter().filter(|(name, _)| name.ends_with(BIAS)).collect() };
    for variant in lossless().into_iter().filter(|variant| variant.0.name != "fisher") {
        let (name, promises) = (variant.0.name, variant.0.promises);
        let of = |sources: &[Source]| bias(&merged(sources, &variant));
        if promises.contains(&Promise::AloneUnchanged) {
            assert_near(name, &of(&[at(&a, 0.3)]), &scaled(&bias(&a), 0.3), 1e-5);
        }
        if promises.contains(&Promise::CopiesCountOnce) {
            let once = of(&[at(&a, 1.0)]);
            assert_near(name, &of(&[at(&a, 1.0), at(&a, 1.0)]), &once, 1e-5);
        }
        if promises.contains(&Promise::Linear) {
            let mut sum = scaled(&bias(&a), 0.7);
            for (module, bias) in scaled(&bias(&b), -0.2) {
                sum.get_mut(&module).unwrap().iter_mut().zip(bias).for_each(|(x, y)| *x += y);
            }
            assert_near(name, &of(&[at(&a, 0.7), at(&b, -0.2)]), &sum, 1e-5);
        }
    }
    // Kept strength is kept for the bias too.
    let kept = merged(&[at(&a, 1.0), at(&a, 1.0)], &with("sum", &[("normalise", "whole")]));
    assert_near("normalised", &all(&kept), &all(&a), 1e-5);
}

#[test]
fn an_album_of_whole_weights_and_biases_goes_on() {
    let opcm = with("opcm", &[]);
    for files in [[1, 2, 3].map(biased), [1, 2, 3].map(|seed| whole(&biased(seed)))] {
        let ones: Vec<Source> = files.iter().map(|file| at(file, 1.0)).collect();
        let together = merged(&ones, &opcm);
        let pair = merged(&ones[..2], &opcm);
        let one_by_one = merged(&[at(&pair, 1.0), at(&files[2], 1.0)], &opcm);
        assert_near("one by one", &all(&one_by_one), &all(&together), 1e-4);
        // At half its strength an album is half of it, its memory included.
        let half = merged(&[at(&pair, 0.5), at(&files[2], 0.5)], &opcm);
        assert_near("at half strength", &all(&half), &scaled(&all(&together), 0.5), 1e-4);
        let late = run(&[at(&files[2], 1.0), at(&pair, 1.0)], opcm.0, &opcm.1).unwrap_err();
        assert!(late.advice.contains("first"), "{late}");
    }
}
