//! How long merges of Stable Diffusion's size take.

use std::collections::BTreeMap;
use std::time::Instant;

use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::merge::METHODS;
use triptych::engine::merge::note::sentences;

use crate::builders::*;

/// The attention layers of the SD 1.5 denoiser: width, and how many transformer blocks have it.
const BLOCKS: [(usize, usize); 3] = [(320, 5), (640, 5), (1280, 6)];

/// Rank 16 on all 128 of them.
fn sized(seed: u64) -> LoraFile {
    let mut dice = Dice::new(seed);
    let mut layers = BTreeMap::new();
    for (width, count) in BLOCKS {
        for block in 0..count {
            for (attention, from) in [(1, width), (2, 768)] {
                for (part, input) in [("q", width), ("k", from), ("v", from), ("out", width)] {
                    let name = format!("lora_unet_mid_block_{width}_{block}_attn{attention}_{part}");
                    layers.insert(name, layer(width, &[input], 16, 16.0, &mut dice));
                }
            }
        }
    }
    LoraFile { layers, ..named("sized", []) }
}

/// `cargo test --test merging sd_sized -- --ignored --nocapture`
#[test]
#[ignore = "a measurement of a minute"]
fn sd_sized_merges_take_seconds() {
    let sources = [1, 2, 3].map(|seed| at(&sized(seed), 1.0));
    assert_eq!(sources[0].file.layers.len(), 128);
    for method in METHODS {
        let begun = Instant::now();
        let (file, notes) = run(&sources, method, &vec![]).unwrap();
        println!("{:<8} {:6.1} s, ranks {:?}", method.name, begun.elapsed().as_secs_f64(), file.ranks());
        for line in sentences(&notes) {
            println!("         {line}");
        }
    }
}
