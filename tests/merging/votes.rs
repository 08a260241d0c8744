//! TIES and `KnOTS`: what the vote decides, and where it is held.

use faer::{Mat, MatRef};
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::merge::Source;
use triptych::engine::merge::note::About;

use crate::builders::*;

const ALL_HEARD: [(&str, &str); 3] = [("density", "1"), ("rank", "4096"), ("keep", "1")];

fn sources(files: &[LoraFile]) -> Vec<Source> {
    files.iter().map(|file| at(file, 1.0)).collect()
}

#[test]
fn one_adapter_fully_heard_is_itself() {
    for variant in [with("ties", &ALL_HEARD), with("knots", &ALL_HEARD[..1])] {
        let alone = dense(&merged(&[at(&plain(1), -0.7)], &variant));
        assert_near(variant.0.name, &alone, &scaled(&dense(&plain(1)), -0.7), 1e-6);
    }
    let half = with("ties", &[&ALL_HEARD[..], &[("lambda", "0.5")]].concat());
    assert_near("lambda", &dense(&merged(&[at(&plain(1), 1.0)], &half)), &scaled(&dense(&plain(1)), 0.5), 1e-6);
}

/// Each number lies among those of the adapters that agree with its sign; and trimming leaves the share it says.
#[test]
fn every_number_lies_between_those_that_agree() {
    let files = [plain(1), plain(2), plain(3)];
    let deltas = files.each_ref().map(dense);
    for (module, found) in dense(&merged(&sources(&files), &with("ties", &ALL_HEARD))) {
        for (i, x) in found.iter().enumerate() {
            let agreeing = deltas.iter().map(|delta| delta[&module][i]).filter(|d| d * x > 0.0);
            let (low, high) = agreeing.fold((f64::MAX, f64::MIN), |(l, h), d| (l.min(d), h.max(d)));
            assert!((low - 1e-5..=high + 1e-5).contains(x), "{module}: {x} is not in {low}..{high}");
        }
    }
    let alone = with("ties", &[("density", "0.2"), ("rank", "4096"), ("keep", "1")]);
    for (module, found) in dense(&merged(&sources(&files[..1]), &alone)) {
        let largest = found.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let left = found.iter().filter(|x| x.abs() > 1e-5 * largest).count();
        assert_eq!(left, found.len() / 5, "{module}");
    }
}

/// Opposites disagree everywhere, copies nowhere.
#[test]
fn the_conflict_share_says_what_there_was_to_resolve() {
    let conflict = |w: f32, name: &str| {
        let pair = [at(&plain(1), 1.0), at(&plain(1), w)];
        let (_, notes) = run(&pair, with(name, &[]).0, &vec![("density", "1")]).unwrap();
        told(&notes, "conflict", &About::Whole)
    };
    for name in ["ties", "knots"] {
        assert!((conflict(-1.0, name) - 0.5).abs() < 1e-12 && conflict(1.0, name) < 1e-12, "{name}");
    }
}

/// As published, from the dense concatenation: `[ΔW₁ … ΔW_T] = U S Vᵀ`, votes on `S Vₜᵀ`, `U` in front of the result.
fn published(files: &[LoraFile]) -> Dense {
    let layer = |module: &String| {
        let (out, input) = (files[0].layers[module].out(), files[0].layers[module].input());
        let deltas: Vec<Vec<f64>> = files.iter().map(|file| dense_layer(&file.layers[module])).collect();
        let square = |x: &[f64]| MatRef::from_row_major_slice(x, out, input).to_owned();
        let all = Mat::from_fn(out, input * files.len(), |i, j| deltas[j / input][i * input + j % input]);
        let svd = all.thin_svd().unwrap();
        let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let u = svd.U().subcols(0, s.iter().filter(|x| **x > 1e-5 * s[0]).count());
        let rows: Vec<Mat<f64>> = deltas.iter().map(|delta| u.transpose() * square(delta)).collect();
        let voted = Mat::from_fn(u.ncols(), input, |i, j| {
            let sign = rows.iter().map(|row| row[(i, j)]).sum::<f64>();
            let agreeing: Vec<f64> = rows.iter().map(|row| row[(i, j)]).filter(|x| x * sign > 0.0).collect();
            agreeing.iter().sum::<f64>() / agreeing.len().max(1) as f64
        });
        let merged = u * voted;
        merged.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect::<Vec<f64>>()
    };
    files[0].layers.keys().map(|module| (module.clone(), layer(module))).collect()
}

#[test]
fn knots_votes_in_the_shared_write_space() {
    let files = [plain(1), plain(2), plain(3)];
    let found = dense(&merged(&sources(&files), &with("knots", &ALL_HEARD[..1])));
    assert_near("knots", &found, &published(&files), 1e-6);
    let ties = dense(&merged(&sources(&files), &with("ties", &ALL_HEARD)));
    assert!(apart(&found, &ties) > 0.05, "the basis is part of the method");
}

/// Half of the promise of rotation: outputs have no preferred axes, inputs do.
#[test]
fn turned_outputs_turn_the_vote_in_the_shared_space() {
    let files = [plain(1), plain(2), plain(3)];
    let turned = |file: &LoraFile| {
        let mut file = file.clone();
        for layer in file.layers.values_mut() {
            let down = layer.down.clone();
            rotate(layer);
            layer.down = down;
        }
        file
    };
    let off = |name: &str| {
        let variant = with(name, &[]);
        let after = dense(&turned(&merged(&sources(&files), &variant)));
        apart(&dense(&merged(&sources(&files.each_ref().map(turned)), &variant)), &after)
    };
    assert!(off("knots") < 1e-5 && off("ties") > 1e-2, "{} {}", off("knots"), off("ties"));
}
