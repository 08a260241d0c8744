//! A mix as a whole model: adapters added into the weights of a copy, as a folder in diffusers layout or as one file.

mod single_file;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::engine::event::{Event, Watch};
use crate::engine::io::ldm::Network;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::safetensors::{self, Checkpoint, Tensor};
use crate::engine::io::token_vectors::{self, Meaning};
use crate::engine::io::{Folder, atomic, names};
use crate::engine::merge::{Source, recipe};
use crate::engine::model::{Part, StableDiffusion, sd};
use crate::engine::{Error, Result};

/// The networks of a model, the folder of each and what its weights are called there.
const NETWORKS: [(Network, &str, [&str; 2]); 4] = [
    (Network::Text, "text_encoder", sd::TEXT_WEIGHTS),
    (Network::Text2, "text_encoder_2", sd::TEXT_WEIGHTS),
    (Network::Unet, "unet", sd::WEIGHTS),
    (Network::Vae, "vae", sd::WEIGHTS),
];
/// Endings of what describes a model; weights are written anew or left behind.
const DESCRIPTIONS: [&str; 4] = ["json", "txt", "md", "model"];
/// Where the words of the adapters go; other tools load them as textual inversions.
const WORDS: &str = "embeddings";
/// Letters of a word's file: four bytes each fit into the 255 that disks allow.
const LONGEST_NAME: usize = 60;

/// Writes the model with every source at its strength in the weights, in the number format they had: as one file where
/// `out` ends in `.safetensors`, else as a folder. The adapters' words lie in `embeddings/` in the folder; what describes a
/// file, and its words, lie in a folder of the file's name. An error of `watch` stops before anything is there.
pub fn bake(
    from: &Folder,
    model: &StableDiffusion,
    sources: &[Source],
    out: &Path,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let is_file = out.extension().is_some_and(|ending| ending == "safetensors");
    let folder = if is_file { out.with_extension("") } else { out.to_path_buf() };
    for place in [out, &folder] {
        if place.exists() {
            let advice = "Choose a name that is not taken yet: nothing is overwritten";
            return Err(Error::new("There is something of this name already", advice).at(place));
        }
    }
    if !is_file && from.path().is_file() {
        return Err(Error::new(
            "The model is a single file, and becomes one again",
            "Name a file that ends in .safetensors",
        )
        .at(out));
    }
    let sums = sums(model, sources, watch)?;
    let words = recipe::words(sources.iter().map(|source| &source.file))?;
    for Meaning { word, .. } in words.iter().filter(|meaning| meaning.layers.is_some()) {
        let text = format!("{word} has vectors of its own for each layer, and beside a model only their mean is kept");
        watch(Event::warning(format!("{text}: mount the adapter itself for all of them")))?;
    }
    let second = model.second.as_ref().map_or(0, |second| second.encoder.config.hidden_size);
    let file = is_file.then(|| single_file::tensors(from, model, &sums, watch)).transpose()?;
    atomic::write_folder(&folder, |new| {
        describe(&single_file::beside(from), new)?;
        if !is_file {
            weights(from, model, &sums, new, watch)?;
        }
        for (Meaning { word, vectors, .. }, name) in words.iter().zip(file_names(words.iter().map(|m| m.word))) {
            let about = BTreeMap::from([("token".to_owned(), (*word).clone())]);
            let path = new.join(WORDS).join(format!("{name}.safetensors"));
            safetensors::save(&path, &token_vectors::embedding(vectors, second), &about)?;
        }
        Ok(())
    })?;
    let Some((tensors, metadata)) = file else { return Ok(()) };
    watch(Event::Stage { name: "writing the model".into(), total: 1 })
        .and_then(|()| safetensors::save(out, &tensors, &metadata))
        // A folder that describes a file which is not there would stand in the way of the next try.
        .inspect_err(|_| drop(fs::remove_dir_all(&folder)))
}

