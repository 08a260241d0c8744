//! Files and faders.

use std::collections::BTreeMap;

use triptych::engine::adapter::mount::Strength;
use triptych::engine::adapter::{FileKind, METHODS, Method, Stored};
use triptych::engine::io::Dtype;
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::model::{Layer, LayerId, Mounts, Part, StableDiffusion};

use crate::case::{delta, wide};
use crate::whole::{bytes, file, heard, mounted, outputs, through_disk, trained};
use crate::{apart, build, has, largest, reference};

/// T4 and T7. Save, open, mount: the same pictures, and the same bytes when saved again. Unless its row says that only
/// Triptych loads it, a file needs nothing that other tools do not read: it works without its metadata.
#[test]
fn what_was_saved_is_mounted() {
    let model = reference::model();
    for (i, row) in METHODS.iter().enumerate() {
        let trainee = trained(&model, &build(row, &[]), i as u64);
        let written = file(&model, row, &[], &trainee);
        assert_holds(row, &written, &model, &model.layer_ids().map(|(id, _)| id).collect::<Vec<_>>());
        let read = through_disk(&written);
        assert!(bytes(&read) == bytes(&written), "{}: saved again, other bytes", row.name);
        let bare = match row.file {
            FileKind::Own => read,
            _ => LoraFile { metadata: BTreeMap::new(), ..read },
        };
        let mounts = mounted(&model, &bare, &Strength::default());
        let live = outputs(&model, &trainee.mounts(&trainee.values()));
        for (found, live) in outputs(&model, &mounts).iter().zip(&live) {
            let error = apart(found, live);
            println!("{}: {error:.1e}", row.name);
            assert!(error < 1e-5, "{}: {error}", row.name);
        }
        // Added into the weights once, for many passes.
        for (found, live) in outputs(&model, &mounts.rest(&model.weights)).iter().zip(&live) {
            let error = apart(found, live);
            assert!(error < 1e-5, "{} at rest: {error}", row.name);
        }
    }
}

/// The file has of every layer what its row's kind says, and nothing else.
pub fn assert_holds(row: &Method, file: &LoraFile, model: &StableDiffusion, layers: &[LayerId]) {
    let found = (
        file.layers.len(),
        file.differences.values().filter(|d| !d.shape.is_empty()).count(),
        file.differences.values().filter(|d| d.bias.is_some()).count(),
        file.own.len(),
    );
    let (all, with_bias) = (layers.len(), layers.iter().filter(|id| model.weight(**id).bias.is_some()).count());
    let expected = match row.file {
        FileKind::Lora => (all, 0, 0, 0),
        FileKind::LoraAndBias => (all, 0, with_bias, 0),
        FileKind::Difference => (0, all, 0, 0),
        FileKind::Own => (0, 0, 0, all),
    };
    assert_eq!(found, expected, "{}: low-rank pairs, differences, biases, tensors of its own", row.name);
}

/// A tool that knows nothing but `alpha / rank · up · down` reads the change that was trained, whatever its scale.
#[test]
fn plain_files_carry_the_scale() {
    // rank, alpha, rank-stabilised → alpha over rank as it acts
    let table: [(&str, &str, &str, f64); 7] = [
        ("3", "3", "false", 1.0),
        ("3", "5", "false", 5.0 / 3.0),
        ("3", "0", "false", 1.0),
        ("1", "0.25", "false", 0.25),
        ("3", "5", "true", 5.0 / 3.0_f64.sqrt()),
        ("3", "0", "true", 3.0_f64.sqrt()),
        // Stored as 131072: more than f16 holds.
        ("1024", "4096", "true", 128.0),
    ];
    let case = wide();
    let (layer, module) = (&case.layer, case.layer.module());
    for row in METHODS.iter().filter(|row| has(row, "rank") && has(row, "alpha")) {
        for (rank, alpha, stabilised, scale) in table {
            let mut changes = vec![("rank", rank), ("alpha", alpha)];
            match (has(row, "rank_stabilised"), stabilised) {
                (true, _) => changes.push(("rank_stabilised", stabilised)),
                (false, "true") => continue,
                (false, _) => {}
            }
            let adapter = build(row, &changes);
            let t = case.trained(adapter.as_ref());
            let stored = adapter.store(&t, &case.weight).unwrap();
            let Stored::Lora { down, up, rank, alpha, .. } = &stored else { continue };
            let context = format!("{} {changes:?}", row.name);
            let acts = f64::from(alpha / *rank as f32);
            assert!((acts / scale - 1.0).abs() < 1e-6, "{context}: {acts}");
            let layers = BTreeMap::from([(
                module.clone(),
                LoraLayer {
                    down: down.clone(),
                    up: up.clone(),
                    rank: *rank,
                    alpha: *alpha,
                    down_shape: layer.down_shape(*rank),
                    up_shape: layer.up_shape(*rank),
                },
            )]);
            let size = [layer.out, layer.input()];
            for (dtype, tolerance) in [(Dtype::F32, 1e-6), (Dtype::F16, 2e-3), (Dtype::BF16, 1.5e-2)] {
                let file = LoraFile { layers: layers.clone(), dtype: Some(dtype), ..LoraFile::default() };
                let LoraLayer { down, up, rank, alpha, .. } = through_disk(&file).layers[&module].clone();
                let back = Stored::Lora { down, up, rank, alpha, bias: None };
                let [found, whole] = [&back, &stored].map(|stored| delta(stored, size).0);
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let difference: Vec<f64> = found.iter().zip(&whole).map(|(a, b)| a - b).collect();
                let error = norm(&difference) / norm(&whole);
                assert!(error < tolerance, "{context} {dtype:?}: ΔW differs by {error:e}");
            }
        }
    }
}

