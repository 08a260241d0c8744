//! The contract of merging: the exact sum, what orthogonal slots add to it, and what they do not.
//!
//! Tests marked *every method* loop over `METHODS` with each choice of their settings. Expected deltas are computed
//! here, dense and in f64. Each tolerance stands beside what was measured.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use reference::Reference;
use triptych::engine::adapter::basis::Basis;
use triptych::engine::adapter::mount::{Strength, mount};
use triptych::engine::error::{self, Error};
use triptych::engine::field::{Kind, Settings};
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::io::safetensors::{self, Dtype};
use triptych::engine::io::{metadata, names};
use triptych::engine::merge::certificate::{Certificate, certify};
use triptych::engine::merge::recover::recover;
use triptych::engine::merge::{self, METHODS, Method, Source};
use triptych::engine::model::{Mounts, Part, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::train::step::read;

type Changes = Vec<(&'static str, &'static str)>;

/// A layer of the denoiser, a 1×1 and a 3×3 convolution, and a layer of the text encoder: module, outputs, inputs.
const LAYERS: [(&str, usize, &[usize]); 4] = [
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 12, &[40]),
    ("lora_unet_mid_block_attentions_0_proj_in", 11, &[40, 1, 1]),
    ("lora_unet_up_blocks_0_resnets_0_conv1", 9, &[5, 3, 3]),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1", 14, &[41]),
];
/// Ten slots fit into each of them.
const BLOCK: usize = 4;
const SLOTS: usize = 10;

// ---- builders

/// Random numbers, each draw a new one.
struct Dice(Philox, u32);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Philox::new(seed), 0)
    }

    fn normal(&mut self, n: usize) -> Vec<f32> {
        self.1 += 1;
        self.0.normal(self.1, n)
    }

    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        self.0.below(self.1, 0, n)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn layer(out: usize, inputs: &[usize], rank: usize, alpha: f32, dice: &mut Dice) -> LoraLayer {
    let input = inputs.iter().product::<usize>();
    let up_shape = if inputs.len() == 3 { vec![out, rank, 1, 1] } else { vec![out, rank] };
    LoraLayer {
        down: dice.normal(rank * input).into_iter().map(|x| x / (input as f32).sqrt()).collect(),
        up: dice.normal(out * rank),
        rank,
        alpha,
        down_shape: [&[rank], inputs].concat(),
        up_shape,
    }
}

fn named(name: &str, layers: impl IntoIterator<Item = (&'static str, LoraLayer)>) -> LoraFile {
    LoraFile {
        path: PathBuf::from(name),
        layers: layers.into_iter().map(|(module, layer)| (module.to_owned(), layer)).collect(),
        metadata: BTreeMap::from([(metadata::METHOD.to_owned(), "lora".to_owned())]),
        dtype: Some(Dtype::F32),
        ..LoraFile::default()
    }
}

/// A plain LoRA on every layer whose scale is not 1.
fn plain(seed: u64) -> LoraFile {
    let mut dice = Dice::new(seed);
    named(&format!("plain{seed}"), LAYERS.map(|(module, out, inputs)| (module, layer(out, inputs, 3, 5.0, &mut dice))))
}

/// An adapter trained in a slot of a shared basis, as its file would be.
fn in_slot(basis: &str, slot: usize, rank: usize, seed: u64) -> LoraFile {
    let (shared, mut dice) = (basis.parse::<Basis>().unwrap(), Dice::new(seed));
    let mut file = named(
        &format!("slot{slot}"),
        LAYERS.map(|(module, out, inputs)| {
            let mut layer = layer(out, inputs, rank, 0.7 + seed as f32, &mut dice);
            layer.down = shared.rows(layer.input(), slot, rank).unwrap();
            (module, layer)
        }),
    );
    file.metadata.insert(metadata::METHOD.into(), "orthogonal".into());
    file.metadata.insert(metadata::BASIS.into(), basis.into());
    file.metadata.insert(metadata::SLOT.into(), slot.to_string());
    file
}

const SHARED: &str = "slots v1 seed 0 block 4";

fn slotted(slot: usize) -> LoraFile {
    in_slot(SHARED, slot, BLOCK, slot as u64)
}

fn at(file: &LoraFile, strength: f32) -> Source {
    Source { file: file.clone(), strength: Strength::uniform(strength) }
}

fn try_merge(sources: &[Source], method: &Method, changes: &Changes) -> triptych::engine::Result<LoraFile> {
    merge::merge(sources, method, &Settings::new(method.fields, changes.iter().copied()).unwrap())
}

fn merged(sources: &[Source], (method, changes): &(&'static Method, Changes)) -> LoraFile {
    try_merge(sources, method, changes).unwrap_or_else(|e| panic!("{} {changes:?}: {e}", method.name))
}

fn sum() -> (&'static Method, Changes) {
    (merge::method("sum").unwrap(), Vec::new())
}

/// Every method with its defaults, and with each choice of each field.
fn variants() -> Vec<(&'static Method, Changes)> {
    let choices = |method: &'static Method| {
        method.fields.iter().flat_map(|field| {
            let words = if let Kind::Choice(words) = field.kind { words } else { &[] };
            words.iter().map(|word| vec![(field.name, *word)])
        })
    };
    METHODS.iter().flat_map(|row| std::iter::once(vec![]).chain(choices(row)).map(move |c| (row, c))).collect()
}

fn stored(file: &LoraFile, dtype: Dtype) -> LoraFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(&file.path).with_extension("safetensors");
    LoraFile { dtype: Some(dtype), ..file.clone() }.save(&path).unwrap();
    LoraFile::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

// ---- what is expected

/// `ΔW [out, in]` of each layer, row-major.
type Dense = BTreeMap<String, Vec<f64>>;

fn dense_layer(layer: &LoraLayer) -> Vec<f64> {
    let (input, scale) = (layer.input(), f64::from(layer.alpha) / layer.rank as f64);
    let mut delta = vec![0.0; layer.out() * input];
    for (row, up) in delta.chunks_exact_mut(input).zip(layer.up.chunks_exact(layer.rank)) {
        for (down, u) in layer.down.chunks_exact(input).zip(up) {
            row.iter_mut().zip(down).for_each(|(d, &x)| *d += scale * f64::from(*u) * f64::from(x));
        }
    }
    delta
}

fn dense(file: &LoraFile) -> Dense {
    file.layers.iter().map(|(module, layer)| (module.clone(), dense_layer(layer))).collect()
}

/// `Σ wₜ·ΔWₜ`, with the strength of each adapter on each layer given by `w`.
fn weighted<'a>(terms: impl IntoIterator<Item = (&'a LoraFile, f64)>) -> Dense {
    let mut sum = Dense::new();
    for (file, w) in terms {
        for (module, delta) in dense(file) {
            let row = sum.entry(module).or_insert_with(|| vec![0.0; delta.len()]);
            row.iter_mut().zip(delta).for_each(|(s, d)| *s += w * d);
        }
    }
    sum
}

