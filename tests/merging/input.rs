//! Bad and odd input.

use triptych::engine::io::lora_file::{LoraFile, LoraLayer};

use crate::builders::*;

/// Where a bad number can stand.
const BAD_PLACES: [fn(&mut LoraLayer, f32); 3] = [|l, x| l.up[3] = x, |l, x| l.down[3] = x, |l, x| l.alpha = x];

/// Every method. Files with such numbers are refused when they are opened; this is the second lock.
#[test]
fn bad_numbers_name_their_layer() {
    for variant in variants() {
        for bad in [f32::NAN, f32::INFINITY] {
            for change in BAD_PLACES {
                let mut file = plain(1);
                change(file.layers.get_mut(LAYERS[1].0).unwrap(), bad);
                let error = try_merge(&[at(&plain(2), 1.0), at(&file, 1.0)], variant.0, &variant.1).unwrap_err();
                assert!(error.what.contains(LAYERS[1].0), "{}: {error}", variant.0.name);
            }
        }
    }
}

/// Every method: untrained layers and denormal numbers are ordinary numbers.
#[test]
fn untrained_and_tiny_adapters_merge() {
    let (mut untrained, mut tiny) = (plain(1), plain(2));
    untrained.layers.values_mut().for_each(|layer| layer.up.fill(0.0));
    tiny.layers.values_mut().flat_map(|layer| &mut layer.up).for_each(|x| *x *= 1e-40);
    let one_row =
        named("row", [("lora_unet_mid_block_attentions_0_proj_in", layer(1, &[1, 1, 1], 1, 1.0, &mut Dice::new(3)))]);
    for variant in variants() {
        let context = format!("{} {:?}", variant.0.name, variant.1);
        let nothing = merged(&[at(&untrained, 1.0), at(&untrained, 1.0)], &variant);
        assert!(dense(&nothing).values().all(|delta| norm(delta) == 0.0), "{context}");
        let finite = |file: &LoraFile| file.layers.values().all(|l| l.up.iter().chain(&l.down).all(|x| x.is_finite()));
        assert!(finite(&merged(&[at(&untrained, 1.0), at(&tiny, 1.0)], &variant)), "{context}");
        let row = merged(&[at(&one_row, -1.0), at(&one_row, 0.5)], &variant);
        assert!(finite(&row) && row.layers.len() == 1, "{context}");
    }
}

/// Every method.
#[test]
fn adapters_of_other_models_are_refused_by_layer() {
    let a = plain(1);
    for (module, out, inputs) in [
        (LAYERS[0].0, 12, &[48_usize][..]),
        (LAYERS[0].0, 16, &[40]),
        // As wide when flattened, and yet another kernel.
        (LAYERS[2].0, 9, &[45, 1, 1]),
    ] {
        let other = named("other", [(module, layer(out, inputs, 2, 1.0, &mut Dice::new(1)))]);
        for (method, changes) in variants() {
            let error = try_merge(&[at(&a, 1.0), at(&other, 1.0)], method, &changes).unwrap_err();
            assert!(error.what.contains(module) && error.what.contains("another size"), "{error}");
        }
    }
}