type Multiplier = fn(&Layer) -> f32;

/// Each row: the faders, and by how much a layer of each part is then multiplied.
#[test]
fn strengths_scale_linearly() {
    let model = reference::model();
    let mid = |by: f32| BTreeMap::from([("mid_block".to_owned(), by)]);
    let up_and_text = BTreeMap::from([("up_blocks.1".to_owned(), -1.5), ("text".to_owned(), 2.0)]);
    let table: [(Strength, Multiplier); 4] = [
        (Strength::uniform(-0.5), |_| -0.5),
        (Strength { unet: 0.0, text: 0.75, ..Strength::default() }, |l| if l.part == Part::Text { 0.75 } else { 0.0 }),
        (Strength { unet: 0.5, blocks: mid(0.25), ..Strength::default() }, |l| match l.part {
            Part::Text => 1.0,
            _ if l.path.starts_with("mid_block.") => 0.125,
            _ => 0.5,
        }),
        (Strength { blocks: up_and_text, ..Strength::default() }, |l| match l.part {
            Part::Text => 2.0,
            _ if l.path.starts_with("up_blocks.1.") => -1.5,
            _ => 1.0,
        }),
    ];
    for (i, row) in METHODS.iter().enumerate() {
        let trainee = trained(&model, &build(row, &[]), i as u64);
        let file = file(&model, row, &[], &trainee);
        let whole = mounted(&model, &file, &Strength::default());
        for (strength, times) in &table {
            let mounts = mounted(&model, &file, strength);
            for (id, layer) in model.layer_ids() {
                let full = heard(&model, &whole, id);
                let found = heard(&model, &mounts, id);
                let off = found.iter().zip(&full).map(|(a, b)| a - times(layer) * b).collect::<Vec<_>>();
                // Measured: 4e-6, the rounding of the layer's own answer.
                let error = largest(&off) / largest(&full);
                assert!(error < 2e-5, "{} at {strength:?}, {}: {error}", row.name, layer.path);
            }
        }
    }
}

/// Two adapters of each method at once, each at its own strength; and the same with what changes a weight added into it.
#[test]
fn several_adapters_are_their_sum() {
    let model = reference::model();
    let each: Vec<(LoraFile, Strength)> = METHODS
        .iter()
        .enumerate()
        .flat_map(|(i, row)| [(row, 2 * i as u64, 0.7_f32), (row, 2 * i as u64 + 1, -1.3)])
        .map(|(row, seed, strength)| {
            let trainee = trained(&model, &build(row, &[]), seed + 10);
            (file(&model, row, &[], &trainee), Strength::uniform(strength))
        })
        .collect();
    let mut together = Mounts::none();
    for (file, strength) in &each {
        triptych::engine::adapter::mount::mount(&mut together, &model, file, strength).unwrap();
    }
    let rested = together.clone().rest(&model.weights);
    let alone: Vec<Mounts> = each.iter().map(|(file, strength)| mounted(&model, file, strength)).collect();
    for (id, layer) in model.layer_ids() {
        let terms = alone.iter().map(|mounts| heard(&model, mounts, id));
        let sum = terms.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect()).unwrap();
        for mounts in [&together, &rested] {
            let error = apart(&heard(&model, mounts, id), &sum);
            assert!(error < 1e-5, "{}: {error}", layer.path);
        }
    }
}