fn scaled(delta: &Dense, by: f64) -> Dense {
    delta.iter().map(|(module, d)| (module.clone(), d.iter().map(|x| by * x).collect())).collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The worst layer's `‖found − expected‖ / ‖expected‖`.
fn apart(found: &Dense, expected: &Dense) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "other layers");
    let layer = |(found, expected): (&Vec<f64>, &Vec<f64>)| {
        let difference: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        assert!(difference.iter().all(|x| x.is_finite()), "not finite");
        norm(&difference) / norm(expected)
    };
    found.values().zip(expected.values()).map(layer).fold(0.0, f64::max)
}

fn assert_near(context: &str, found: &Dense, expected: &Dense, tolerance: f64) {
    let error = apart(found, expected);
    assert!(error <= tolerance, "{context}: differs by {error:.1e} of its norm");
}

// ---- the registry

#[test]
fn rows_are_complete() {
    let names: BTreeSet<&str> = METHODS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), METHODS.len(), "two methods share a name");
    for row in METHODS {
        for text in [row.name, row.title, row.paper, row.help] {
            assert!(!text.trim().is_empty() && text.trim() == text, "{}: {text:?}", row.name);
        }
        assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{} must be typed easily", row.name);
        assert_eq!(merge::method(row.name).unwrap().title, row.title);
        let fields: BTreeSet<&str> = row.fields.iter().map(|field| field.name).collect();
        assert_eq!(fields.len(), row.fields.len(), "{}: two fields share a name", row.name);
        Settings::new(row.fields, []).unwrap_or_else(|e| panic!("{}: a default is not valid: {e}", row.name));
        for field in row.fields {
            assert!(!field.title.is_empty() && !field.help.is_empty(), "{}.{} explains nothing", row.name, field.name);
        }
    }
    let error = merge::method("ties").unwrap_err();
    assert!(METHODS.iter().all(|row| error.advice.contains(row.name)), "{error}");
}

// ---- P1: the exact sum

/// Mixed ranks, alphas (rank-stabilised among them), missing layers, strengths of either sign and 0.
fn random_set(seed: u64) -> Vec<Source> {
    let mut dice = Dice::new(seed);
    (0..=dice.below(4))
        .map(|i| {
            let certain = dice.below(LAYERS.len());
            let layers: Vec<_> = LAYERS
                .into_iter()
                .enumerate()
                .filter_map(|(at, (module, out, inputs))| {
                    let rank = 1 + dice.below(6);
                    let r = rank as f32;
                    let alpha = dice.pick(&[r, 1.0, 0.3, 16.0, 4.0 * r.sqrt(), -2.0]);
                    let layer = layer(out, inputs, rank, alpha, &mut dice);
                    (at == certain || dice.below(4) > 0).then_some((module, layer))
                })
                .collect();
            let mut strength = || dice.pick(&[1.0, 0.6, -0.75, 2.0, -2.0, 0.05, 0.0]);
            let strength = Strength { unet: strength(), text: strength(), ..Strength::default() };
            Source { file: named(&format!("set{seed}.{i}"), layers), strength }
        })
        .collect()
}

