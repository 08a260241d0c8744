//! What holds for every method.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use triptych::engine::adapter::mount::Strength;
use triptych::engine::error;
use triptych::engine::field::Settings;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::metadata;
use triptych::engine::io::safetensors::{self, Dtype};
use triptych::engine::merge::note::About;
use triptych::engine::merge::{self, Inputs, METHODS, Needs, Promise, Source};

use crate::builders::*;

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
        // A row without promises would have nothing to be held to.
        assert!(!row.promises.is_empty(), "{}: what kind of merge is it?", row.name);
        for field in row.fields {
            assert!(!field.title.is_empty() && !field.help.is_empty(), "{}.{} explains nothing", row.name, field.name);
        }
    }
    let error = merge::method("stew").unwrap_err();
    assert!(METHODS.iter().all(|row| error.advice.contains(row.name)), "{error}");
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
/// Every method: one fader for all of them is one fader on the result. A negative one turns the adapters about, which is
/// a rotation, and is promised with it.
#[test]
fn a_common_factor_passes_through() {
    let files = [plain(1), plain(2), plain(3)];
    let sources = |by: f32| [at(&files[0], by), at(&files[1], 0.5 * by), at(&files[2], -0.8 * by)];
    for variant in variants() {
        let whole = dense(&merged(&sources(1.0), &variant));
        for by in [0.3, 2.5, -1.7] {
            if by < 0.0 && !variant.0.promises.contains(&Promise::Rotates) {
                continue;
            }
            let context = format!("{} {:?} × {by}", variant.0.name, variant.1);
            assert_near(&context, &dense(&merged(&sources(by), &variant)), &scaled(&whole, f64::from(by)), 1e-6);
        }
    }
}

/// Every method: who is silent is not there.
#[test]
fn silent_adapters_are_not_heard() {
    let (a, b) = (plain(1), plain(2));
    for variant in variants() {
        let context = format!("{} {:?}", variant.0.name, variant.1);
        for w in [1.0, 0.3, -1.5] {
            let alone = merged(&[at(&a, w)], &variant);
            for sources in [[at(&b, 0.0), at(&a, w)], [at(&a, w), at(&b, 0.0)]] {
                assert_eq!(merged(&sources, &variant).layers, alone.layers, "{context}");
            }
        }
        let error = try_merge(&[at(&a, 0.0), at(&b, 0.0)], variant.0, &variant.1).unwrap_err();
        assert_eq!(error.kind, error::Kind::Usage, "{context}: {error}");
        let error = try_merge(&[], variant.0, &variant.1).unwrap_err();
        assert!(error.what.contains("No adapter"), "{context}: {error}");
    }
}

/// P10, every method that can go back to few directions: what it reports as dropped is what is missing.
#[test]
fn dropped_energy_is_what_is_missing() {
    let sources = [at(&plain(1), 1.0), at(&plain(2), 0.5), at(&plain(3), -0.8)];
    for method in METHODS.iter().filter(|row| row.fields.iter().any(|field| field.name == "keep")) {
        let whole = dense(&merged(&sources, &variants_of(method)[0]));
        for changes in [vec![], vec![("rank", "2")], vec![("keep", "0.8")], vec![("rank", "1"), ("keep", "1")]] {
            let (file, notes) = run(&sources, method, &changes).unwrap();
            let (mut all, mut missing) = (0.0, 0.0);
            for (module, found) in dense(&file) {
                let difference: Vec<f64> = found.iter().zip(&whole[&module]).map(|(a, b)| a - b).collect();
                let (lost, energy) = (norm(&difference).powi(2), norm(&whole[&module]).powi(2));
                let said = told(&notes, "dropped", &About::Layer(module.clone()));
                assert!((said - lost / energy).abs() < 1e-6, "{} {changes:?}: {module}: {said}", method.name);
                (all, missing) = (all + energy, missing + lost);
            }
            let said = told(&notes, "dropped", &About::Whole);
            assert!((said - missing / all).abs() < 1e-6, "{} {changes:?}: {said}", method.name);
            assert!(said > 0.0, "{} {changes:?}: this was to drop something", method.name);
        }
    }
}

/// What a method needs and was not given is said before anything is merged.
#[test]
fn methods_that_look_at_pictures_ask_for_them() {
    let sources = [at(&plain(1), 1.0)];
    for method in METHODS {
        let settings = Settings::new(method.fields, []).unwrap();
        let result = merge::merge(&Inputs::of(&sources), method, &settings, &mut |_| Ok(()));
        match method.needs {
            Needs::Nothing => drop(result.unwrap_or_else(|e| panic!("{}: {e}", method.name))),
            Needs::ModelAndPictures => assert_eq!(result.unwrap_err().kind, error::Kind::Usage, "{}", method.name),
        }
    }
}

/// Every linear method: an adapter less itself is nothing. A method that keeps strength must not blow the rounding up.
#[test]
fn an_adapter_less_itself_is_nothing() {
    let a = plain(1);
    let most = |file: &LoraFile| file.layers.values().flat_map(|l| &l.up).fold(0.0_f32, |m, x| m.max(x.abs()));
    for variant in variants().into_iter().filter(|(row, _)| row.promises.contains(&Promise::Linear)) {
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

/// Of equal mean, they would be taken for one another if the layers were not looked at.
#[test]
fn tokens_of_each_layer_are_carried_and_clash() {
    let layers = |by: f32| vec![vec![vec![0.5 - by, 1.0]], vec![vec![0.5 + by, 1.0]]];
    let a = with_token(plain(1), "<cat>", &[[0.5, 1.0]]);
    let mut each = plain(2);
    each.add_layers("<dog>", layers(0.25));
    for variant in variants() {
        let file = stored(&merged(&[at(&a, 1.0), at(&each, -0.5)], &variant), Dtype::F32);
        assert_eq!(file.tokens["<dog>"], [[0.5, 1.0]]);
        assert_eq!(file.layer_tokens, each.layer_tokens, "{}: not scaled, not lost", variant.0.name);
    }
    let variant = &variants()[0];
    for (other, clashes) in [(layers(0.25), false), (layers(0.5), true), (vec![vec![vec![0.5, 1.0]]; 2], true)] {
        let mut twin = plain(3);
        twin.add_layers("<dog>", other);
        let found = try_merge(&[at(&each, 1.0), at(&twin, 1.0)], variant.0, &variant.1);
        assert_eq!(found.is_err_and(|error| error.what.contains("<dog>")), clashes);
    }
    let plain = with_token(plain(4), "<dog>", &[[0.5, 1.0]]);
    assert!(try_merge(&[at(&each, 1.0), at(&plain, 1.0)], variant.0, &variant.1).is_err(), "one vector is not many");
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
