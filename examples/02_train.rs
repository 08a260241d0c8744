//! Teaching the starter model a robot it has never seen.

#![allow(clippy::print_stdout, reason = "an example prints what it proves")]

use triptych::engine::adapter::{self, basis::Basis};
use triptych::engine::concept::shipped::{SHIPPED, unpack};
use triptych::engine::device::Choice;
use triptych::engine::event::Event;
use triptych::engine::io::metadata;
use triptych::engine::session::{Lesson, Session, Training};
use triptych::engine::{Error, Result};

fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("make a folder in", &std::env::temp_dir(), &e))?;
    let mut watch = |event: Event| {
        if let Event::Step { step: step @ (8 | 16 | 24 | 32), total, loss, .. } = event {
            println!("  step {step} of {total}: loss {loss:.3}");
        }
        Ok(())
    };
    let session = Session::open(Choice::Cpu, &mut watch)?;
    let model = session.model("starter")?;
    let robot = SHIPPED[0];
    let (pictures, _) = unpack(&robot, folder.path())?;
    let concept = session.concept(&pictures)?;
    println!("{} pictures of a {}:", concept.images.len(), robot.title);

    // Few steps and a low rank: an example ends in seconds. `triptych train` alone takes the defaults.
    let changes = [("steps", "32"), ("rank", "4"), ("batch", "8"), ("prior", "0"), ("warmup", "4")];
    let training = Training {
        lessons: vec![Lesson::new("<robot>", Some(robot.class_word.into()))],
        method: adapter::method("orthogonal")?,
        changes: changes.map(|(field, value)| (field.into(), value.into())).into(),
        slot: None,
        project: None,
        seed: 0,
        out: folder.path().join("robot.safetensors"),
        resume: false,
        stamp: false,
        wishes: None,
    };
    let trained = session.train(&model, &[concept], &training, &mut watch)?;

    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (before, after) = (mean(&trained.losses[..8]), mean(&trained.losses[24..]));
    assert!(after < before, "the loss went from {before} to {after}");

    // The read side was given by the slot and must not have moved by one bit.
    let basis: Basis = trained.file.metadata[metadata::BASIS].parse()?;
    for (module, layer) in &trained.file.layers {
        assert!(layer.down == basis.rows(layer.input(), 0, layer.rank)?, "{module} has moved");
    }
    println!(
        "Proved: the loss fell from {before:.3} to {after:.3} (means of 8 steps), and the read side of all {} layers \
         is bit for bit slot 0 of “{basis}”.",
        trained.file.layers.len()
    );
    Ok(())
}