#[test]
fn sum_is_the_dense_sum() {
    let (mut merges, mut worst) = (0, [0.0_f64; 3]);
    for seed in 0..50 {
        let sources = random_set(seed);
        let mut expected = Dense::new();
        for Source { file, strength } in &sources {
            for (module, delta) in dense(file) {
                let w = f64::from(if module.starts_with(names::KOHYA_TEXT) { strength.text } else { strength.unet });
                if w != 0.0 {
                    let row = expected.entry(module).or_insert_with(|| vec![0.0; delta.len()]);
                    row.iter_mut().zip(delta).for_each(|(s, d)| *s += w * d);
                }
            }
        }
        if expected.is_empty() {
            let error = try_merge(&sources, sum().0, &vec![]).unwrap_err();
            assert!(error.what.contains("strength"), "{error}");
            continue;
        }
        merges += 1;
        let file = merged(&sources, &sum());
        worst[0] = worst[0].max(apart(&dense(&file), &expected));
        for (i, dtype) in [Dtype::F16, Dtype::BF16].into_iter().enumerate() {
            worst[i + 1] = worst[i + 1].max(apart(&dense(&stored(&file, dtype)), &expected));
        }
    }
    println!("{merges} merges: {:.1e}, after f16 {:.1e}, after bf16 {:.1e}", worst[0], worst[1], worst[2]);
    assert!(merges > 40, "{merges}");
    assert!(worst[0] < 1e-6 && worst[1] < 2e-3 && worst[2] < 1.5e-2, "{worst:?}");
}

/// `(Σ√c·up)(Σ√c·down)`, as two popular tools merge, has cross terms. The regression this whole file stands for.
#[test]
fn the_sum_of_factors_is_another_adapter() {
    let (a, b) = (plain(1), plain(2));
    let mut factors = a.clone();
    for (module, layer) in &mut factors.layers {
        let other = &b.layers[module];
        let add = |x: &mut [f32], y: &[f32]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        add(&mut layer.up, &other.up);
        add(&mut layer.down, &other.down);
    }
    let exact = weighted([(&a, 1.0), (&b, 1.0)]);
    let wrong = apart(&dense(&factors), &exact);
    println!("the factors' sum is {wrong:.2} of the exact sum's norm away");
    assert!(wrong > 0.5);
    assert_near("sum", &dense(&merged(&[at(&a, 1.0), at(&b, 1.0)], &sum())), &exact, 1e-6);
}

/// Every method: what matters is the product, not how it is split into factors.
#[test]
fn another_gauge_of_the_factors_changes_nothing() {
    let files = [plain(1), plain(2), plain(3)];
    let regauged = files.each_ref().map(regauged);
    let sources = |files: &[LoraFile]| [at(&files[0], 1.0), at(&files[1], 0.5), at(&files[2], -0.8)];
    assert!(files[0].layers[LAYERS[0].0].up != regauged[0].layers[LAYERS[0].0].up);
    for variant in variants() {
        let [as_is, again] = [&files, &regauged].map(|files| dense(&merged(&sources(files), &variant)));
        // Measured: 8e-7.
        assert_near(&format!("{} {:?}", variant.0.name, variant.1), &again, &as_is, 1e-5);
    }
}

/// The same deltas as other factors: up·G and G⁻¹·down, where G mixes and stretches the rank's directions.
fn regauged(file: &LoraFile) -> LoraFile {
    let (mut file, mut dice) = (file.clone(), Dice::new(4));
    for layer in file.layers.values_mut() {
        for _ in 0..6 {
            let (i, j, t) = (dice.below(3), dice.below(2), 0.5 + dice.below(2) as f32);
            shear(layer, i, (i + 1 + j) % 3, t);
            stretch(layer, i, [0.5, 3.0][j]);
        }
    }
    file
}

/// Column i of `up` gains t times column j; row j of `down` loses t times row i.
fn shear(layer: &mut LoraLayer, i: usize, j: usize, t: f32) {
    layer.up.chunks_exact_mut(layer.rank).for_each(|row| row[i] += t * row[j]);
    let input = layer.input();
    for k in 0..input {
        layer.down[j * input + k] -= t * layer.down[i * input + k];
    }
}

