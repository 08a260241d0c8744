//! What the identities prove, and what follows for merged files.

use std::path::PathBuf;

use triptych::engine::adapter::basis::Basis;
use triptych::engine::error::Error;
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::io::{metadata, names};
use triptych::engine::merge::certificate::{Certificate, certify};

use crate::builders::*;

fn certified(files: &[&LoraFile]) -> Certificate {
    certify(files).unwrap_or_else(|e| panic!("{e}")).expect("all have a basis")
}

fn refused(files: &[&LoraFile]) -> Error {
    certify(files).expect_err("refused")
}

#[test]
fn disjoint_slots_are_proven() {
    let files = [slotted(0), slotted(5), in_slot(SHARED, 9, 2, 1)];
    for (dtype, outside) in [(Dtype::F32, 1e-6), (Dtype::F16, 1e-3), (Dtype::BF16, 1e-2)] {
        let files = files.each_ref().map(|file| stored(file, dtype));
        let certificate = certified(&files.each_ref());
        println!("{dtype:?}: {:.1e} of a row lies outside its slot", certificate.outside);
        assert!(certificate.disjoint && certificate.outside < outside, "{certificate:?}");
        assert_eq!((&certificate.basis[..], &certificate.slots), (SHARED, &vec![vec![0], vec![5], vec![9]]));
    }
}

#[test]
fn two_in_one_slot_name_the_one_to_train_again() {
    let (first, mut second) = (slotted(3), in_slot(SHARED, 3, 2, 8));
    second.path = PathBuf::from("newcomer.safetensors");
    let certificate = certified(&[&slotted(1), &first, &second]);
    assert!(!certificate.disjoint);
    let sentence = &certificate.sentence;
    assert!(sentence.contains("slot3") && sentence.contains("train newcomer.safetensors again"), "{sentence}");
    // Layers that they do not share cannot collide.
    let half = |mut file: LoraFile, keep: bool| {
        file.layers.retain(|module, _| module.starts_with(names::KOHYA_TEXT) == keep);
        file
    };
    assert!(certified(&[&half(first, true), &half(second, false)]).disjoint);
}

#[test]
fn other_bases_are_refused_by_name() {
    let file = slotted(0);
    for other in ["slots v1 seed 1 block 4", "slots v1 seed 0 block 3", "random v1 seed 0 block 4"] {
        let mut foreign = in_slot(other, 1, 3, 1);
        foreign.path = PathBuf::from("foreign.safetensors");
        for files in [vec![&file, &foreign], vec![&plain(1), &file, &foreign]] {
            let error = refused(&files);
            assert!(
                [SHARED, other, "slot0", "foreign.safetensors"].iter().all(|text| error.what.contains(text)),
                "{error}"
            );
        }
        // The plain sum takes them, and claims nothing.
        let file = merged(&[at(&file, 1.0), at(&foreign, 1.0)], &sum());
        assert!(!file.metadata.contains_key(metadata::BASIS) && !file.metadata.contains_key(metadata::SLOT));
    }
    assert_eq!(certify(&[&file, &plain(1)]).unwrap(), None, "a plain LoRA proves nothing");
    assert_eq!(certify(&[]).unwrap(), None);
    let mut damaged = slotted(0);
    damaged.metadata.insert(metadata::SLOT.into(), "0,x".into());
    assert!(refused(&[&damaged]).what.contains("0,x"));
}

type Change = fn(&mut LoraLayer);

#[test]
fn rows_outside_their_slot_are_refused() {
    let good = slotted(0);
    let changed = |change: Change| {
        let mut file = slotted(1);
        change(file.layers.get_mut(LAYERS[2].0).unwrap());
        file
    };
    let cases: [(&str, Change); 3] = [
        ("another slot's rows", |l| l.down = SHARED.parse::<Basis>().unwrap().rows(l.input(), 2, BLOCK).unwrap()),
        ("trained rows", |l| l.down[7] += 0.01),
        ("one row of noise", |l| l.down[..45].copy_from_slice(&Dice::new(5).normal(45))),
    ];
    for (what, change) in cases {
        let error = refused(&[&good, &changed(change)]);
        assert!(error.what.contains("up_blocks.0") && error.what.contains("slot"), "{what}: {error}");
        assert_eq!(error.path, Some(PathBuf::from("slot1")), "{what}");
    }
    // Half precision's rounding is no damage where the file says that it is half precision.
    let rounded = stored(&slotted(1), Dtype::F16);
    assert!(certified(&[&good, &rounded]).disjoint);
    refused(&[&good, &LoraFile { dtype: Some(Dtype::F32), ..rounded }]);
    // Rows may be scaled and mixed: what counts is where they lie.
    let mut mixed = slotted(1);
    for layer in mixed.layers.values_mut() {
        shear(layer, 0, 1, 0.5);
        stretch(layer, 2, 3.0);
    }
    assert!(certified(&[&good, &mixed]).disjoint);
}

#[test]
fn merged_files_are_certified_again() {
    let pair = stored(&merged(&[at(&slotted(0), 0.5), at(&slotted(1), -1.5)], &sum()), Dtype::F32);
    assert_eq!((&pair.metadata[metadata::BASIS][..], &pair.metadata[metadata::SLOT][..]), (SHARED, "0,1"));
    let certificate = certified(&[&pair, &slotted(2)]);
    assert!(certificate.disjoint, "{certificate:?}");
    assert_eq!(certificate.slots, [vec![0, 1], vec![2]]);
    for slot in [0, 1] {
        assert!(!certified(&[&pair, &slotted(slot)]).disjoint, "slot {slot} is in the merged file");
    }
    let all = merged(&[at(&pair, 1.0), at(&slotted(2), 1.0)], &sum());
    assert_eq!(all.metadata[metadata::SLOT], "0,1,2");
    assert!(certified(&[&all, &slotted(3)]).disjoint && !certified(&[&all, &slotted(2)]).disjoint);
}

