//! Numbers made by PEFT: the sum, TIES and the truncated SVD, with every shape taken from the file.

use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::merge::Source;

use crate::builders::*;
use crate::reference::Reference;

const MODULE: &str = "lora_unet_mid_block_attentions_0_proj_out";

/// A full difference as an adapter: the identity on the read side.
fn full(delta: Vec<f32>, [out, input]: [usize; 2]) -> LoraFile {
    let down = (0..input * input).map(|i| f32::from(u8::from(i % (input + 1) == 0))).collect();
    let (down_shape, up_shape) = (vec![input, input], vec![out, input]);
    let layer = LoraLayer { down, up: delta, rank: input, alpha: input as f32, down_shape, up_shape };
    named("full", [(MODULE, layer)])
}

/// The deltas at their weights, and the shape.
fn sources(r: &Reference) -> (Vec<Source>, [usize; 2]) {
    let shape = r.shape("delta.0").try_into().unwrap();
    let weights = r.f32("weights");
    let delta = |i: usize| at(&full(r.f32(&format!("delta.{i}")), shape), weights[i]);
    ((0..weights.len()).map(delta).collect(), shape)
}

fn assert_equals(r: &Reference, name: &str, variant: &Variant) {
    let (sources, _) = sources(r);
    let found = dense(&merged(&sources, variant)).remove(MODULE).unwrap();
    let expected: Vec<f64> = r.f32(name).into_iter().map(f64::from).collect();
    let largest = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let off = found.iter().zip(&expected).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs())) / largest;
    println!("{name}: {off:.1e}");
    assert!(found.len() == expected.len() && off < 1e-5, "{name} is off by {off:.1e} of its largest number");
}

#[test]
fn the_sum_is_pefts() {
    assert_equals(&Reference::open("merge_reference"), "linear", &sum());
}

#[test]
fn ties_is_pefts() {
    let r = Reference::open("merge_reference");
    for name in r.names().filter(|name| name.starts_with("ties.")) {
        let (density, sign) = name.strip_prefix("ties.").and_then(|rest| rest.rsplit_once('.')).unwrap();
        let words = |text: &str| -> &'static str { text.to_owned().leak() };
        let changes = [("density", words(density)), ("sign", words(sign)), ("rank", "4096"), ("keep", "1")];
        assert_equals(&r, name, &with("ties", &changes));
    }
    assert_eq!(r.names().filter(|name| name.starts_with("ties.")).count(), 4);
}

#[test]
fn the_small_sum_is_pytorchs() {
    let r = Reference::open("merge_reference");
    let rank = r.names().find_map(|name| name.strip_prefix("svd.rank")).unwrap().to_owned();
    let changes: Changes = vec![("rank", rank.clone().leak()), ("keep", "1")];
    assert_equals(&r, &format!("svd.rank{rank}"), &(with("svd", &[]).0, changes.clone()));
    let (sources, _) = sources(&r);
    let (_, notes) = run(&sources, with("svd", &[]).0, &changes).unwrap();
    let energy: Vec<f64> = r.f32("svd.S").into_iter().map(|s| f64::from(s).powi(2)).collect();
    let expected = energy[rank.parse().unwrap()..].iter().sum::<f64>() / energy.iter().sum::<f64>();
    let said = told(&notes, "dropped", &triptych::engine::merge::note::About::Whole);
    assert!((said - expected).abs() < 1e-6, "{said} instead of {expected}");
}