fn stretch(layer: &mut LoraLayer, i: usize, by: f32) {
    layer.up.chunks_exact_mut(layer.rank).for_each(|row| row[i] *= by);
    let input = layer.input();
    layer.down[i * input..(i + 1) * input].iter_mut().for_each(|x| *x /= by);
}

/// Every method: inputs and outputs have no preferred axes.
#[test]
fn rotated_adapters_give_the_rotated_merge() {
    let files = [plain(1), plain(2), plain(3)];
    let turned = |file: &LoraFile| {
        let mut file = file.clone();
        file.layers.values_mut().for_each(rotate);
        file
    };
    let sources = |files: &[LoraFile]| [at(&files[0], 1.0), at(&files[1], 0.5), at(&files[2], -0.8)];
    for variant in variants() {
        let after = turned(&merged(&sources(&files), &variant));
        let before = merged(&sources(&files.each_ref().map(turned)), &variant);
        assert_near(&format!("{} {:?}", variant.0.name, variant.1), &dense(&before), &dense(&after), 1e-5);
    }
}

/// By 0.9 in the plane of the first two outputs and of the first two inputs.
fn rotate(layer: &mut LoraLayer) {
    let (sin, cos) = 0.9_f32.sin_cos();
    let (rank, input) = (layer.rank, layer.input());
    for k in 0..rank {
        let (x, y) = (layer.up[k], layer.up[rank + k]);
        (layer.up[k], layer.up[rank + k]) = (cos * x - sin * y, sin * x + cos * y);
        let (x, y) = (layer.down[k * input], layer.down[k * input + 1]);
        (layer.down[k * input], layer.down[k * input + 1]) = (cos * x - sin * y, sin * x + cos * y);
    }
}

/// Every method: order is no input.
#[test]
fn order_does_not_matter() {
    let sources = [at(&plain(1), 1.0), at(&plain(2), 0.5), at(&stored(&plain(3), Dtype::F16), -0.8)];
    let shuffled = [2, 0, 1].map(|i| sources[i].clone());
    for variant in variants() {
        let [a, b] = [&sources, &shuffled].map(|sources| merged(sources, &variant));
        assert_near(&format!("{} {:?}", variant.0.name, variant.1), &dense(&b), &dense(&a), 1e-6);
        assert_eq!(a.dtype, b.dtype);
    }
}

/// Every method: one fader for all of them is one fader on the result.
#[test]
fn a_common_factor_passes_through() {
    let files = [plain(1), plain(2), plain(3)];
    let sources = |by: f32| [at(&files[0], by), at(&files[1], 0.5 * by), at(&files[2], -0.8 * by)];
    for variant in variants() {
        let whole = dense(&merged(&sources(1.0), &variant));
        for by in [0.3, -1.7] {
            let context = format!("{} {:?} × {by}", variant.0.name, variant.1);
            assert_near(&context, &dense(&merged(&sources(by), &variant)), &scaled(&whole, f64::from(by)), 1e-6);
        }
    }
}

#[test]
fn two_halves_are_one_whole() {
    let a = plain(1);
    assert_near("sum", &dense(&merged(&[at(&a, 0.5), at(&a, 0.5)], &sum())), &dense(&a), 1e-6);
    assert_near("sum", &dense(&merged(&[at(&a, 1.5), at(&a, -0.5)], &sum())), &dense(&a), 1e-6);
}

/// Every method: an adapter alone is what its fader says, and one whose fader is at 0 is not there.
#[test]
fn one_adapter_stays_at_its_strength() {
    let (a, b) = (plain(1), plain(2));
    for variant in variants() {
        let context = format!("{} {:?}", variant.0.name, variant.1);
        for w in [1.0, 0.3, -1.5] {
            let alone = merged(&[at(&a, w)], &variant);
            assert_near(&context, &dense(&alone), &scaled(&dense(&a), f64::from(w)), 1e-6);
            let beside = merged(&[at(&b, 0.0), at(&a, w)], &variant);
            assert_eq!(beside.layers, alone.layers, "{context}: a silent adapter is heard");
        }
        let error = try_merge(&[at(&a, 0.0), at(&b, 0.0)], variant.0, &variant.1).unwrap_err();
        assert_eq!(error.kind, error::Kind::Usage, "{context}: {error}");
        let error = try_merge(&[], variant.0, &variant.1).unwrap_err();
        assert!(error.what.contains("No adapter"), "{context}: {error}");
    }
}

/// Every method: an adapter less itself is nothing. A method that keeps strength must not blow the rounding up.
#[test]
fn an_adapter_less_itself_is_nothing() {
    let a = plain(1);
    let most = |file: &LoraFile| file.layers.values().flat_map(|l| &l.up).fold(0.0_f32, |m, x| m.max(x.abs()));
    for variant in variants() {
        let context = format!("{} {:?}", variant.0.name, variant.1);
        for twin in [a.clone(), regauged(&a)] {
            let file = merged(&[at(&a, 1.0), at(&twin, -1.0)], &variant);
            for (module, delta) in dense(&file) {
                assert!(norm(&delta) < 1e-5 * norm(&dense(&a)[&module]), "{context}: {module} is left over");
            }
            assert!(most(&file) < 10.0 * most(&a).max(most(&twin)), "{context}: a factor grew to {}", most(&file));
        }
    }
}