/// The networks that a model has.
fn networks(model: &StableDiffusion) -> Vec<(Network, &'static str, [&'static str; 2])> {
    let has = |network: Network| network != Network::Text2 || model.second.is_some();
    NETWORKS.into_iter().filter(|(network, ..)| has(*network)).collect()
}

/// The networks of a folder.
fn weights(from: &Folder, model: &StableDiffusion, sums: &Sums, to: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let networks = networks(model);
    watch(Event::Stage { name: "writing the model".into(), total: networks.len() })?;
    let total = networks.len();
    for (i, (network, folder, files)) in networks.into_iter().enumerate() {
        let file = from.checkpoint(folder, files)?;
        let mut tensors = BTreeMap::new();
        for stored in file.entries().keys() {
            let sum = ours(network, stored).and_then(|ours| sums.get(&(network, ours)));
            tensors.insert(stored.clone(), with_sum(&file, stored, sum)?);
        }
        safetensors::save(&to.join(folder).join(files[0]), &tensors, file.metadata())?;
        watch(Event::Progress { done: i + 1, total })?;
    }
    Ok(())
}

/// Our name of what a folder's file holds; `None` for what is no weight.
fn ours(network: Network, stored: &str) -> Option<String> {
    match network {
        Network::Text | Network::Text2 => names::text_encoder(stored),
        Network::Vae => names::vae(stored),
        Network::Unet => Some(stored.to_owned()),
    }
}

/// What the file of each word is called: its letters, since a word may hold slashes and dots that lead out of the folder;
/// numbered where two words have the same ones.
fn file_names<'a>(words: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    words
        .map(|word| {
            let letters = word.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c));
            let letters: String = letters.take(LONGEST_NAME).collect();
            let name = if letters.is_empty() { "word".to_owned() } else { letters };
            let more = (2..).map(|n| format!("{name}-{n}"));
            // Some disks take upper and lower case for the same.
            std::iter::once(name.clone()).chain(more).find(|name| taken.insert(name.to_lowercase())).unwrap_or(name)
        })
        .collect()
}

/// `Σ strength · ΔW` of each layer, and of its bias, under our names.
type Sums = BTreeMap<(Network, String), Vec<f32>>;

fn sums(model: &StableDiffusion, sources: &[Source], watch: &mut Watch<'_>) -> Result<Sums> {
    let table = model.modules();
    let mut sums = Sums::new();
    let (mut done, total) = (0, sources.iter().map(|source| source.file.modules().len()).sum());
    watch(Event::Stage { name: "adding the adapters".into(), total })?;
    for Source { file, strength } in sources {
        refuse_own(file)?;
        for module in file.modules() {
            let layer = table
                .get(module)
                .map(|&id| model.layer(id))
                .filter(|layer| fits(file, module, layer.out, layer.input()));
            let layer = layer.ok_or_else(|| {
                Error::new(
                    format!("The adapter was made for another model than {}: layer {module} does not fit", model.name),
                    "Choose the model it was trained on",
                )
                .at(&file.path)
            })?;
            let network = match layer.part {
                Part::Text => Network::Text,
                Part::Text2 => Network::Text2,
                Part::Unet | Part::Vae | Part::Vision => Network::Unet,
            };
            let by = strength.of(module);
            let mut add = |ending: &str, values: &[f32]| {
                let sum = sums
                    .entry((network, format!("{}.{ending}", layer.path)))
                    .or_insert_with(|| vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += by * value);
            };
            if let Some(pair) = file.pair(module) {
                add("weight", &pair.product().weight);
            }
            if let Some(bias) = file.differences.get(module).and_then(|difference| difference.bias.as_ref()) {
                add("bias", bias);
            }
            done += 1;
            watch(Event::Progress { done, total })?;
        }
    }
    Ok(sums)
}

