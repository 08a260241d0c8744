//! Weights in several files, listed by an index (transformers and diffusers write one above 10 GB):
//! `{"weight_map": {"conv_in.bias": "diffusion_pytorch_model-00001-of-00002.safetensors", …}}`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::engine::io::Checkpoint;
use crate::engine::io::atomic::folder_of;
use crate::engine::{Error, Result};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Every tensor that the index at `path` names; the shards lie beside it.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| Error::new(format!("The list of shards cannot be read: {e}"), "Fetch the model again").at(path))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let folder = folder_of(path);
    let shard = |name: &&String| {
        // A list that leads out of its folder is none that a tool wrote.
        if Path::new(name.as_str()).file_name().is_none_or(|bare| bare != name.as_str()) {
            return Err(Error::new(format!("The list of shards names “{name}”"), "Fetch the model again").at(path));
        }
        Checkpoint::open(&folder.join(name))
    };
    let whole = Checkpoint::joined(path, names.iter().map(shard).collect::<Result<_>>()?);
    match index.weight_map.iter().find(|(tensor, _)| !whole.entries().contains_key(*tensor)) {
        Some((tensor, shard)) => Err(Error::new(
            format!("The tensor “{tensor}” is missing, which should be in {shard}"),
            "The shards are of different models: fetch them again",
        )
        .at(path)),
        None => Ok(whole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::Dtype;
    use crate::engine::io::safetensors::{Tensor, save};

    #[test]
    fn shards_are_one_checkpoint_and_a_lost_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for (name, tensor, value) in [("1.safetensors", "a", 1.0), ("2.safetensors", "b", 2.0)] {
            let tensors = BTreeMap::from([(tensor.to_owned(), Tensor::new(Dtype::F32, &[1], &[value]))]);
            save(&place(name), &tensors, &BTreeMap::new()).unwrap();
        }
        let index = |text: &str| {
            std::fs::write(place("index.json"), text).unwrap();
            open(&place("index.json"))
        };
        let whole = index(r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#).unwrap();
        assert_eq!((whole.f32("a").unwrap(), whole.f32("b").unwrap()), (vec![1.0], vec![2.0]));
        for (text, words) in [
            (r#"{"weight_map": {"a": "2.safetensors"}}"#, "should be in 2.safetensors"),
            (r#"{"weight_map": {"a": "3.safetensors"}}"#, "Could not open"),
            (r#"{"weight_map": {"a": "../1.safetensors"}}"#, "names “../1.safetensors”"),
            ("{}", "cannot be read"),
        ] {
            let error = index(text).unwrap_err();
            assert!(error.what.contains(words) && error.path.is_some(), "{words}: {error}");
        }
    }
}
