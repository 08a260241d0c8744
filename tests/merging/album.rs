//! OPCM: adapters that join one by one.

use faer::{Mat, MatRef};
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::metadata;
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::merge::Source;
use triptych::engine::merge::note::About;

use crate::builders::*;

fn opcm() -> Variant {
    with("opcm", &[])
}

fn sources(files: &[LoraFile]) -> Vec<Source> {
    files.iter().map(|file| at(file, 1.0)).collect()
}

fn whole(delta: &Dense) -> f64 {
    norm(&delta.values().map(|d| norm(d)).collect::<Vec<_>>())
}

/// The restricted form on dense weights, with all square matrices written out: the diagonal is cleared up to the rank.
fn published(files: &[LoraFile], alpha: f64) -> Dense {
    let mut album = dense(&files[0]);
    let (mut lambda, mut norms) = (1.0, vec![whole(&album)]);
    for (t, file) in files.iter().enumerate().skip(1) {
        let tau = dense(file);
        norms.push(whole(&tau));
        for (module, old) in &mut album {
            let out = file.layers[module].out();
            let square = |x: &[f64]| MatRef::from_row_major_slice(x, out, x.len() / out).to_owned();
            let svd = square(old).svd().unwrap();
            let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
            let (total, rank) = (s.iter().sum::<f64>(), (3 * t).min(s.len()));
            let split = (0..rank).find(|&k| s[..=k].iter().sum::<f64>() > alpha * total).unwrap_or(0);
            let mut p = svd.U().transpose() * square(&tau[module]) * svd.V();
            for i in 0..rank {
                for j in 0..rank {
                    if i == j || (i < split && j < split) {
                        p[(i, j)] = 0.0;
                    }
                }
            }
            let clean: Mat<f64> = svd.U() * p * svd.V().transpose();
            let rows = clean.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>());
            old.iter_mut().zip(rows).for_each(|(x, c)| *x = lambda * *x + c);
        }
        lambda = whole(&album) / (norms.iter().sum::<f64>() / norms.len() as f64);
        album = scaled(&album, 1.0 / lambda);
    }
    album
}

#[test]
fn thin_factors_give_the_published_result() {
    let files = [plain(1), plain(2), plain(3)];
    for alpha in ["0.5", "0", "0.9", "1"] {
        let found = dense(&merged(&sources(&files), &with("opcm", &[("alpha", alpha)])));
        assert_near(&format!("alpha {alpha}"), &found, &published(&files, alpha.parse().unwrap()), 1e-6);
    }
    assert!(apart(&published(&files, 0.5), &published(&files, 0.9)) > 1e-3, "alpha does something");
}

#[test]
fn the_strength_is_the_mean_of_those_who_joined() {
    let files = [plain(1), plain(2), plain(3), plain(4)];
    for n in 1..=4 {
        let mean = files[..n].iter().map(|file| whole(&dense(file))).sum::<f64>() / n as f64;
        let album = whole(&dense(&merged(&sources(&files[..n]), &opcm())));
        assert!((album / mean - 1.0).abs() < 1e-6, "{n}: {album} instead of {mean}");
    }
}

#[test]
fn what_is_kept_runs_from_all_to_nothing() {
    let kept = |files: &[LoraFile]| {
        let (_, notes) = run(&sources(files), opcm().0, &vec![]).unwrap();
        told(&notes, "kept", &About::Source(1))
    };
    let mut apart = plain(2);
    for (module, layer) in &mut apart.layers {
        // No read in common, and then no shared write can matter: UᵀτV is 0.
        let first = &plain(1).layers[module];
        let input = layer.input();
        for row in layer.down.chunks_exact_mut(input) {
            project_out(row, &first.down, input);
        }
    }
    assert!((kept(&[plain(1), apart]) - 1.0).abs() < 1e-5);
    assert!(kept(&[plain(1), plain(1)]) < 1e-6, "a copy brings nothing");
    let strangers = kept(&[plain(1), plain(2)]);
    assert!(strangers > 0.5 && strangers < 0.9999, "{strangers}");
}

