//! One layer: nothing changes at first, and what trained is what the file holds.

use triptych::engine::adapter::{FileKind, METHODS};
use triptych::engine::device::read;
use triptych::engine::model::Mounts;

use crate::case::{alone, cases};
use crate::{apart, build};

/// T1. Methods that cancel what they start with are a rounding away from nothing.
#[test]
fn an_untrained_layer_is_the_layer() {
    let mut worst = 0.0_f32;
    for row in METHODS {
        let adapter = build(row, &[]);
        for case in cases().into_iter().flat_map(|case| [case.clone(), case.at_depth(0.99)]) {
            let start = case.tensors(&case.start(adapter.as_ref()));
            let (x, base) = (case.x(), case.values(&Mounts::none(), &case.x()));
            let error = apart(&case.values(&alone(&adapter, &start), &x), &base);
            worst = worst.max(error);
            assert!(error < 1e-6, "{} on a {}: {error}", row.name, case.what);
        }
    }
    println!("at most {worst:.1e} of the largest value");
}

/// T2. Catches a wrong side, a missing scale, a bias taken along, and a convolution whose stride, padding or flattening
/// differs.
#[test]
fn a_live_layer_is_the_layer_with_the_stored_change() {
    for row in METHODS.iter().filter(|row| row.file != FileKind::Own) {
        let adapter = build(row, &[]);
        let mut worst = 0.0_f32;
        for case in cases() {
            let t = case.trained(adapter.as_ref());
            let changed = case.changed_by(&adapter.store(&t, &case.weight).unwrap());
            let live = case.values(&alone(&adapter, &t), &case.x());
            let expected = read(case.run_as(&changed, &Mounts::none(), &case.x())).unwrap();
            let (error, effect) = (apart(&live, &expected), apart(&case.values(&Mounts::none(), &case.x()), &expected));
            worst = worst.max(error);
            assert!(error < 1e-5, "{} on a {}: {error}", row.name, case.what);
            assert!(effect > 0.01, "{} on a {} changes nothing: {effect}", row.name, case.what);
        }
        println!("{}: at most {worst:.1e} of the largest value", row.name);
    }
}
