//! From adapter files to terms on a model's layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use crate::engine::adapter::{self, Adapter, Context};
use crate::engine::device::read;
use crate::engine::field::Settings;
use crate::engine::io::detect::Family;
use crate::engine::io::lora_file::{LoraFile, relative};
use crate::engine::io::{metadata, names};
use crate::engine::model::mount::Live;
use crate::engine::model::{Branch, Change, Layer, LayerId, Mounts, StableDiffusion, Weight};
use crate::engine::words::counted;
use crate::engine::{Error, Result};

/// The user's multipliers of one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Strength {
    /// On the denoiser.
    pub unet: f32,
    /// On the text encoder.
    pub text: f32,
    /// On single blocks, by the names [`names::block`] gives; multiplies the above.
    pub blocks: BTreeMap<String, f32>,
}

impl Default for Strength {
    fn default() -> Self {
        Self { unet: 1.0, text: 1.0, blocks: BTreeMap::new() }
    }
}

impl Strength {
    /// The same strength everywhere.
    pub fn uniform(strength: f32) -> Self {
        Self { unet: strength, text: strength, blocks: BTreeMap::new() }
    }

    /// The multiplier of one layer, by kohya's module name.
    pub fn of(&self, module: &str) -> f32 {
        let part = if names::is_text(module) { self.text } else { self.unet };
        part * self.blocks.get(&names::block(module)).copied().unwrap_or(1.0)
    }
}

/// What adapters are mounted on.
pub struct Base<'a> {
    /// As messages call it.
    pub name: &'a str,
    pub layers: &'a [Layer],
    pub weights: &'a [Weight],
    pub device: &'a Device,
    /// `None` for what paints no pictures.
    pub family: Option<Family>,
}

impl<'a> Base<'a> {
    fn of(model: &'a StableDiffusion) -> Self {
        let StableDiffusion { name, layers, weights, device, .. } = model;
        Self { name, layers, weights, device, family: Some(model.family()) }
    }
}

/// Adds every layer of `file` to `mounts`. A file with layers that the model lacks is refused.
pub fn mount(mounts: &mut Mounts, model: &StableDiffusion, file: &LoraFile, strength: &Strength) -> Result<()> {
    mount_by(&model.modules(), mounts, &Base::of(model), file, strength)
}

/// The file with the changes that depend on a model's own weights worked out for an open one.
pub fn resolved(model: &StableDiffusion, file: &LoraFile) -> Result<LoraFile> {
    on(&model.modules(), &Base::of(model), file)
}

/// The same on layers of any model.
pub fn mount_on(mounts: &mut Mounts, base: &Base<'_>, file: &LoraFile, strength: &Strength) -> Result<()> {
    let table = base.layers.iter().map(Layer::module).zip((0..).map(LayerId)).collect();
    mount_by(&table, mounts, base, file, strength)
}