fn fits(file: &LoraFile, module: &str, out: usize, input: usize) -> bool {
    let weight = file.pair(module).is_none_or(|pair| (pair.out(), pair.input()) == (out, input));
    let bias = file.differences.get(module).and_then(|difference| difference.bias.as_ref());
    weight && bias.is_none_or(|bias| bias.len() == out)
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

/// A stored tensor with `sum` added, in its own number format.
fn with_sum(file: &Checkpoint, stored: &str, sum: Option<&Vec<f32>>) -> Result<Tensor> {
    let Some(sum) = sum else { return file.raw(stored) };
    let (entry, mut values) = (&file.entries()[stored], file.f32(stored)?);
    values.iter_mut().zip(sum).for_each(|(value, sum)| *value += sum);
    let tensor = Tensor::new(entry.dtype, &entry.shape, &values);
    if !tensor.is_finite() {
        return Err(Error::new(
            format!("With the adapters added, {stored} holds numbers that {} cannot", entry.dtype),
            "Lower the strengths of the adapters",
        ));
    }
    Ok(tensor)
}

/// Copies what describes the model.
fn describe(from: &Folder, to: &Path) -> Result<()> {
    let is_description = |path: &Path| path.extension().is_some_and(|e| DESCRIPTIONS.iter().any(|d| e == *d));
    let write = |name: &Path, bytes: &[u8]| {
        let path = to.join(name);
        let folder = path.parent().unwrap_or(to);
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes)).map_err(|e| Error::io("write", &path, &e))
    };
    for name in described(from).into_iter().filter(|name| is_description(name)) {
        write(&name, &from.bytes(&name.to_string_lossy())?)?;
    }
    Ok(())
}

