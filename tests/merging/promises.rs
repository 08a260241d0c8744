//! What each method promises holds, and what it does not promise fails: a row cannot claim too much or too little.

use triptych::engine::adapter::basis::Basis;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::metadata;
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::merge::certificate::certify;
use triptych::engine::merge::{METHODS, Promise, Source};

use crate::builders::*;

const ALL: [Promise; 7] = [
    Promise::Linear,
    Promise::AnyOrder,
    Promise::CopiesCountOnce,
    Promise::AloneUnchanged,
    Promise::Rotates,
    Promise::AddsTheUnrelated,
    Promise::ReadsWithin,
];

/// How far a method is from keeping a promise: a relative error. Measured where promises are kept: below 2e-6.
fn law(promise: Promise) -> fn(&Variant) -> f64 {
    match promise {
        Promise::Linear => |variant| {
            let files = three();
            let expected = weighted(files.iter().zip(STRENGTHS).map(|(file, w)| (file, f64::from(w))));
            let halves = merged(&[at(&files[0], 1.5), at(&files[0], -0.5)], variant);
            apart(&dense(&merged(&sources(&files), variant)), &expected).max(apart(&dense(&halves), &dense(&files[0])))
        },
        Promise::AnyOrder => |variant| {
            let mut sources = sources(&three());
            sources[2].file = stored(&sources[2].file, Dtype::F16);
            let shuffled = [2, 0, 1].map(|i| sources[i].clone());
            let [a, b] = [&sources, &shuffled].map(|sources| merged(sources, variant));
            assert_eq!(a.dtype, b.dtype);
            apart(&dense(&b), &dense(&a))
        },
        Promise::CopiesCountOnce => |variant| {
            let a = plain(1);
            let once = dense(&merged(&[at(&a, 0.7)], variant));
            let twice = |copy: &LoraFile| apart(&dense(&merged(&[at(&a, 0.7), at(copy, 0.7)], variant)), &once);
            twice(&a).max(twice(&regauged(&a)))
        },
        Promise::AloneUnchanged => |variant| {
            let a = plain(1);
            let alone = |w: f32| apart(&dense(&merged(&[at(&a, w)], variant)), &scaled(&dense(&a), f64::from(w)));
            [1.0, 0.3, -1.5].map(alone).into_iter().fold(0.0, f64::max)
        },
        Promise::Rotates => |variant| {
            let files = three();
            let before = merged(&sources(&files.each_ref().map(turned)), variant);
            apart(&dense(&before), &dense(&turned(&merged(&sources(&files), variant))))
        },
        Promise::AddsTheUnrelated => |variant| {
            let files = unrelated();
            let sum = weighted(files.iter().map(|file| (file, 1.0)));
            let found = dense(&merged(&files.each_ref().map(|file| at(file, 1.0)), variant));
            let dot =
                |a: &Dense, b: &Dense| a.values().flatten().zip(b.values().flatten()).map(|(a, b)| a * b).sum::<f64>();
            apart(&found, &scaled(&sum, dot(&found, &sum) / dot(&sum, &sum)))
        },
        Promise::ReadsWithin => |variant| {
            let mut pair = merged(&[at(&slotted(0), 0.5), at(&slotted(1), -1.5)], variant);
            let promised = variant.0.promises.contains(&Promise::ReadsWithin);
            assert_eq!(
                pair.metadata.contains_key(metadata::BASIS),
                promised,
                "only who keeps to the slots may name them"
            );
            pair.metadata.insert(metadata::BASIS.into(), SHARED.into());
            pair.metadata.insert(metadata::SLOT.into(), "0,1".into());
            certify(&[&stored(&pair, Dtype::F32), &slotted(2)]).map_or(1.0, |proof| proof.expect("a basis").outside)
        },
    }
}

const STRENGTHS: [f32; 3] = [1.0, 0.5, -0.8];

fn three() -> [LoraFile; 3] {
    [plain(1), plain(2), plain(3)]
}

fn sources(files: &[LoraFile; 3]) -> [Source; 3] {
    std::array::from_fn(|i| at(&files[i], STRENGTHS[i]))
}

fn turned(file: &LoraFile) -> LoraFile {
    let mut file = file.clone();
    file.layers.values_mut().for_each(rotate);
    file
}

/// Three adapters of three directions each that share neither reads nor writes; every layer has room for them.
fn unrelated() -> [LoraFile; 3] {
    let shared: Basis = "slots v1 seed 7 block 3".parse().unwrap();
    std::array::from_fn(|slot| {
        let mut file = plain(slot as u64);
        for layer in file.layers.values_mut() {
            let (out, rank) = (layer.out(), layer.rank);
            layer.down = shared.rows(layer.input(), slot, rank).unwrap();
            let writes = shared.rows(out, slot, rank).unwrap();
            let strength = |k: usize| 1.0 + (k + 2 * slot) as f32 / 3.0;
            layer.up = (0..out * rank).map(|i| strength(i % rank) * writes[i % rank * out + i / rank]).collect();
        }
        file
    })
}

#[test]
fn every_promise_is_kept_and_every_denial_is_real() {
    for method in METHODS {
        for promise in ALL {
            let law = law(promise);
            let variants = variants_of(method);
            let claimed = method.promises.contains(&promise);
            // A sum that keeps strength is one no longer.
            let tested = if claimed && promise != Promise::Linear { &variants[..] } else { &variants[..1] };
            for variant in tested {
                let error = law(variant);
                let context = format!("{} {:?}: {promise:?} is off by {error:.1e}", method.name, variant.1);
                println!("{context}");
                if claimed {
                    assert!(error < 1e-5, "{context}");
                } else {
                    assert!(error > 1e-2, "{context}, and so it could be promised");
                }
            }
        }
    }
}