// ---- keeping strength

fn keeping(how: &'static str) -> (&'static Method, Changes) {
    (sum().0, vec![("normalise", how)])
}

#[test]
fn keeping_strength_is_off_unless_asked() {
    let sources = [at(&plain(1), 1.0), at(&plain(2), 0.5)];
    let [plain_sum, off] = [sum(), keeping("off")].map(|variant| merged(&sources, &variant).layers);
    assert_eq!(plain_sum, off);
    assert_ne!(plain_sum, merged(&sources, &keeping("whole")).layers);
    assert_ne!(merged(&sources, &keeping("layer")).layers, merged(&sources, &keeping("whole")).layers);
}

/// N copies come back as one; N strangers of equal norm each at 1/√N.
#[test]
fn kept_strength_meets_its_limits() {
    for how in ["whole", "layer"] {
        for n in [2, 3, 7] {
            let copies = vec![at(&plain(1), 1.0); n];
            assert_near(
                &format!("{n} copies, {how}"),
                &dense(&merged(&copies, &keeping(how))),
                &dense(&plain(1)),
                1e-6,
            );

            // The same write side on disjoint reads: orthogonal, and of one norm.
            let strangers: Vec<LoraFile> = (0..n).map(|slot| in_slot(SHARED, slot, BLOCK, 3)).collect();
            let sources: Vec<Source> = strangers.iter().map(|file| at(file, 1.0)).collect();
            let expected = weighted(strangers.iter().map(|file| (file, (n as f64).powf(-0.5))));
            assert_near(&format!("{n} strangers, {how}"), &dense(&merged(&sources, &keeping(how))), &expected, 1e-6);
        }
    }
}

/// `target = Σw²‖ΔW‖ / Σ|w|` over the adapters that have a layer, computed here once more.
#[test]
fn kept_strength_is_the_faders_mean() {
    let (a, mut b) = (plain(1), plain(2));
    b.layers.remove(LAYERS[0].0);
    let (wa, wb) = (0.5, -1.25);
    let plain_sum = weighted([(&a, wa), (&b, wb)]);
    let target = |module: &String| {
        let terms =
            [(&a, wa), (&b, wb)].into_iter().filter_map(|(f, w): (&LoraFile, f64)| Some((f.layers.get(module)?, w)));
        let (weighted, total) =
            terms.fold((0.0, 0.0), |(n, d), (l, w)| (n + w * w * norm(&dense_layer(l)), d + w.abs()));
        weighted / total
    };
    let sources = [at(&a, wa as f32), at(&b, wb as f32)];
    for (module, delta) in dense(&merged(&sources, &keeping("layer"))) {
        assert!((norm(&delta) / target(&module) - 1.0).abs() < 1e-6, "{module}");
    }
    let total = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let g = total(&mut plain_sum.keys().map(target)) / total(&mut plain_sum.values().map(|d| norm(d)));
    assert_near("whole", &dense(&merged(&sources, &keeping("whole"))), &scaled(&plain_sum, g), 1e-6);
}

// ---- faders of single blocks

#[test]
fn block_faders_reach_their_layers_alone() {
    let (a, b) = (plain(1), plain(2));
    let blocks = BTreeMap::from([
        ("down_blocks.1".to_owned(), 0.5),
        ("mid_block".to_owned(), -2.0),
        ("up_blocks.0".to_owned(), 0.0),
    ]);
    let faders = Strength { unet: 0.8, text: 0.25, blocks };
    // In the order of LAYERS.
    let expected = [0.4, -1.6, 0.0, 0.25];
    let file = merged(&[Source { file: a.clone(), strength: faders }, at(&b, 1.0)], &sum());
    for ((module, ..), w) in LAYERS.into_iter().zip(expected) {
        let only = |file: &LoraFile| named("", [(module, file.layers[module].clone())]);
        let whole = weighted([(&only(&a), w), (&only(&b), 1.0)]);
        assert_near(module, &dense(&only(&file)), &whole, 1e-6);
        let silent = file.layers[module].rank == b.layers[module].rank;
        assert_eq!(silent, w == 0.0, "{module}: what is silent takes no rank");
    }
}

// ---- taking a concept back out

/// One strength for each slot.
const STRENGTHS: [f32; SLOTS] = [1.0, 0.5, -0.75, 2.0, 0.1, 1.3, -1.0, 0.25, 0.8, 1.6];

