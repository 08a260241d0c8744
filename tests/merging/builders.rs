//! Adapters to merge, and what their merges should be: dense and in f64.

use std::collections::BTreeMap;
use std::path::PathBuf;

use triptych::engine::adapter::basis::Basis;
use triptych::engine::adapter::mount::Strength;
use triptych::engine::field::{Kind, Settings};
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::io::metadata;
use triptych::engine::io::safetensors::Dtype;
use triptych::engine::merge::note::{About, Note};
use triptych::engine::merge::{self, Evidence, Inputs, METHODS, Method, Question, Source};
use triptych::engine::random::Philox;

pub type Changes = Vec<(&'static str, &'static str)>;

/// A layer of the denoiser, a 1×1 and a 3×3 convolution, and a layer of the text encoder: module, outputs, inputs.
pub const LAYERS: [(&str, usize, &[usize]); 4] = [
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 12, &[40]),
    ("lora_unet_mid_block_attentions_0_proj_in", 11, &[40, 1, 1]),
    ("lora_unet_up_blocks_0_resnets_0_conv1", 9, &[5, 3, 3]),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1", 14, &[41]),
];
/// Ten slots fit into each of them.
pub const BLOCK: usize = 4;
pub const SLOTS: usize = 10;

/// Random numbers, each draw a new one.
pub struct Dice(Philox, u32);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Philox::new(seed), 0)
    }

    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        self.1 += 1;
        self.0.normal(self.1, n)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        self.0.below(self.1, 0, n)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

pub fn layer(out: usize, inputs: &[usize], rank: usize, alpha: f32, dice: &mut Dice) -> LoraLayer {
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

pub fn named(name: &str, layers: impl IntoIterator<Item = (&'static str, LoraLayer)>) -> LoraFile {
    LoraFile {
        path: PathBuf::from(name),
        layers: layers.into_iter().map(|(module, layer)| (module.to_owned(), layer)).collect(),
        metadata: BTreeMap::from([(metadata::METHOD.to_owned(), "lora".to_owned())]),
        dtype: Some(Dtype::F32),
        ..LoraFile::default()
    }
}

/// A plain LoRA on every layer whose scale is not 1.
pub fn plain(seed: u64) -> LoraFile {
    let mut dice = Dice::new(seed);
    named(&format!("plain{seed}"), LAYERS.map(|(module, out, inputs)| (module, layer(out, inputs, 3, 5.0, &mut dice))))
}

/// An adapter trained in a slot of a shared basis, as its file would be.
pub fn in_slot(basis: &str, slot: usize, rank: usize, seed: u64) -> LoraFile {
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

pub const SHARED: &str = "slots v1 seed 0 block 4";

pub fn slotted(slot: usize) -> LoraFile {
    in_slot(SHARED, slot, BLOCK, slot as u64)
}

pub fn at(file: &LoraFile, strength: f32) -> Source {
    Source { file: file.clone(), strength: Strength::uniform(strength) }
}

/// With stand-in pictures, which say that a weight matters as much as the adapter changes it.
pub fn run(sources: &[Source], method: &Method, changes: &Changes) -> triptych::engine::Result<(LoraFile, Vec<Note>)> {
    let importance = |question: Question, _: &mut triptych::engine::event::Watch<'_>| {
        let of = |delta: Vec<f64>| delta.into_iter().map(|x| (x * x) as f32 + 0.1).collect();
        Ok(dense(&sources[question.source].file).into_iter().map(|(module, delta)| (module, of(delta))).collect())
    };
    let evidence = Evidence { record: serde_json::json!("stand-ins"), importance: &importance };
    let inputs = Inputs { sources, evidence: Some(&evidence) };
    merge::merge(&inputs, method, &Settings::new(method.fields, changes.iter().copied()).unwrap(), &mut |_| Ok(()))
}

pub fn try_merge(sources: &[Source], method: &Method, changes: &Changes) -> triptych::engine::Result<LoraFile> {
    run(sources, method, changes).map(|(file, _)| file)
}

pub fn merged(sources: &[Source], (method, changes): &Variant) -> LoraFile {
    try_merge(sources, method, changes).unwrap_or_else(|e| panic!("{} {changes:?}: {e}", method.name))
}

pub type Variant = (&'static Method, Changes);

/// A method with some settings.
pub fn with(name: &str, changes: &[(&'static str, &'static str)]) -> Variant {
    (merge::method(name).unwrap(), changes.to_vec())
}

pub fn sum() -> Variant {
    with("sum", &[])
}

/// Each choice of each field. Results may be of any rank: what is left out has tests of its own.
pub fn variants_of(method: &'static Method) -> Vec<Variant> {
    let has = |name: &str| method.fields.iter().any(|field| field.name == name);
    let whole = [("rank", "4096"), ("keep", "1")].into_iter().filter(|(name, _)| has(name));
    let whole: Changes = whole.collect();
    let choices = method.fields.iter().flat_map(|field| {
        let words = if let Kind::Choice(words) = field.kind { words } else { &[] };
        words.iter().map(|word| (field.name, *word))
    });
    let with_choice = choices.map(|choice| [&whole[..], &[choice]].concat());
    std::iter::once(whole.clone()).chain(with_choice).map(|changes| (method, changes)).collect()
}

/// Every method; the first of each has its defaults.
pub fn variants() -> Vec<Variant> {
    METHODS.iter().flat_map(variants_of).collect()
}

/// What a merge says of something.
pub fn told(notes: &[Note], name: &str, about: &About) -> f64 {
    notes.iter().find(|note| note.name == name && note.about == *about).expect("the method tells it").share
}

pub fn stored(file: &LoraFile, dtype: Dtype) -> LoraFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(&file.path).with_extension("safetensors");
    LoraFile { dtype: Some(dtype), ..file.clone() }.save(&path).unwrap();
    LoraFile::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// `ΔW [out, in]` of each layer, row-major.
pub type Dense = BTreeMap<String, Vec<f64>>;

pub fn dense_layer(layer: &LoraLayer) -> Vec<f64> {
    let (input, scale) = (layer.input(), f64::from(layer.alpha) / layer.rank as f64);
    let mut delta = vec![0.0; layer.out() * input];
    for (row, up) in delta.chunks_exact_mut(input).zip(layer.up.chunks_exact(layer.rank)) {
        for (down, u) in layer.down.chunks_exact(input).zip(up) {
            row.iter_mut().zip(down).for_each(|(d, &x)| *d += scale * f64::from(*u) * f64::from(x));
        }
    }
    delta
}

pub fn dense(file: &LoraFile) -> Dense {
    file.layers.iter().map(|(module, layer)| (module.clone(), dense_layer(layer))).collect()
}

/// `Σ wₜ·ΔWₜ`, with the strength of each adapter on each layer given by `w`.
pub fn weighted<'a>(terms: impl IntoIterator<Item = (&'a LoraFile, f64)>) -> Dense {
    let mut sum = Dense::new();
    for (file, w) in terms {
        for (module, delta) in dense(file) {
            let row = sum.entry(module).or_insert_with(|| vec![0.0; delta.len()]);
            row.iter_mut().zip(delta).for_each(|(s, d)| *s += w * d);
        }
    }
    sum
}

pub fn scaled(delta: &Dense, by: f64) -> Dense {
    delta.iter().map(|(module, d)| (module.clone(), d.iter().map(|x| by * x).collect())).collect()
}

pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The worst layer's `‖found − expected‖ / ‖expected‖`.
pub fn apart(found: &Dense, expected: &Dense) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "other layers");
    let layer = |(found, expected): (&Vec<f64>, &Vec<f64>)| {
        let difference: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        assert!(difference.iter().all(|x| x.is_finite()), "not finite");
        norm(&difference) / norm(expected)
    };
    found.values().zip(expected.values()).map(layer).fold(0.0, f64::max)
}

