//! De-overlapping.

use faer::{Mat, MatRef};
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::merge::note::About;

use crate::builders::*;

/// TSV-M as it is published: from dense SVDs, with polar factors that drop null directions.
fn published(files: &[&LoraFile]) -> Dense {
    let polar = |m: &Mat<f64>| {
        let svd = m.thin_svd().unwrap();
        let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let r = s.iter().filter(|x| **x > 1e-2 * s[0]).count();
        svd.U().subcols(0, r) * svd.V().subcols(0, r).transpose()
    };
    let layer = |module: &String| {
        let out = files[0].layers[module].out();
        let (mut u, mut s, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for file in files {
            let delta = dense_layer(&file.layers[module]);
            let input = delta.len() / out;
            let svd = MatRef::from_row_major_slice(&delta, out, input).thin_svd().unwrap();
            for k in 0..file.layers[module].rank.min(out.min(input) / files.len()) {
                u.push(svd.U().col(k).to_owned());
                v.push(svd.V().col(k).to_owned());
                s.push(svd.S().column_vector()[k]);
            }
        }
        let columns = |c: &[faer::Col<f64>]| Mat::from_fn(c[0].nrows(), c.len(), |i, j| c[j][i]);
        let s = Mat::from_fn(s.len(), s.len(), |i, j| if i == j { s[i] } else { 0.0 });
        let merged = polar(&columns(&u)) * s * polar(&columns(&v)).transpose();
        merged.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect::<Vec<f64>>()
    };
    files[0].layers.keys().map(|module| (module.clone(), layer(module))).collect()
}

#[test]
fn thin_factors_give_the_published_result() {
    let files = [plain(1), plain(2), plain(3)];
    let found = merged(&files.each_ref().map(|file| at(file, 1.0)), &with("tsv", &[]));
    assert_near("tsv", &dense(&found), &published(&files.each_ref()), 1e-6);
    // Four adapters of three directions do not fit into nine outputs: each gives up its weakest.
    let four = [1, 2, 3, 4].map(plain);
    let (file, notes) = run(&four.each_ref().map(|file| at(file, 1.0)), with("tsv", &[]).0, &vec![]).unwrap();
    assert_near("tsv of four", &dense(&file), &published(&four.each_ref()), 1e-6);
    assert!(told(&notes, "cut", &About::Layer(LAYERS[2].0.into())) > 0.01);
    // Copies and shared directions, where a polar factor is not unique.
    let mut mixed = plain(2);
    for (module, layer) in &mut mixed.layers {
        let input = layer.input();
        layer.down[..input].copy_from_slice(&plain(1).layers[module].down[..input]);
    }
    for other in [plain(1), mixed] {
        let found = merged(&[at(&plain(1), 1.0), at(&other, 1.0)], &with("tsv", &[]));
        assert_near("tsv of relatives", &dense(&found), &published(&[&plain(1), &other]), 1e-5);
    }
}

/// Orthogonal on one side is enough for no interference, although the other side is still turned.
#[test]
fn interference_is_of_both_sides() {
    let of = |files: &[LoraFile]| {
        let sources: Vec<_> = files.iter().map(|file| at(file, 1.0)).collect();
        let (_, notes) = run(&sources, with("tsv", &[]).0, &vec![]).unwrap();
        told(&notes, "interference", &About::Whole)
    };
    let slots = [slotted(0), in_slot(SHARED, 1, BLOCK, 5)];
    assert!(of(&slots) < 1e-6, "{}", of(&slots));
    assert!(of(&[plain(1), plain(2)]) > 0.1);
    assert!(of(&[plain(1)]) < 1e-9);
    // Per direction of two copies: (UᵀU − I) S (VᵀV − I) has σ twice, beside 2σ of strength.
    assert!((of(&[plain(1), plain(1)]) - 1.0).abs() < 1e-6);
    let apart = apart(
        &dense(&merged(&slots.each_ref().map(|file| at(file, 1.0)), &with("tsv", &[]))),
        &weighted(slots.iter().map(|file| (file, 1.0))),
    );
    assert!(apart > 0.05, "the writes are turned all the same: {apart}");
}
