//! What adapters add to the tensors of a model, worked out for one tensor at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::{Device, FloatDType, TensorData};

use crate::engine::device::read;
use crate::engine::io::ldm::Network;
use crate::engine::io::lora_file::kronecker::Kronecker;
use crate::engine::io::lora_file::relative::Relative;
use crate::engine::io::lora_file::{Difference, LoraFile, LoraLayer};
use crate::engine::io::open_clip;
use crate::engine::io::safetensors::{Checkpoint, Tensor};
use crate::engine::merge::Source;
use crate::engine::model::stored::{Place, Stored};
use crate::engine::ops;
use crate::engine::{Error, Result};

/// `strength · Δ` of the sources, by network and our name of the tensor.
pub(super) struct Changes<'a> {
    model: &'a Stored,
    /// Where low-rank pairs are added.
    device: &'a Device,
    of: BTreeMap<(Network, String), Vec<Term<'a>>>,
}

type Matrix = burn::tensor::Tensor<2>;

/// A layer of a file, by kohya's name, at a strength.
type Term<'a> = (&'a LoraFile, String, f32);

impl<'a> Changes<'a> {
    /// What is for another model is refused.
    pub fn new(model: &'a Stored, sources: &'a [Source], name: &str, device: &'a Device) -> Result<Self> {
        let mut of: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for Source { file, strength } in sources {
            refuse_own(file)?;
            for module in file.modules().into_iter().chain(file.norms.keys()) {
                let refused = || {
                    let family = file.family.filter(|family| *family != model.family());
                    let family = family.map_or(String::new(), |family| format!(" (it is for {})", family.title()));
                    Error::new(
                        format!(
                            "The adapter was made for another model than {name}{family}: layer {module} does not fit"
                        ),
                        "Choose the model it was trained on",
                    )
                    .at(&file.path)
                };
                let shape = model.shape(module).ok_or_else(refused)?;
                let has_bias = model.has_bias(module);
                if !fits(file, module, shape) || adds_bias(file, module) && !has_bias {
                    return Err(refused());
                }
                let Place { network, path, .. } = model.place(module).ok_or_else(refused)?;
                let change = (file, module.clone(), strength.of(module));
                // (IA)³ scales a bias where there is one.
                let moves_bias = file.relatives.get(module).is_some_and(Relative::moves_bias) && has_bias;
                let endings =
                    [(changes_weight(file, module), "weight"), (adds_bias(file, module) || moves_bias, "bias")];
                for (_, ending) in endings.into_iter().filter(|(changes, _)| *changes) {
                    of.entry((*network, format!("{path}.{ending}"))).or_default().push(change.clone());
                }
            }
        }
        Ok(Self { model, device, of })
    }