/// Ten concepts of ranks 1 to 4.
fn ten() -> Vec<Source> {
    (0..SLOTS).map(|slot| at(&in_slot(SHARED, slot, 1 + slot % BLOCK, slot as u64), STRENGTHS[slot])).collect()
}

/// Largest error of `λᵢ·scaleᵢ·upᵢ` in any layer, as a share of its largest entry; missing ranks are zero.
fn recovered_apart(merged: &LoraFile, slot: usize, source: &Source) -> f64 {
    let recovered = recover(merged, &SHARED.parse().unwrap(), slot).unwrap();
    assert_eq!(recovered.keys().collect::<Vec<_>>(), source.file.layers.keys().collect::<Vec<_>>());
    let mut worst = 0.0_f64;
    for (module, found) in &recovered {
        let layer = &source.file.layers[module];
        assert_eq!((found.rank, found.scale()), (BLOCK, 1.0));
        assert_eq!(found.down, SHARED.parse::<Basis>().unwrap().rows(layer.input(), slot, BLOCK).unwrap());
        let scale = f64::from(source.strength.unet) * f64::from(layer.alpha) / layer.rank as f64;
        let expected = layer
            .up
            .chunks_exact(layer.rank)
            .flat_map(|row| (0..BLOCK).map(|k| scale * row.get(k).map_or(0.0, |&x| f64::from(x))).collect::<Vec<_>>());
        let (mut difference, mut largest) = (0.0_f64, 0.0_f64);
        for (&x, e) in found.up.iter().zip(expected) {
            difference = difference.max((f64::from(x) - e).abs());
            largest = largest.max(e.abs());
        }
        worst = worst.max(difference / largest);
    }
    worst
}

#[test]
fn every_concept_comes_back_out_of_the_sum() {
    let sources = ten();
    let file = merged(&sources, &sum());
    for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 1e-2), (Dtype::BF16, 1e-1)] {
        let file = stored(&file, dtype);
        let errors: Vec<f64> = (0..SLOTS).map(|slot| recovered_apart(&file, slot, &sources[slot])).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        // Measured with faders from 0.1 to 2: f32 4e-7, f16 3e-3, bf16 2e-2; the quietest concept is the worst.
        println!("{dtype:?}: {worst:.1e} of the largest entry");
        assert!(worst < tolerance, "{dtype:?}: {errors:?}");
    }
}

/// Merging what was merged, in pieces and through files, keeps all of them.
#[test]
fn concepts_come_back_out_of_nested_merges() {
    let sources = ten();
    let halves = [&sources[..4], &sources[4..]].map(|part| at(&stored(&merged(part, &sum()), Dtype::F32), 1.0));
    let file = merged(&halves, &sum());
    for (slot, source) in sources.iter().enumerate() {
        let error = recovered_apart(&file, slot, source);
        assert!(error < 1e-5, "slot {slot}: {error:e}");
    }
}