pub fn assert_near(context: &str, found: &Dense, expected: &Dense, tolerance: f64) {
    let error = apart(found, expected);
    assert!(error <= tolerance, "{context}: differs by {error:.1e} of its norm");
}

/// The same deltas as other factors: up·G and G⁻¹·down, where G mixes and stretches the rank's directions.
pub fn regauged(file: &LoraFile) -> LoraFile {
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
pub fn shear(layer: &mut LoraLayer, i: usize, j: usize, t: f32) {
    layer.up.chunks_exact_mut(layer.rank).for_each(|row| row[i] += t * row[j]);
    let input = layer.input();
    for k in 0..input {
        layer.down[j * input + k] -= t * layer.down[i * input + k];
    }
}

pub fn stretch(layer: &mut LoraLayer, i: usize, by: f32) {
    layer.up.chunks_exact_mut(layer.rank).for_each(|row| row[i] *= by);
    let input = layer.input();
    layer.down[i * input..(i + 1) * input].iter_mut().for_each(|x| *x /= by);
}

/// By 0.9 in the plane of the first two outputs and of the first two inputs.
pub fn rotate(layer: &mut LoraLayer) {
    let (sin, cos) = 0.9_f32.sin_cos();
    let (rank, input) = (layer.rank, layer.input());
    for k in 0..rank {
        let (x, y) = (layer.up[k], layer.up[rank + k]);
        (layer.up[k], layer.up[rank + k]) = (cos * x - sin * y, sin * x + cos * y);
        let (x, y) = (layer.down[k * input], layer.down[k * input + 1]);
        (layer.down[k * input], layer.down[k * input + 1]) = (cos * x - sin * y, sin * x + cos * y);
    }
}

pub fn with_token(mut file: LoraFile, word: &str, vectors: &[[f32; 2]]) -> LoraFile {
    file.tokens.insert(word.into(), vectors.iter().map(|v| v.to_vec()).collect());
    file.metadata.insert(metadata::TOKEN.into(), word.into());
    file
}