    /// A stored tensor in its own number format: as it is, or with what is added to the tensors of ours that it holds.
    pub fn bytes<'f>(
        &self,
        file: &'f Checkpoint,
        stored: &str,
        ours: Option<(Network, Vec<String>)>,
    ) -> Result<Cow<'f, [u8]>> {
        let (network, names) = ours.unwrap_or((Network::Vae, Vec::new()));
        let terms: Vec<_> = names.iter().map(|name| self.of.get(&(network, name.clone()))).collect();
        if terms.iter().all(Option::is_none) {
            return Ok(Cow::Borrowed(file.stored(stored)?));
        }
        let mut values = file.f32(stored)?;
        let turned = open_clip::is_transposed(stored).then(|| file.shape(stored)).transpose()?;
        // Queries, keys and values lie in one tensor.
        let each = values.len() / names.len();
        for ((name, terms), part) in names.iter().zip(terms).zip(values.chunks_exact_mut(each.max(1))) {
            let terms = || terms.into_iter().flatten();
            if !name.ends_with(".bias") {
                let pair = |(file, module, by): &Term<'a>| Some((file.layers.get(module)?, *by));
                self.fuse(part, &terms().filter_map(pair).collect::<Vec<_>>(), turned.is_some())?;
            }
            for (adapter, module, by) in terms() {
                for delta in self.deltas(adapter, module, name.ends_with(".bias"))? {
                    if delta.len() != part.len() {
                        let what = format!("Layer {module} has {} numbers for a tensor of {}", delta.len(), part.len());
                        return Err(Error::new(what, "Choose the model it was trained on").at(&adapter.path));
                    }
                    match turned {
                        Some(&[rows, columns]) => {
                            for (i, value) in part.iter_mut().enumerate() {
                                *value += by * delta[i % columns * rows + i / columns];
                            }
                        }
                        _ => part.iter_mut().zip(delta).for_each(|(value, delta)| *value += by * delta),
                    }
                }
            }
        }
        let entry = &file.entries()[stored];
        let tensor = Tensor::new(entry.dtype, &entry.shape, &values);
        if !tensor.is_finite() || tensor.dtype != entry.dtype {
            return Err(Error::new(
                format!("With the adapters added, {stored} holds numbers that {} cannot", entry.dtype),
                "Lower the strengths of the adapters",
            ));
        }
        Ok(Cow::Owned(tensor.bytes))
    }

    /// Adds all low-rank pairs to a weight in one pass: `W + Σ strength · scale · up · down`, or where it lies `turned` the
    /// same the other way round.
    fn fuse(&self, weight: &mut [f32], pairs: &[(&LoraLayer, f32)], turned: bool) -> Result<()> {
        let Some((first, _)) = pairs.first() else { return Ok(()) };
        let (out, input) = (first.out(), first.input());
        let matrix =
            |values: &[f32], shape: [usize; 2]| Matrix::from_data(TensorData::new(values.to_vec(), shape), self.device);
        let up = pairs.iter().map(|(layer, _)| matrix(&layer.up, [out, layer.rank])).collect();
        let down = pairs.iter().map(|(layer, _)| matrix(&layer.down, [layer.rank, input])).collect();
        let [up, down] = [Matrix::cat(up, 1), Matrix::cat(down, 0)];
        let scales: Vec<f32> =
            pairs.iter().flat_map(|(layer, by)| std::iter::repeat_n(by * layer.scale(), layer.rank)).collect();
        let scales = burn::tensor::Tensor::from_floats(scales.as_slice(), self.device);
        let (shape, left, right) =
            if turned { ([input, out], down.transpose(), up.transpose()) } else { ([out, input], up, down) };
        let fused = ops::fuse(matrix(weight, shape), left, right, scales, FloatDType::F32);
        weight.copy_from_slice(&read(fused)?);
        Ok(())
    }

    /// What a file adds to a layer's weight or bias at strength 1, beside its low-rank pair.
    fn deltas(&self, file: &LoraFile, module: &str, bias: bool) -> Result<Vec<Vec<f32>>> {
        let of = |difference: Difference| if bias { difference.bias.unwrap_or_default() } else { difference.weight };
        let mut deltas = Vec::new();
        if let Some(relative) = file.relatives.get(module)
            && let Some(base) = self.model.base(module)?
        {
            let changed = relative.difference(&base).map_err(|why| {
                Error::new(format!("The layer {module} does not fit: {why}"), "Choose the model it was trained on")
                    .at(&file.path)
            })?;
            deltas.push(of(changed));
        }
        if let Some(factors) = file.kroneckers.get(module).filter(|_| !bias) {
            deltas.push(factors.product().weight);
        }
        for difference in beside(file, module) {
            deltas.push(of(difference.clone()));
        }
        deltas.retain(|delta| !delta.is_empty());
        Ok(deltas)
    }
}

/// What a file keeps beside a layer's factors.
fn beside<'a>(file: &'a LoraFile, module: &str) -> impl Iterator<Item = &'a Difference> {
    [file.differences.get(module), file.norms.get(module)].into_iter().flatten()
}

fn changes_weight(file: &LoraFile, module: &str) -> bool {
    let whole = beside(file, module).any(|difference| !difference.weight.is_empty());
    let factors = file.layers.contains_key(module) || file.kroneckers.contains_key(module);
    whole || factors || file.relatives.contains_key(module)
}

fn adds_bias(file: &LoraFile, module: &str) -> bool {
    beside(file, module).any(|difference| difference.bias.is_some())
}

/// Whether what is known of a layer's change fits a weight of this shape.
fn fits(file: &LoraFile, module: &str, shape: &[usize]) -> bool {
    let (out, numbers) = (shape.first().copied().unwrap_or(0), shape.iter().product::<usize>());
    let pair = file.layers.get(module).is_none_or(|layer| (layer.out(), layer.out() * layer.input()) == (out, numbers));
    let whole = |difference: &Difference| {
        let weight = difference.weight.is_empty() || difference.weight.len() == numbers;
        weight && difference.bias.as_ref().is_none_or(|bias| bias.len() == out)
    };
    let product =
        |factors: &Kronecker| factors.shape()[0] == out && factors.shape().iter().product::<usize>() == numbers;
    pair && file.kroneckers.get(module).is_none_or(product) && beside(file, module).all(whole)
}

fn refuse_own(file: &LoraFile) -> Result<()> {
    if file.own.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        "What this adapter does depends on the picture, so no weights can hold it",
        "Mute it, or mount it when sampling: sample --adapter F",
    )
    .at(&file.path))
}