/// Slots of rank 1 that share some layers: the merged file has fewer columns in a layer than it has slots.
#[test]
fn merged_files_of_unlike_adapters_are_certified_again() {
    let (mut narrow, wide) = (in_slot(SHARED, 0, 1, 1), in_slot(SHARED, 1, 1, 2));
    narrow.layers.remove(LAYERS[0].0);
    let pair = merged(&[at(&narrow, 1.0), at(&wide, 1.0)], &sum());
    assert!(certified(&[&pair, &slotted(2)]).disjoint);
    assert!(!certified(&[&pair, &slotted(1)]).disjoint);
    // A silent adapter leaves nothing behind, so its slot is free.
    let alone = merged(&[at(&slotted(0), 1.0), at(&slotted(1), 0.0)], &sum());
    assert_eq!(alone.metadata[metadata::SLOT], "0");
    assert!(certified(&[&alone, &slotted(1)]).disjoint);
}

/// What an f16 adapter rounded stays rounded in a merge that is written as f32.
#[test]
fn merges_of_mixed_precision_are_certified_again() {
    let (exact, half) = (slotted(0), stored(&slotted(1), Dtype::F16));
    let pair = stored(&merged(&[at(&exact, 1.0), at(&half, 1.0)], &sum()), Dtype::F32);
    assert!(certified(&[&pair, &slotted(2)]).disjoint);
    let all = merged(&[at(&pair, 1.0), at(&slotted(2), 1.0)], &sum());
    assert!(certified(&[&all, &slotted(3)]).disjoint);
    // The tolerance is f16's and no wider.
    let mut broken = pair;
    broken.layers.get_mut(LAYERS[0].0).unwrap().down[0] += 0.05;
    refused(&[&broken, &slotted(2)]);
}

/// Formats that do not hold each other meet in f32, whatever the order.
#[test]
fn the_merged_format_holds_every_source() {
    let in_format = |dtype| at(&LoraFile { dtype: Some(dtype), ..plain(dtype as u64) }, 1.0);
    for (formats, expected) in [
        ([Dtype::F16, Dtype::F16], Dtype::F16),
        ([Dtype::BF16, Dtype::BF16], Dtype::BF16),
        ([Dtype::F16, Dtype::F32], Dtype::F32),
        ([Dtype::F32, Dtype::BF16], Dtype::F32),
        ([Dtype::F16, Dtype::BF16], Dtype::F32),
        ([Dtype::BF16, Dtype::F16], Dtype::F32),
    ] {
        assert_eq!(merged(&formats.map(in_format), &sum()).dtype, Some(expected), "{formats:?}");
    }
}

#[test]
fn gaussian_is_never_certified() {
    let of = |slot| in_slot("gaussian v1 seed 0 block 4", slot, 4, 1);
    let certificate = certified(&[&of(0), &of(1)]);
    assert!(!certificate.disjoint && certificate.sentence.contains("on average"), "{certificate:?}");
    let pair = merged(&[at(&of(0), 1.0), at(&of(1), 0.5)], &sum());
    assert!(!certified(&[&pair, &of(2)]).disjoint);
    let mut changed = of(1);
    changed.layers.get_mut(LAYERS[0].0).unwrap().down[0] += 0.1;
    refused(&[&of(0), &changed]);
}

/// A random subset is proven where its columns happen not to meet, and only there; ranks may exceed the block.
#[test]
fn random_subsets_are_compared_column_by_column() {
    let text = "random v1 seed 0 block 4";
    let shared: Basis = text.parse().unwrap();
    let widths = LAYERS.map(|(_, _, inputs)| inputs.iter().product::<usize>());
    let meet = |i: usize, rank_i: usize, j: usize, rank_j: usize| {
        widths.iter().any(|&width| {
            let [a, b] = [(i, rank_i), (j, rank_j)].map(|(slot, rank)| shared.columns(width, slot, rank).unwrap());
            a.iter().any(|c| b.contains(c))
        })
    };
    let (mut apart, mut met) = (0, 0);
    for rank in [2, 6] {
        let files: Vec<LoraFile> = (0..7).map(|slot| in_slot(text, slot, rank, slot as u64)).collect();
        for j in 1..files.len() {
            for i in 0..j {
                let disjoint = certified(&[&files[i], &files[j]]).disjoint;
                assert_eq!(disjoint, !meet(i, rank, j, rank), "slots {i} and {j}, rank {rank}");
                if disjoint { apart += 1 } else { met += 1 }
            }
        }
    }
    assert!(apart > 0 && met > 0, "{apart} apart, {met} met");
    // A merge of unlike ranks must not forget the columns of the larger: never call disjoint what meets.
    for other in 2..40 {
        let (large, small) = (in_slot(text, 0, 6, 1), in_slot(text, 1, 2, 2));
        let pair = merged(&[at(&large, 1.0), at(&small, 1.0)], &sum());
        let third = in_slot(text, other, 2, 3);
        let meets = meet(0, 6, other, 2) || meet(1, 2, other, 2);
        assert!(!(certified(&[&pair, &third]).disjoint && meets), "slot {other} meets the merged file");
    }
}