/// `ΔW·x` of a layer.
fn apply(delta: &[f64], x: &[f64]) -> Vec<f64> {
    delta.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn share(found: &[f64], expected: &[f64]) -> f64 {
    norm(&found.iter().zip(expected).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(expected)
}

/// What a concept reads alone, the merge answers as the concept alone. On any other input it does not: certificates
/// speak of weights, and a test that claimed more would be wrong.
#[test]
fn only_a_slots_own_directions_are_answered_alone() {
    let sources = ten();
    let whole = dense(&merged(&sources, &sum()));
    for (slot, source) in sources.iter().enumerate() {
        let alone = scaled(&dense(&source.file), f64::from(source.strength.unet));
        for (module, delta) in &whole {
            let layer = &source.file.layers[module];
            let mut dice = Dice::new(slot as u64 + 77);
            let mut own = vec![0.0; layer.input()];
            for (row, c) in layer.down.chunks_exact(layer.input()).zip(dice.normal(layer.rank)) {
                own.iter_mut().zip(row).for_each(|(x, &b)| *x += f64::from(c) * f64::from(b));
            }
            let error = share(&apply(delta, &own), &apply(&alone[module], &own));
            assert!(error < 1e-5, "slot {slot}, {module}: {error:e}");

            let gaussian: Vec<f64> = dice.normal(layer.input()).into_iter().map(f64::from).collect();
            let difference = share(&apply(delta, &gaussian), &apply(&alone[module], &gaussian));
            assert!(difference > 0.3, "slot {slot}, {module}: only {difference} apart on a random input");
        }
    }
}

/// The negative control: in one and the same slot nothing can be told apart.
#[test]
fn concepts_in_one_slot_do_not_come_back() {
    let sources: Vec<Source> = (0..3).map(|i| at(&in_slot(SHARED, 2, BLOCK, i), 1.0)).collect();
    let file = merged(&sources, &sum());
    for source in &sources {
        let error = recovered_apart(&file, 2, source);
        assert!(error > 0.3, "{error}");
    }
}

#[test]
fn a_slot_beyond_the_basis_is_a_sentence() {
    let file = merged(&ten()[..2], &sum());
    let error = recover(&file, &SHARED.parse().unwrap(), SLOTS).unwrap_err();
    assert!(error.what.contains("no slot 10"), "{error}");
}

// ---- the certificate

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

// ---- what a merged file says

fn with_token(mut file: LoraFile, word: &str, vectors: &[[f32; 2]]) -> LoraFile {
    file.tokens.insert(word.into(), vectors.iter().map(|v| v.to_vec()).collect());
    file.metadata.insert(metadata::TOKEN.into(), word.into());
    file
}

/// Every method.
#[test]
fn tokens_of_all_sources_are_carried() {
    let a = with_token(plain(1), "<cat>", &[[0.5, -0.5], [1.0, 2.0]]);
    let b = with_token(plain(2), "<dog>", &[[0.25, 4.0]]);
    for variant in variants() {
        let file = stored(&merged(&[at(&a, 1.0), at(&b, -0.5)], &variant), Dtype::F32);
        let tokens: BTreeMap<_, _> = a.tokens.clone().into_iter().chain(b.tokens.clone()).collect();
        assert_eq!(file.tokens, tokens, "{}: not scaled, not lost", variant.0.name);

        let twin = with_token(plain(3), "<cat>", &[[0.5, -0.5], [1.0, 2.0]]);
        merged(&[at(&a, 1.0), at(&twin, 1.0)], &variant);
        let mut clash = with_token(plain(3), "<cat>", &[[0.5, -0.5], [1.0, 2.5]]);
        clash.path = PathBuf::from("clash.safetensors");
        let error = try_merge(&[at(&a, 1.0), at(&b, 1.0), at(&clash, 1.0)], variant.0, &variant.1).unwrap_err();
        assert!(error.what.contains("<cat>"), "{error}");
        assert_eq!(error.path, Some("clash.safetensors".into()));
    }
}

/// Every method: the bytes are a function of the sources' contents, not of where they lie or how often one merges.
#[test]
fn equal_inputs_make_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for variant in variants() {
        let here = [at(&with_token(slotted(0), "<a>", &[[1.0, 2.0]]), 1.0), at(&slotted(1), 0.3)];
        let elsewhere = here.clone().map(|mut source| {
            source.file.path = folder.path().join("moved").join(source.file.path);
            source
        });
        let read_back = here.clone().map(|source| Source { file: stored(&source.file, Dtype::F32), ..source });
        let bytes = [&here, &here, &elsewhere].map(|sources| {
            let path = folder.path().join("m.safetensors");
            merged(sources, &variant).save(&path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            // P9: reading and writing again changes nothing.
            LoraFile::open(&path).unwrap().save(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "{}", variant.0.name);
            bytes
        });
        assert_eq!(bytes[0], bytes[1], "{}", variant.0.name);
        assert_eq!(bytes[0], bytes[2], "{}: a path is in the file", variant.0.name);
        let (a, b) = (merged(&here, &variant), merged(&read_back, &variant));
        assert_eq!(
            (a.layers, a.tokens, &a.metadata[metadata::RECIPE]),
            (b.layers, b.tokens, &b.metadata[metadata::RECIPE])
        );
    }
}

/// Every method: strengths, settings and the contents' hashes can be read back from the file.
#[test]
fn the_recipe_is_in_the_file() {
    let blocks = BTreeMap::from([("mid_block".to_owned(), 0.25)]);
    let faders = Strength { unet: 0.5, text: -1.0, blocks };
    let files = [with_token(slotted(0), "<a>", &[[1.0, 2.0]]), slotted(1)].map(|file| stored(&file, Dtype::F32));
    for variant in variants() {
        let sources = [Source { file: files[0].clone(), strength: faders.clone() }, at(&files[1], 2.0)];
        let file = stored(&merged(&sources, &variant), Dtype::F32);
        assert_eq!(file.metadata[metadata::METHOD], format!("merge {}", variant.0.name));
        let recipe: serde_json::Value = serde_json::from_str(&file.metadata[metadata::RECIPE]).unwrap();
        assert_eq!(recipe["merge"], variant.0.name);
        for (field, word) in &variant.1 {
            assert_eq!(recipe["settings"][field], *word);
        }
        let [first, second] = [0, 1].map(|i| &recipe["sources"][i]);
        assert_eq!((&first["token"], &first["slot"]), (&"<a>".into(), &"0".into()));
        assert_eq!(
            first["strength"],
            serde_json::json!({ "unet": 0.5, "text": -1.0, "blocks": { "mid_block": 0.25 } })
        );
        assert_eq!(second["strength"]["unet"], 2.0);
        for (source, stored) in [first, second].into_iter().zip(&files) {
            assert_eq!(source["sha256"], stored.metadata["sshs_model_hash"], "the hash a tool would look for");
        }
        assert_eq!(file.metadata["sshs_model_hash"], safetensors::tensor_hash(&file.tensors()));
    }
}

// ---- bad input

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
        assert_near(&context, &dense(&merged(&[at(&one_row, -1.0)], &variant)), &scaled(&dense(&one_row), -1.0), 1e-6);
    }
}

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
        let error = try_merge(&[at(&a, 1.0), at(&other, 1.0)], sum().0, &vec![]).unwrap_err();
        assert!(error.what.contains(module), "{error}");
    }
}

