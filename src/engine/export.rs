//! A mix as a whole model: adapters added into the weights of a copy, as a folder in diffusers layout or as one file.

mod changes;
mod single_file;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use walkdir::WalkDir;

use crate::engine::event::{Event, Watch};
use crate::engine::export::changes::Changes;
use crate::engine::io::ldm::Network;
use crate::engine::io::safetensors::{self, Checkpoint, Slot};
use crate::engine::io::token_vectors::{self, Meaning};
use crate::engine::io::{Entry, Folder, atomic, names};
use crate::engine::merge::{Source, recipe};
use crate::engine::model::sd;
use crate::engine::model::stored::Stored;
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
/// file, and its words, lie in a folder of the file's name. The model is never in memory: tensor by tensor is read, changed
/// where an adapter changes it, on `device`, and written. An error of `watch` stops before anything is there.
pub fn bake(from: &Folder, sources: &[Source], out: &Path, device: &Device, watch: &mut Watch<'_>) -> Result<()> {
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
    let model = Stored::open(from)?;
    let changes = Changes::new(&model, sources, &from.path().to_string_lossy(), device)?;
    let words = recipe::words(sources.iter().map(|source| &source.file))?;
    for Meaning { word, .. } in words.iter().filter(|meaning| meaning.layers.is_some()) {
        let text = format!("{word} has vectors of its own for each layer, and beside a model only their mean is kept");
        watch(Event::warning(format!("{text}: mount the adapter itself for all of them")))?;
    }
    let second = model.parts.second.as_ref().map_or(0, |second| second.config.hidden_size);
    atomic::write_folder(&folder, |new| {
        describe(&single_file::beside(from), new)?;
        if !is_file {
            weights(from, &model, &changes, new, watch)?;
        }
        for (Meaning { word, vectors, .. }, name) in words.iter().zip(file_names(words.iter().map(|m| m.word))) {
            let about = BTreeMap::from([("token".to_owned(), (*word).clone())]);
            let path = new.join(WORDS).join(format!("{name}.safetensors"));
            safetensors::save(&path, &token_vectors::embedding(vectors, second), &about)?;
        }
        Ok(())
    })?;
    if !is_file {
        return Ok(());
    }
    // A folder that describes a file which is not there would stand in the way of the next try.
    single_file::write(from, &model, &changes, out, watch).inspect_err(|_| drop(fs::remove_dir_all(&folder)))
}

/// The files of a folder's networks.
fn networks(from: &Folder, model: &Stored) -> Result<Vec<(Network, &'static str, &'static str, Checkpoint)>> {
    let has = |network: Network| network != Network::Text2 || model.parts.second.is_some();
    let there = NETWORKS.into_iter().filter(|(network, ..)| has(*network));
    there.map(|(network, folder, files)| Ok((network, folder, files[0], from.checkpoint(folder, files)?))).collect()
}

/// The networks of a folder.
fn weights(from: &Folder, model: &Stored, changes: &Changes<'_>, to: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let files = networks(from, model)?;
    let total = files.iter().map(|(.., file)| file.entries().len()).sum();
    watch(Event::Stage { name: "writing the model".into(), total })?;
    let mut done = 0;
    for (network, folder, name, file) in &files {
        let slot = |entry: &Entry| Slot { dtype: entry.dtype, shape: entry.shape.clone() };
        let slots = file.entries().iter().map(|(name, entry)| (name.clone(), slot(entry))).collect();
        safetensors::save_each(&to.join(folder).join(name), &slots, file.metadata(), |stored| {
            done += 1;
            watch(Event::Progress { done, total })?;
            changes.bytes(file, stored, ours(*network, stored).map(|ours| (*network, vec![ours])))
        })?;
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

/// Copies what describes the model.
fn describe(from: &Folder, to: &Path) -> Result<()> {
    // The weights become one file each: a list of shards would send readers after those.
    let lists_shards = |path: &Path| path.to_string_lossy().ends_with(".index.json");
    let is_description =
        |path: &Path| path.extension().is_some_and(|e| DESCRIPTIONS.iter().any(|d| e == *d)) && !lists_shards(path);
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
    use crate::engine::io::lora_file::{LoraFile, LoraLayer};
    use crate::engine::model::{Mounts, Part, StableDiffusion};

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
            bake(&from, std::slice::from_ref(&source), &out, &cpu(), &mut stop).unwrap_err().kind,
            Kind::Cancelled
        );
        assert!(!out.exists(), "what was cancelled leaves nothing");
        bake(&from, std::slice::from_ref(&source), &out, &cpu(), &mut |_| Ok(())).unwrap();
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

        let again = bake(&from, &[source], &out, &cpu(), &mut |_| Ok(())).unwrap_err();
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
            let error = bake(&from, std::slice::from_ref(&source), &out, &cpu(), &mut |_| Ok(())).unwrap_err();
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
        bake(&from, &[], &first, &cpu(), &mut |_| Ok(())).unwrap();
        let open = |path: &Path| StableDiffusion::open(&Folder::Disk(path.into()), &cpu()).unwrap();
        let single = open(&first);
        assert_eq!((&single.layers, &single.schedule, &single.readme), (&model.layers, &model.schedule, &model.readme));
        for (a, b) in single.weights.iter().zip(&model.weights) {
            assert_eq!(a.oi.to_data(), b.oi.to_data());
        }
        let source = Source { file: adapter(&model), strength: Strength::uniform(0.5) };
        bake(&Folder::Disk(first.clone()), &[source], &second, &cpu(), &mut |_| Ok(())).unwrap();
        assert!(scratch.path().join("second/embeddings/new.safetensors").is_file());
        let changed = open(&second);
        let differs = single.weights.iter().zip(&changed.weights).filter(|(a, b)| a.oi.to_data() != b.oi.to_data());
        assert_eq!(differs.count(), 2, "the adapter's two layers");
        let again = bake(&from, &[], &first, &cpu(), &mut |_| Ok(())).unwrap_err();
        assert!(again.advice.contains("nothing is overwritten"), "{again}");
        let third = scratch.path().join("third");
        let folder = bake(&Folder::Disk(first), &[], &third, &cpu(), &mut |_| Ok(())).unwrap_err();
        assert!(folder.advice.contains(".safetensors") && !third.exists(), "{folder}");
    }
}
