//! How many numbers each method trains.

use triptych::engine::adapter::{self, Context, METHODS, Spot};
use triptych::engine::field::Settings;
use triptych::engine::model::{Layer, Part};
use triptych::engine::random::Philox;

use crate::{CONTEXT, build, reference};

/// T5 on every layer of a model, at the first depth and at the last.
#[test]
fn counts_are_what_begins() {
    let model = reference::model();
    for row in METHODS {
        let adapter = build(row, &[]);
        for (id, layer) in model.layer_ids() {
            for depth in [0.0, 0.99] {
                let spot = Spot { layer, weight: model.weight(id), depth, random: Philox::new(1) };
                let begun = adapter.begin(&spot).unwrap();
                for start in &begun {
                    let [rows, columns] = start.shape;
                    assert_eq!(start.values.len(), rows * columns, "{} {}: {}", row.name, start.name, layer.path);
                }
                let trained: usize = begun.iter().filter(|start| start.trains).map(|start| start.values.len()).sum();
                assert_eq!(adapter.count(layer, depth), trained, "{} at {depth}: {}", row.name, layer.path);
            }
        }
    }
}

fn linear(input: usize, out: usize) -> Layer {
    Layer { part: Part::Unet, path: String::new(), out, channels: input, kernel: None, module: None }
}

/// The attention of Stable Diffusion 1.5: sixteen blocks of six layers d → d and two 768 → d.
fn stable_diffusion() -> Vec<Layer> {
    let block = |d: usize| (0..6).map(move |_| linear(d, d)).chain((0..2).map(move |_| linear(768, d)));
    [[320; 5].as_slice(), &[640; 5], &[1280; 6]].concat().into_iter().flat_map(block).collect()
}

/// The linear layers of ViT-B/16.
fn vit() -> Vec<Layer> {
    let block = [(768, 2304), (768, 768), (768, 3072), (3072, 768)].map(|(input, out)| linear(input, out));
    (0..12).flat_map(|_| block.clone()).collect()
}

/// Method, settings, and the numbers trained on either set; counted by a script apart from this program.
type Golden = (&'static str, &'static [(&'static str, &'static str)], [usize; 2]);

const GOLDEN: &[Golden] = &[
    ("lora", &[("rank", "4")], [797_184, 589_824]),
    ("lora", &[("rank", "20")], [3_985_920, 2_949_120]),
    ("orthogonal", &[("rank", "20")], [1_996_800, 1_658_880]),
    ("pego", &[("rank", "4"), ("group", "4")], [3_188_736, 2_359_296]),
    ("hydra", &[("rank", "2"), ("sequential", "2")], [797_952, 626_688]),
    ("dora", &[("rank", "4")], [897_024, 672_768]),
    ("sora", &[("rank", "8")], [1_595_392, 1_180_032]),
    ("oft", &[("block_size", "32")], [1_541_568, 999_936]),
    // Every layer in turn.
    ("lisa", &[], [93_511_680, 84_934_656]),
];

#[test]
fn counts_are_the_known_ones() {
    for (name, changes, expected) in GOLDEN {
        let row = adapter::method(name).unwrap();
        let settings = Settings::new(row.fields, changes.iter().copied()).unwrap();
        let adapter = (row.build)(&settings, &Context { block: 20, ..CONTEXT }).unwrap();
        let found = [stable_diffusion(), vit()]
            .map(|layers| layers.iter().map(|layer| adapter.count(layer, 0.0)).sum::<usize>());
        assert_eq!(found, *expected, "{name} {changes:?}");
    }
}
