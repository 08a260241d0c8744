//! A merge written down: what went in, how strongly, by which method.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::engine::field::Settings;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::token_vectors::Meaning;
use crate::engine::io::{metadata as keys, safetensors};
use crate::engine::merge::note::{About, Note};
use crate::engine::merge::{Inputs, Method, Promise, Source, certificate};
use crate::engine::{Error, Result};

/// Every word that the files bring, in order. Two that give one word different vectors are refused.
pub fn words<'a>(files: impl IntoIterator<Item = &'a LoraFile>) -> Result<Vec<Meaning<'a>>> {
    let mut words: BTreeMap<&String, Meaning<'_>> = BTreeMap::new();
    for file in files {
        for meaning in file.words() {
            let word = meaning.word;
            match words.insert(word, meaning) {
                Some(other) if !meaning.is(other) => {
                    let first = other.path.display();
                    return Err(Error::new(
                        format!("Two adapters bring the word {word} with different meanings ({first} is the other)"),
                        "Train one of them again with another --token",
                    )
                    .at(&file.path));
                }
                _ => {}
            }
        }
    }
    Ok(words.into_values().collect())
}

/// Metadata of the merged file: a function of what went in. Numbers about single layers stay out of it: they would be
/// most of the header, and the same merge finds them again.
pub fn metadata(
    inputs: &Inputs<'_>,
    method: &Method,
    settings: &Settings,
    notes: &[Note],
) -> Result<BTreeMap<String, String>> {
    let sources = inputs.sources;
    let of = |source: &Source, key: &str| source.file.metadata.get(key).cloned().unwrap_or_default();
    let parts: Vec<_> = sources
        .iter()
        .map(|source| {
            json!({
                "sha256": safetensors::tensor_hash(&source.file.tensors()),
                "method": of(source, keys::METHOD),
                "token": of(source, keys::TOKEN),
                "class": of(source, keys::CLASS),
                "slot": of(source, keys::SLOT),
                "strength": { "unet": source.strength.unet, "text": source.strength.text, "blocks": source.strength.blocks },
            })
        })
        .collect();
    let common = |key: &str| {
        let first = of(&sources[0], key);
        (!first.is_empty() && sources.iter().all(|source| of(source, key) == first)).then_some(first)
    };
    let words = |key: &str| {
        sources.iter().map(|source| of(source, key)).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
    };
    let mut recipe = json!({ "merge": method.name, "settings": settings, "sources": parts });
    if let Some(evidence) = inputs.evidence {
        recipe["evidence"] = evidence.record.clone();
    }
    let notes: Vec<&Note> = notes.iter().filter(|note| !matches!(note.about, About::Layer(_))).collect();
    if !notes.is_empty() {
        recipe["notes"] = json!(notes);
    }
    let mut metadata = BTreeMap::from([
        (keys::METHOD.to_owned(), format!("merge {}", method.name)),
        (keys::RECIPE.to_owned(), recipe.to_string()),
        ("ss_network_module".to_owned(), "networks.lora".to_owned()),
        ("modelspec.sai_model_spec".to_owned(), "1.0.1".to_owned()),
        ("modelspec.title".to_owned(), words("modelspec.title")),
        ("modelspec.merged_from".to_owned(), words("modelspec.title")),
        ("modelspec.trigger_phrase".to_owned(), words("modelspec.trigger_phrase")),
    ]);
    let kept = [
        keys::BASE,
        keys::BASE_HASH,
        keys::CLIP_SKIP,
        "ss_base_model_version",
        "ss_sd_model_name",
        "ss_resolution",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.resolution",
        "modelspec.prediction_type",
    ];
    for key in kept {
        if let Some(value) = common(key) {
            metadata.insert(key.to_owned(), value);
        }
    }
    if !method.promises.contains(&Promise::ReadsWithin) {
        return Ok(metadata);
    }
    // What reads only slots is itself a citizen of the basis: it can be merged again, and a sum taken apart. What is
    // silent leaves its slot free.
    let heard: Vec<&Source> = sources.iter().filter(|source| !source.is_silent()).collect();
    let identities =
        heard.iter().map(|source| certificate::identity(&source.file)).collect::<Result<Option<Vec<_>>>>()?;
    if let Some(identities) = identities
        && let Some((basis, _)) = identities.first()
        && identities.iter().all(|(other, _)| other == basis)
    {
        let slots: BTreeSet<&usize> = identities.iter().flat_map(|(_, slots)| slots).collect();
        let slots = slots.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        metadata.insert(keys::BASIS.to_owned(), basis.to_string());
        metadata.insert(keys::SLOT.to_owned(), slots);
        if let Some(format) = certificate::coarsest(&heard.iter().map(|source| &source.file).collect::<Vec<_>>()) {
            metadata.insert(keys::ROUNDED.to_owned(), format.name.to_owned());
        }
    }
    Ok(metadata)
}
