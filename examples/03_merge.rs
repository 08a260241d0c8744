//! Two concepts taught apart, added into one file, and taken back out of it.

#![allow(clippy::print_stdout, reason = "an example prints what it proves")]

use triptych::engine::adapter::{self, mount::Strength};
use triptych::engine::concept::shipped::{SHIPPED, unpack};
use triptych::engine::device::Choice;
use triptych::engine::field::Settings;
use triptych::engine::merge::{self, Inputs, Source, certificate, recover};
use triptych::engine::session::{Lesson, Session, Training};
use triptych::engine::{Error, Result};

fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("make a folder in", &std::env::temp_dir(), &e))?;
    let session = Session::open(Choice::Cpu, &mut |_| Ok(()))?;
    let model = session.model("starter")?;
    let mut sources = Vec::new();
    for shipped in &SHIPPED[..2] {
        let (pictures, _) = unpack(shipped, &folder.path().join(shipped.folder))?;
        let changes = [("steps", "12"), ("batch", "2"), ("prior", "0")];
        let training = Training {
            lessons: vec![Lesson::new(format!("<{}>", shipped.folder), Some(shipped.class_word.into()))],
            method: adapter::method("orthogonal")?,
            changes: changes.map(|(field, value)| (field.into(), value.into())).into(),
            // The project file beside --out gives each of them the next free slot.
            slot: None,
            project: None,
            seed: 0,
            out: folder.path().join(shipped.folder).with_extension("safetensors"),
            resume: false,
            stamp: false,
            wishes: None,
        };
        let trained = session.train(&model, &[session.concept(&pictures)?], &training, &mut |_| Ok(()))?;
        println!("{} taught in {} steps", shipped.title, trained.losses.len());
        sources.push(Source { file: trained.file, strength: Strength::uniform(0.8) });
    }

    let certificate = certificate::certify(&[&sources[0].file, &sources[1].file])?
        .ok_or_else(|| Error::new("There is no certificate", "Train both with the method orthogonal"))?;
    let sum = merge::method("sum")?;
    let (merged, _) = merge::merge(&Inputs::of(&sources), sum, &Settings::new(sum.fields, [])?, &mut |_| Ok(()))?;

    // ΔW·Bᵢ gives concept i back, at the strength it went in with.
    let mut worst = 0.0_f32;
    for (slot, source) in sources.iter().enumerate() {
        for (module, found) in recover::recover(&merged, &certificate.basis.parse()?, slot)? {
            let up = &source.file.layers[&module].up;
            let largest = up.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let off = found.up.iter().zip(up).fold(0.0_f32, |m, (a, b)| m.max((a - 0.8 * b).abs()));
            worst = worst.max(off / largest);
        }
    }
    assert!(worst < 1e-5 && certificate.disjoint, "not recovered: {worst:.1e}");
    println!("Certificate ({}): {}.", certificate.basis, certificate.sentence);
    println!("Proved: the merged file gives back both concepts to {worst:.0e} of their largest weight.");
    Ok(())
}
