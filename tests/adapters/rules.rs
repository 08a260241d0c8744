//! What single methods promise beyond the contract.

use std::sync::Arc;

use burn::tensor::Tensor;
use triptych::engine::adapter::Adapter;
use triptych::engine::model::Weight;

use crate::case::{Case, cases, delta, wide};
use crate::gradients::Slopes;
use crate::{apart, build, largest, matrix, row, tensor, values};

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
        delta(&build(row("pissa"), &one).store(&case.tensors(&starts), &case.weight).unwrap(), [2, 2])
            .0
            .iter()
            .all(|x| x.abs() < 1e-6)
    );
}
