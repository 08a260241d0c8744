//! The small sum: the nearest of its rank, at a stated loss.

use faer::MatRef;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::merge::note::About;

use crate::builders::*;

/// Singular values of a dense layer.
fn spectrum(delta: &[f64], out: usize) -> Vec<f64> {
    MatRef::from_row_major_slice(delta, out, delta.len() / out).singular_values().unwrap()
}

fn dropped(files: &[LoraFile], changes: &[(&'static str, &'static str)]) -> (LoraFile, f64) {
    let sources: Vec<_> = files.iter().map(|file| at(file, 1.0)).collect();
    let (file, notes) = run(&sources, with("svd", &[]).0, &changes.to_vec()).unwrap();
    let whole = told(&notes, "dropped", &About::Whole);
    (file, whole)
}

/// Eckart & Young: the error is what was cut off, and nothing of that rank is nearer.
#[test]
fn the_error_is_the_energy_of_the_dropped_directions() {
    let files = [plain(1), plain(2)];
    let whole = weighted([(&files[0], 1.0), (&files[1], 1.0)]);
    let (file, _) = dropped(&files, &[("rank", "2"), ("keep", "1")]);
    for (module, found) in dense(&file) {
        let out = file.layers[&module].out();
        let s = spectrum(&whole[&module], out);
        let difference: Vec<f64> = found.iter().zip(&whole[&module]).map(|(a, b)| a - b).collect();
        let expected: f64 = s[2..].iter().map(|s| s * s).sum();
        assert!((norm(&difference).powi(2) / expected - 1.0).abs() < 1e-5, "{module}");
        for (a, b) in spectrum(&found, out).iter().zip(&s).take(2) {
            assert!((a / b - 1.0).abs() < 1e-6, "{module}");
        }
    }
}

#[test]
fn keeping_more_loses_less_and_ranks_are_each_layers_own() {
    let files = [plain(1), plain(2), plain(3)];
    let keep = ["0.5", "0.8", "0.95", "0.99", "1"].map(|keep| dropped(&files, &[("keep", keep)]));
    let losses = keep.each_ref().map(|(_, lost)| *lost);
    assert!(losses.is_sorted_by(|a, b| a > b) && losses[4] < 1e-12, "{losses:?}");
    for ((file, lost), share) in keep.iter().zip([0.5, 0.8, 0.95, 0.99, 1.0]) {
        assert!(*lost <= 1.0 - share + 1e-9, "{share}: {lost}");
        let whole = weighted(files.iter().map(|file| (file, 1.0)));
        for (module, layer) in &file.layers {
            let s: Vec<f64> = spectrum(&whole[module], layer.out()).iter().map(|s| s * s).collect();
            let held = |k: usize| s[..k].iter().sum::<f64>() / s.iter().sum::<f64>();
            assert!(held(layer.rank) >= share - 1e-9, "{module}");
            assert!(share > 0.999 || held(layer.rank - 1) < share, "{module}: one direction too many");
        }
    }
    let (file, _) = &keep[1];
    assert!(file.ranks().len() > 1, "{:?}", file.ranks());
    let again = stored(file, Dtype::F32);
    assert_eq!(again.layers, file.layers);
}

#[test]
fn shrinking_twice_changes_nothing_more() {
    let (once, _) = dropped(&[plain(1), plain(2)], &[("rank", "3"), ("keep", "1")]);
    let (twice, lost) = dropped(std::slice::from_ref(&once), &[("rank", "3"), ("keep", "1")]);
    assert_near("again", &dense(&twice), &dense(&once), 1e-6);
    assert!(lost < 1e-10 && once.ranks() == twice.ranks());
    // What shrinks without a loss shrinks: copies have the directions of one.
    let (copies, _) = dropped(&[plain(1), plain(1)], &[("keep", "1")]);
    assert_eq!(copies.ranks(), plain(1).ranks());
}