/// Every file of a folder, relative to it.
fn described(folder: &Folder) -> Vec<PathBuf> {
    fn inside(dir: &include_dir::Dir<'_>) -> Vec<PathBuf> {
        dir.files().map(|file| file.path().to_path_buf()).chain(dir.dirs().flat_map(inside)).collect()
    }
    match folder {
        Folder::Embedded { dir, .. } => inside(dir),
        Folder::Disk(path) => WalkDir::new(path)
            .max_depth(2)
            .into_iter()
            .filter_map(|entry| Some(entry.ok()?.path().strip_prefix(path).ok()?.to_path_buf()))
            .filter(|name| path.join(name).is_file())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter::mount::{self, Strength};
    use crate::engine::device::{cpu, read};
    use crate::engine::error::Kind;
    use crate::engine::io::lora_file::LoraLayer;
    use crate::engine::model::Mounts;

    /// An adapter that pushes two layers, one of the text encoder and one convolution.
    fn adapter(model: &StableDiffusion) -> LoraFile {
        let mut file = LoraFile::default();
        let conv = model.layers.iter().find(|layer| layer.part == Part::Unet && layer.kernel == Some([3, 3])).unwrap();
        let text = model.layers.iter().find(|layer| layer.part == Part::Text).unwrap();
        for layer in [conv, text] {
            let numbers = |n: usize| (0..n).map(|i| ((i * 7 % 13) as f32 - 6.0) / 60.0).collect::<Vec<_>>();
            let (down, up) = (numbers(2 * layer.input()), numbers(2 * layer.out));
            let (down_shape, up_shape) = (layer.down_shape(2), layer.up_shape(2));
            let pair = LoraLayer { down, up, rank: 2, alpha: 1.0, down_shape, up_shape };
            file.layers.insert(layer.module(), pair);
        }
        file.tokens.insert("<new>".into(), vec![vec![0.1; model.text.config.hidden_size]]);
        file
    }

    #[test]
    fn words_stay_in_their_folder_and_none_takes_anothers_file() {
        let words = ["<../../a>", "<A>", "<a>", "<!>", "<名>"].map(String::from);
        assert_eq!(file_names(words.iter()), ["a", "A-2", "a-3", "word", "名"]);
    }

    #[test]
    fn a_baked_model_is_the_model_with_its_adapters() {
        let from = StableDiffusion::folder("starter");
        let model = StableDiffusion::open(&from, &cpu()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let source = Source { file: adapter(&model), strength: Strength::uniform(0.5) };
        let out = scratch.path().join("baked");
        let mut stop = |_| Err(Error::cancelled());
        assert_eq!(
            bake(&from, &model, std::slice::from_ref(&source), &out, &mut stop).unwrap_err().kind,
            Kind::Cancelled
        );
        assert!(!out.exists(), "what was cancelled leaves nothing");
        bake(&from, &model, std::slice::from_ref(&source), &out, &mut |_| Ok(())).unwrap();
        assert!(out.join("model_index.json").is_file() && out.join("embeddings/new.safetensors").is_file());

        let baked = StableDiffusion::open(&StableDiffusion::folder(&out.to_string_lossy()), &cpu()).unwrap();
        let mut mounts = Mounts::none();
        mount::mount(&mut mounts, &model, &source.file, &source.strength).unwrap();
        let rested = |model: &StableDiffusion, mounts: Mounts| {
            let tokens = [model.tokenizer.encode("a 3d emoji of robot", &[]).unwrap()];
            let context = model.condition(&tokens, &[], &mounts);
            let [_, n, width] = context.dims();
            let side = 8;
            let x = burn::tensor::Tensor::<4>::ones([1, 4, side, side], &model.device);
            read(model.unet.forward(x, &[500.0], &context.reshape([1, n, width]).into(), &mounts)).unwrap()
        };
        let (mounted, baked) = (rested(&model, mounts), rested(&baked, Mounts::none()));
        let largest = mounted.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let worst = mounted.iter().zip(&baked).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        // The starter's weights are f16: the sum is rounded once.
        assert!(worst < 5e-3 * largest, "{worst} of {largest}");

        let again = bake(&from, &model, &[source], &out, &mut |_| Ok(())).unwrap_err();
        assert!(again.advice.contains("nothing is overwritten"));
    }

    #[test]
    fn a_sum_that_the_format_cannot_hold_is_refused_and_leaves_nothing() {
        let from = StableDiffusion::folder("starter");
        let model = StableDiffusion::open(&from, &cpu()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let source = Source { file: adapter(&model), strength: Strength::uniform(1e9) };
        for name in ["folder", "file.safetensors"] {
            let out = scratch.path().join(name);
            let error = bake(&from, &model, std::slice::from_ref(&source), &out, &mut |_| Ok(())).unwrap_err();
            assert!(error.what.contains("holds numbers that F16 cannot"), "{error}");
        }
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    /// Into a file and back, and from that file into another: the names and numbers of the networks stay.
    #[test]
    fn a_model_becomes_one_file_and_that_file_another() {
        let from = StableDiffusion::folder("starter");
        let model = StableDiffusion::open(&from, &cpu()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let [first, second] = ["first.safetensors", "second.safetensors"].map(|name| scratch.path().join(name));
        bake(&from, &model, &[], &first, &mut |_| Ok(())).unwrap();
        let open = |path: &Path| StableDiffusion::open(&Folder::Disk(path.into()), &cpu()).unwrap();
        let single = open(&first);
        assert_eq!((&single.layers, &single.schedule, &single.readme), (&model.layers, &model.schedule, &model.readme));
        for (a, b) in single.weights.iter().zip(&model.weights) {
            assert_eq!(a.oi.to_data(), b.oi.to_data());
        }
        let source = Source { file: adapter(&model), strength: Strength::uniform(0.5) };
        bake(&Folder::Disk(first.clone()), &single, &[source], &second, &mut |_| Ok(())).unwrap();
        assert!(scratch.path().join("second/embeddings/new.safetensors").is_file());
        let changed = open(&second);
        let differs = single.weights.iter().zip(&changed.weights).filter(|(a, b)| a.oi.to_data() != b.oi.to_data());
        assert_eq!(differs.count(), 2, "the adapter's two layers");
        let again = bake(&from, &model, &[], &first, &mut |_| Ok(())).unwrap_err();
        assert!(again.advice.contains("nothing is overwritten"), "{again}");
        let third = scratch.path().join("third");
        let folder = bake(&Folder::Disk(first), &single, &[], &third, &mut |_| Ok(())).unwrap_err();
        assert!(folder.advice.contains(".safetensors") && !third.exists(), "{folder}");
    }
}