fn mount_by(
    table: &BTreeMap<String, LayerId>,
    mounts: &mut Mounts,
    base: &Base<'_>,
    file: &LoraFile,
    strength: &Strength,
) -> Result<()> {
    let refused = |why: String| {
        let family = file.family.filter(|family| Some(*family) != base.family);
        let family = family.map_or(String::new(), |family| format!(" (it is for {})", family.title()));
        Error::new(
            format!("The adapter was made for another model than {}{family}: {why}", base.name),
            "Choose the model it was trained on, or one of the same family",
        )
        .at(&file.path)
    };
    let find = |module: &String, found: Option<(usize, usize)>| -> Result<LayerId> {
        let id = *table.get(module).ok_or_else(|| refused(format!("it has no layer {module}")))?;
        let layer = &base.layers[id.0];
        match found {
            Some((out, input)) if (out, input) != (layer.out, layer.input()) => Err(refused(format!(
                "layer {module} has {} inputs and {} outputs here, {input} and {out} in the adapter",
                layer.input(),
                layer.out,
            ))),
            _ => Ok(id),
        }
    };
    let matrix = |values: &[f32], shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), base.device)
    };
    if !file.norms.is_empty() {
        return Err(norms(file));
    }
    let resolved = if file.relatives.is_empty() { None } else { Some(on(table, base, file)?) };
    let file = resolved.as_ref().unwrap_or(file);
    let adapter = mounts.begin();
    for (module, layer) in &file.layers {
        let id = find(module, Some((layer.out(), layer.input())))?;
        let down = matrix(&layer.down, [layer.rank, layer.input()]);
        let up = matrix(&layer.up, [layer.out(), layer.rank]);
        mounts.add(id, Change::LowRank(Branch { down, up, scale: layer.scale() }));
    }
    for module in file.modules() {
        let Some(whole) = file.whole(module) else { continue };
        let (out, input) = (whole.shape[0], whole.shape[1..].iter().product());
        let id = find(module, Some((out, input)))?;
        mounts.add(id, Change::Weight(matrix(&whole.weight, [out, input])));
    }
    for (module, difference) in &file.differences {
        let Some(bias) = &difference.bias else { continue };
        let id = find(module, None)?;
        let out = base.layers[id.0].out;
        if bias.len() != out || base.weights[id.0].bias.is_none() {
            return Err(refused(format!("layer {module} has no bias of {} numbers", bias.len())));
        }
        mounts.add(id, Change::Bias(matrix(bias, [1, out]).reshape([out])));
    }
    if !file.own.is_empty() {
        let method = rebuilt(file)?;
        for (module, parts) in &file.own {
            let id = find(module, None)?;
            let names = method
                .own(&base.layers[id.0], &|name| parts.get(name).map(|part| part.shape))
                .ok_or_else(|| refused(format!("the tensors of layer {module} do not fit it")))?;
            let tensors =
                names.iter().filter_map(|&name| parts.get(name)).map(|part| matrix(&part.values, part.shape)).collect();
            mounts.add_live(id, live(Arc::clone(&method), tensors));
        }
    }
    turn(table, mounts, adapter, file, strength);
    Ok(())
}

/// Moves the faders of an adapter that is mounted already, as this number among the mounts.
pub fn turn(
    table: &BTreeMap<String, LayerId>,
    mounts: &mut Mounts,
    adapter: usize,
    file: &LoraFile,
    strength: &Strength,
) {
    let of = |module: &String| Some((table.get(module)?.0, strength.of(module)));
    let strengths: BTreeMap<usize, f32> = file.modules().into_iter().filter_map(of).collect();
    mounts.turn(adapter, |layer| strengths.get(&layer.0).copied().unwrap_or(1.0));
}

/// The same for the layers of any model.
fn on(table: &BTreeMap<String, LayerId>, base: &Base<'_>, file: &LoraFile) -> Result<LoraFile> {
    file.on(|module| {
        let Some(&id) = table.get(module) else { return Ok(None) };
        let (layer, weight) = (&base.layers[id.0], &base.weights[id.0]);
        let kernel = layer.kernel.map_or_else(Vec::new, |kernel| kernel.to_vec());
        Ok(Some(relative::Base {
            weight: read(weight.wide_oi())?,
            shape: [&[layer.out, layer.channels], &kernel[..]].concat(),
            bias: weight.bias.clone().map(read).transpose()?,
        }))
    })
}

/// Layers' weights have places in a forward pass where something can be added; those of norms have none.
pub fn norms(file: &LoraFile) -> Error {
    Error::new(
        format!(
            "The adapter changes {}, which cannot be done beside a model",
            counted(file.norms.len(), "normalisation")
        ),
        "Write it into a copy of the model instead: triptych merge F --into MODEL --out NEW",
    )
    .at(&file.path)
}

/// A method's tensors at work on one layer.
pub fn live(adapter: Arc<dyn Adapter>, t: Vec<Tensor<2>>) -> Live {
    Arc::new(move |site| adapter.change(&t, site))
}

