//! Methods whose gradient departs from the loss's own: by their paper's rule, and by nothing else.

use burn::tensor::Tensor;
use faer::Mat;
use triptych::engine::adapter::Start;
use triptych::engine::model::{Change, LayerId, Mounts, Weight};

use crate::case::{Case, cases};
use crate::gradients::{Slopes, slope, summed, weights};
use crate::{apart, build, matrix, row, tensor, values};

fn row_major(m: &Mat<f64>) -> Vec<f32> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
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
        let [down, up] = &case.tensors(&slopes.starts)[..] else { panic!("two tensors began") };
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
        let before = case.tensors(&on_update.starts);
        let after: Vec<_> = before.iter().map(|t| t.clone() + 0.25).collect();
        let settled = on_update.adapter.settling().unwrap().settle(&before, after.clone());
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
