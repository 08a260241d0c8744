//! A merge method of one's own: a row, a function, and the same door as the others.

#![allow(clippy::print_stdout, reason = "an example prints what it proves")]

use std::collections::BTreeMap;

use triptych::engine::Result;
use triptych::engine::adapter::mount::Strength;
use triptych::engine::event::Watch;
use triptych::engine::field::Settings;
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::merge::note::{About, Note};
use triptych::engine::merge::terms::{Term, each_layer};
use triptych::engine::merge::{self, Inputs, Merged, Method, Needs, Promise, Source};
use triptych::engine::random::Philox;

/// In the program this would be a file in `src/engine/merge/`, with its line in `METHODS`.
const LOUDEST: Method = Method {
    name: "loudest",
    title: "The loudest wins",
    paper: "none: made up for this example",
    help: "Each layer is taken whole from the adapter that changes it most",
    fields: &[],
    needs: Needs::Nothing,
    promises: &[Promise::AnyOrder, Promise::CopiesCountOnce, Promise::AloneUnchanged, Promise::Rotates],
    run,
};

fn run(inputs: &Inputs<'_>, _: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let chosen = each_layer(inputs.sources, watch, |_, terms| {
        let loud = |term: &Term<'_>| Ok(term.delta()?.energy());
        let energies = terms.iter().map(loud).collect::<Result<Vec<f64>>>()?;
        let best = (1..terms.len()).fold(0, |best, i| if energies[i] > energies[best] { i } else { best });
        let Term { layer, w, .. } = &terms[best];
        Ok((LoraLayer { alpha: layer.alpha * w, ..layer.clone().into_owned() }, terms[best].source))
    })?;
    let share = chosen.values().filter(|(_, source)| *source == 0).count() as f64 / chosen.len() as f64;
    let note = Note { name: "won", what: "Layers won", about: About::Source(0), share };
    let layers = chosen.into_iter().map(|(module, (layer, _))| (module, layer)).collect();
    Ok(Merged { layers, notes: vec![note], ..Merged::default() })
}

/// Rank 2 on two layers, the second louder by `second`.
fn adapter(seed: u64, second: f32) -> Source {
    let layer = |strength: f32| LoraLayer {
        down: Philox::new(seed).normal(0, 2 * 6),
        up: Philox::new(seed).normal(1, 4 * 2).into_iter().map(|x| x * strength).collect(),
        rank: 2,
        alpha: 2.0,
        down_shape: vec![2, 6],
        up_shape: vec![4, 2],
    };
    let layers = [("lora_unet_mid_block_a", 1.0), ("lora_unet_mid_block_b", second)];
    let layers: BTreeMap<_, _> = layers.map(|(module, strength)| (module.into(), layer(strength))).into();
    Source { file: LoraFile { layers, ..LoraFile::default() }, strength: Strength::default() }
}

fn main() -> Result<()> {
    let sources = [adapter(1, 0.1), adapter(2, 10.0)];
    let settings = Settings::new(LOUDEST.fields, [])?;
    let (file, notes) = merge::merge(&Inputs::of(&sources), &LOUDEST, &settings, &mut |_| Ok(()))?;
    for line in merge::note::sentences(&notes) {
        println!("{line}");
    }
    let second = "lora_unet_mid_block_b";
    assert_eq!(file.layers[second], sources[1].file.layers[second]);
    let refused = merge::merge(&Inputs::of(&[]), &LOUDEST, &settings, &mut |_| Ok(())).is_err();
    assert!(refused && file.metadata["triptych.recipe"].contains("loudest"));
    println!("Proved: a new method is one row; it was merged, checked and written down like the others.");
    Ok(())
}