/// The method that wrote `file`, with the settings it was trained with.
fn rebuilt(file: &LoraFile) -> Result<Arc<dyn Adapter>> {
    let damaged = || Error::new("The file does not say how its adapter works", "Train it again").at(&file.path);
    let of = |key: &str| file.metadata.get(key).ok_or_else(damaged);
    // What a wrong word in the file says in its own words sounds like a slip of the artist's.
    let why = |e: Error| Error { what: format!("{}: {}", damaged().what, e.what), ..damaged() };
    let row = adapter::method(of(metadata::METHOD)?).map_err(why)?;
    let recipe: serde_json::Value = serde_json::from_str(of(metadata::RECIPE)?).ok().ok_or_else(damaged)?;
    let changes = recipe["method"].as_object().ok_or_else(damaged)?;
    let changes = changes.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
    let settings = Settings::new(row.fields, changes).map_err(why)?;
    Ok((row.build)(&settings, &Context { seed: 0, slot: 0, block: 1 }).map_err(why)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::cpu;
    use crate::engine::io::lora_file::{Difference, LoraLayer};
    use crate::engine::model::Part;
    use crate::engine::random::Philox;

    /// Pairs on two layers of the denoiser, a whole difference with a bias on a third.
    fn file(model: &StableDiffusion, seed: u64) -> LoraFile {
        let random = Philox::new(seed);
        let numbers = |draw: u32, n: usize| random.normal(draw, n).into_iter().map(|x| x * 0.05).collect::<Vec<_>>();
        let mut file = LoraFile::default();
        let unet = || model.layers.iter().filter(|layer| layer.part == Part::Unet);
        let linear = unet().find(|layer| layer.kernel.is_none()).unwrap();
        for layer in [linear, unet().find(|layer| layer.kernel == Some([3, 3])).unwrap()] {
            let (down, up) = (numbers(0, 2 * layer.input()), numbers(1, 2 * layer.out));
            let (down_shape, up_shape) = (layer.down_shape(2), layer.up_shape(2));
            let pair = LoraLayer { down, up, rank: 2, alpha: 1.0, down_shape, up_shape };
            file.layers.insert(layer.module(), pair);
        }
        let (id, whole) = model.layer_ids().filter(|(_, layer)| layer.part == Part::Unet).last().unwrap();
        let bias = model.weights[id.0].bias.is_some().then(|| numbers(2, whole.out));
        let weight = numbers(3, whole.out * whole.input());
        let difference = Difference { weight, shape: vec![whole.out, whole.input()], bias };
        file.differences.insert(whole.module(), difference);
        file
    }

    #[test]
    fn a_turned_fader_is_a_mount_at_that_strength() {
        let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &cpu()).unwrap();
        let files = [1, 2].map(|seed| file(&model, seed));
        let at = |strengths: [f32; 2]| {
            let mut mounts = Mounts::none();
            for (file, strength) in files.iter().zip(strengths) {
                mount(&mut mounts, &model, file, &Strength::uniform(strength)).unwrap();
            }
            mounts
        };
        let context = model.condition(&[model.tokenizer.encode("a robot", &[]).unwrap()], &[], &Mounts::none());
        let said = |mounts: &Mounts| {
            let noise = TensorData::new(Philox::new(3).normal(0, 4 * 16 * 16), [1, 4, 16, 16]);
            let x = Tensor::<4>::from_data(noise, &cpu());
            read(model.unet.forward(x, &[500.0], &context.clone().into(), mounts)).unwrap()
        };
        let mut turned = at([1.0, 0.0]);
        for (number, (file, strength)) in (1..).zip(files.iter().zip([0.25, -2.0])) {
            turn(&model.modules(), &mut turned, number, file, &Strength::uniform(strength));
        }
        let mounted = at([0.25, -2.0]);
        assert_eq!(said(&turned), said(&mounted));
        assert_eq!(said(&turned.clone().rest(&model.weights)), said(&mounted.rest(&model.weights)));
        assert_ne!(said(&turned), said(&at([1.0, 0.0])));
    }
}
