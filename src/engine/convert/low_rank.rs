//! Every layer as a pair of at most so many directions.

use std::collections::BTreeSet;

use faer::MatRef;

use crate::engine::Result;
use crate::engine::event::{Event, Watch};
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::spectrum::{LowRank, Shape, Svd, leading};

/// Whole differences become their `rank` strongest directions, wider pairs likewise; narrower pairs stay as they are. Names
/// those that changed.
pub fn cut(file: &mut LoraFile, rank: usize, watch: &mut Watch<'_>) -> Result<BTreeSet<String>> {
    let mut cut = BTreeSet::new();
    let total = file.layers.len() + file.differences.len() + file.kroneckers.len();
    watch(Event::Stage { name: "finding the strongest directions".into(), total })?;
    for (done, (module, layer)) in file.layers.iter_mut().enumerate() {
        if layer.rank > rank {
            let shape = Shape { out: layer.out(), rank: layer.rank, input: layer.input() };
            let delta = LowRank::new(&layer.up, &layer.down, shape, f64::from(layer.scale()))?;
            *layer = strongest(&delta.svd()?, rank, &layer.down_shape[1..]);
            cut.insert(module.clone());
        }
        watch(Event::Progress { done: done + 1, total })?;
    }
    let whole: Vec<String> = file.differences.keys().chain(file.kroneckers.keys()).cloned().collect();
    let pairs = file.layers.len();
    for (done, module) in whole.into_iter().enumerate() {
        if let Some(whole) = file.whole(&module)
            && let [out, inputs @ ..] = &whole.shape[..]
        {
            let input = inputs.iter().product();
            let delta = MatRef::from_row_major_slice(&whole.weight, *out, input).map(|&x| f64::from(x));
            let layer = strongest(&leading(delta.as_ref(), rank)?, rank, inputs);
            if let Some(difference) = file.differences.get_mut(&module) {
                (difference.weight, difference.shape) = (Vec::new(), Vec::new());
            }
            file.kroneckers.remove(&module);
            file.layers.insert(module.clone(), layer);
            cut.insert(module);
        }
        watch(Event::Progress { done: pairs + done + 1, total })?;
    }
    file.differences.retain(|_, difference| difference.bias.is_some());
    Ok(cut)
}

/// The `rank` strongest directions of a layer whose inputs have these axes.
fn strongest(svd: &Svd, rank: usize, inputs: &[usize]) -> LoraLayer {
    // Directions of nothing but rounding are left out: a difference of few directions stays as small as it is.
    let k = rank.min(svd.rank()).max(1);
    let pair = svd.truncated(k);
    let rows = |m: MatRef<'_, f64>| {
        (0..m.nrows()).flat_map(|i| m.row(i).iter().map(|&x| x as f32).collect::<Vec<_>>()).collect()
    };
    let (out, point): (usize, &[usize]) = (pair.up().nrows(), if inputs.len() == 3 { &[1, 1] } else { &[] });
    LoraLayer {
        down: rows(pair.down()),
        up: rows(pair.up()),
        rank: k,
        alpha: k as f32,
        down_shape: [&[k], inputs].concat(),
        up_shape: [&[out, k], point].concat(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::convert::{Paths, loss};
    use crate::engine::io::lora_file::Difference;
    use crate::engine::random::Philox;

    fn layer(rank: usize) -> LoraLayer {
        let draw = |i, n| Philox::new(5).normal(i, n);
        let (down, up) = (draw(0, rank * 18), draw(1, 6 * rank));
        LoraLayer { down, up, rank, alpha: 2.0, down_shape: vec![rank, 2, 3, 3], up_shape: vec![6, rank, 1, 1] }
    }

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn what_is_narrow_stays_and_the_error_of_the_rest_is_the_one_told() {
        let (narrow, wide) = (layer(2), layer(5));
        let whole = layer(4).product();
        let layers = BTreeMap::from([("narrow".into(), narrow.clone()), ("wide".into(), wide.clone())]);
        let mut file = LoraFile { layers, ..LoraFile::default() };
        let bias = Some(vec![1.0; 6]);
        file.differences.insert("whole".into(), Difference { bias: bias.clone(), ..whole.clone() });
        let before = file.clone();
        let names = cut(&mut file, 3, &mut |_| Ok(())).unwrap();
        let loss = loss::of(&before, &file, &Paths::of(None), &names).unwrap();
        assert_eq!(file.layers["narrow"], narrow);
        assert_eq!(file.differences["whole"], Difference { bias, ..Difference::default() });
        let norm = |values: &[f32]| distance(values, &vec![0.0; values.len()]);
        let (mut lost, mut all) = (0.0, norm(&narrow.product().weight).powi(2));
        for (module, before) in [("wide", wide.product()), ("whole", whole)] {
            let after = file.layers[module].product();
            assert_eq!((after.shape.clone(), file.layers[module].rank), (vec![6, 2, 3, 3], 3));
            let error = distance(&before.weight, &after.weight) / norm(&before.weight);
            assert!((loss.layers[module] - error).abs() < 1e-4 && error > 1e-3, "{module}: {error} {loss:?}");
            lost += distance(&before.weight, &after.weight).powi(2);
            all += norm(&before.weight).powi(2);
        }
        assert!((loss.all - (lost / all).sqrt()).abs() < 1e-4, "{loss:?}");
        // With room for all its directions nothing is lost.
        let mut file = LoraFile::default();
        file.differences.insert("whole".into(), layer(4).product());
        let before = file.clone();
        let names = cut(&mut file, 6, &mut |_| Ok(())).unwrap();
        assert_eq!(file.layers["whole"].rank, 4);
        let loss = loss::of(&before, &file, &Paths::of(None), &names).unwrap();
        assert!(loss.all < 1e-6, "{loss:?}");
    }
}