/// Tools disagree on whether `proj_in` is a linear layer or a 1×1 convolution; the model does not care, nor does a
/// merge, whose file keeps the convolution's shape.
#[test]
fn a_point_convolution_may_be_stored_as_linear() {
    let (a, mut b) = (plain(1), plain(2));
    let flat = b.layers.get_mut(LAYERS[1].0).unwrap();
    (flat.down_shape, flat.up_shape) = (vec![3, 40], vec![11, 3]);
    for files in [[&a, &b], [&b, &a]] {
        let file = merged(&files.map(|file| at(file, 1.0)), &sum());
        assert_near("sum", &dense(&file), &weighted([(&a, 1.0), (&b, 1.0)]), 1e-6);
        let layer = &file.layers[LAYERS[1].0];
        assert_eq!((&layer.down_shape[..], &layer.up_shape[..]), (&[6, 40, 1, 1][..], &[11, 6, 1, 1][..]));
    }
}

// ---- P11: what is heard live is what is written

/// A random adapter on every layer of a model.
fn on_every_layer(model: &StableDiffusion, rank: usize, alpha: f32, seed: u64) -> LoraFile {
    let mut dice = Dice::new(seed);
    let layers = model.layers.iter().map(|l| {
        let down = dice.normal(rank * l.input()).into_iter().map(|x| x / (l.input() as f32).sqrt()).collect();
        let up = dice.normal(l.out * rank).into_iter().map(|x| 0.04 * x).collect();
        let (down_shape, up_shape) = (l.down_shape(rank), l.up_shape(rank));
        (l.module(), LoraLayer { down, up, rank, alpha, down_shape, up_shape })
    });
    LoraFile {
        layers: layers.collect(),
        dtype: Some(Dtype::F32),
        path: format!("every{seed}").into(),
        ..LoraFile::default()
    }
}

/// What the text encoder and then the denoiser say with `sources` mounted.
fn outputs(model: &StableDiffusion, sources: &[Source]) -> [Vec<f32>; 2] {
    let mut mounts = Mounts::none();
    for Source { file, strength } in sources {
        mount(&mut mounts, model, file, strength).unwrap();
    }
    let prompt = model.tokenizer.encode(&Reference::open("sd_reference").prompts()[0], &[]).unwrap();
    let context = model.condition(&[prompt], &[], &mounts);
    let (channels, side) = (model.unet.config.in_channels, 1 << model.unet.config.block_out_channels.len());
    let noise = TensorData::new(Philox::new(5).normal(0, channels * side * side), [1, channels, side, side]);
    let out = model.unet.forward(Tensor::from_data(noise, &model.device), &[321.0], &context, &mounts);
    [read(context).unwrap(), read(out).unwrap()]
}

#[test]
fn the_written_file_is_the_live_stack() {
    let model = reference::model();
    assert!(model.layers.iter().any(|layer| layer.part == Part::Text), "both networks are tested");
    let blocks = BTreeMap::from([("mid_block".to_owned(), 0.0), ("up_blocks.1".to_owned(), 1.5)]);
    let faders = Strength { unet: 0.7, text: 0.4, blocks };
    let sources = [
        at(&on_every_layer(&model, 2, 3.0, 1), 1.0),
        Source { file: on_every_layer(&model, 3, 2.0, 2), strength: faders },
        at(&on_every_layer(&model, 1, 1.0, 3), -0.8),
    ];
    let file = stored(&merged(&sources, &sum()), Dtype::F32);
    let shuffled = [2, 0, 1].map(|i| sources[i].clone());
    let [base, live, again, baked] = [&[][..], &sources, &shuffled, &[at(&file, 1.0)]].map(|s| outputs(&model, s));
    let apart = |a: &[f32], b: &[f32]| {
        let largest = b.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        a.iter().zip(b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs())) / largest
    };
    for (i, part) in ["text", "unet"].into_iter().enumerate() {
        let [file, order, effect] = [&baked, &again, &base].map(|other| apart(&other[i], &live[i]));
        println!("{part}: {file:.1e}; another order {order:.1e}; the adapters move {effect:.1e}");
        assert!(file < 1e-5, "{part}: {file}");
        assert!(effect > 0.01, "{part}: {effect}");
    }
}