/// Removes the span of `rows` from `x`.
fn project_out(x: &mut [f32], rows: &[f32], width: usize) {
    let rows = MatRef::from_row_major_slice(rows, rows.len() / width, width).map(|&x| f64::from(x));
    let q = rows.transpose().qr().compute_thin_Q();
    let v = Mat::from_fn(width, 1, |i, _| f64::from(x[i]));
    let rest = &v - &q * (q.transpose() * &v);
    x.iter_mut().enumerate().for_each(|(i, x)| *x = rest[(i, 0)] as f32);
}

/// The core of the album mode: one more adapter to a finished file is the same as all of them at once.
#[test]
fn a_finished_album_takes_one_more() {
    let files = [plain(1), plain(2), plain(3), plain(4)];
    let at_once = merged(&sources(&files), &opcm());
    let mut album = stored(&merged(&sources(&files[..1]), &opcm()), Dtype::F32);
    for file in &files[1..] {
        album = stored(&merged(&[at(&album, 1.0), at(file, 1.0)], &opcm()), Dtype::F32);
    }
    // Measured 3e-7: what storing the file in between rounds.
    assert_near("one by one", &dense(&album), &dense(&at_once), 2e-6);
    let state =
        |file: &LoraFile| -> serde_json::Value { serde_json::from_str(&file.metadata[metadata::ALBUM]).unwrap() };
    let lambda = |file| state(file)["lambda"].as_f64().unwrap();
    assert!((lambda(&album) / lambda(&at_once) - 1.0).abs() < 1e-6);
    assert_eq!(state(&album)["norms"].as_array().unwrap().len(), 4);
    // Without the state it is another merge.
    let mut forgotten = stored(&merged(&sources(&files[..3]), &opcm()), Dtype::F32);
    forgotten.metadata.remove(metadata::ALBUM);
    let other = merged(&[at(&forgotten, 1.0), at(&files[3], 1.0)], &opcm());
    assert!(apart(&dense(&other), &dense(&at_once)) > 1e-2);
}

#[test]
fn an_album_goes_on_at_its_strength_or_says_why_not() {
    let pair = merged(&sources(&[plain(1), plain(2)]), &opcm());
    let at_once = merged(&[at(&plain(1), 0.5), at(&plain(2), 0.5), at(&plain(3), 1.0)], &opcm());
    let later = merged(&[at(&pair, 0.5), at(&plain(3), 1.0)], &opcm());
    assert_near("at half strength", &dense(&later), &dense(&at_once), 2e-6);
    let mut uneven = at(&pair, 1.0);
    uneven.strength.text = 0.5;
    let error = try_merge(&[uneven, at(&plain(3), 1.0)], opcm().0, &vec![]).unwrap_err();
    assert!(error.what.contains("one strength"), "{error}");
    let mut broken = pair;
    broken.metadata.insert(metadata::ALBUM.into(), "{".into());
    let error = try_merge(&[at(&broken, 1.0)], opcm().0, &vec![]).unwrap_err();
    assert!(error.what.contains("state"), "{error}");
}

/// Layers that only some have, and adapters that say nothing.
#[test]
fn gaps_and_silence_are_no_arrivals() {
    let (mut a, mut b) = (plain(1), plain(2));
    a.layers.remove(LAYERS[0].0);
    b.layers.remove(LAYERS[1].0);
    let mut nothing = plain(3);
    nothing.layers.values_mut().for_each(|layer| layer.up.fill(0.0));
    let [with, without] = [
        merged(&[at(&nothing, 1.0), at(&a, 1.0), at(&nothing, 1.0), at(&b, 1.0)], &opcm()),
        merged(&[at(&a, 1.0), at(&b, 1.0)], &opcm()),
    ];
    assert_near("silence", &dense(&with), &dense(&without), 1e-6);
    assert_eq!(with.metadata[metadata::ALBUM], without.metadata[metadata::ALBUM]);
}
