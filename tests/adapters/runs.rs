//! Real runs through the training loop, on a picture of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use triptych::engine::Error;
use triptych::engine::adapter::mount::Strength;
use triptych::engine::adapter::{self, FileKind, METHODS, Method, Spot};
use triptych::engine::concept::{self, Concept, Trigger};
use triptych::engine::event::Event;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::metadata;
use triptych::engine::model::{Layer, LayerId, Mounts, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::session;
use triptych::engine::spectrum::adapter::spectra;
use triptych::engine::train::job::{Job, Subject};
use triptych::engine::train::{self, Wishes, checkpoint};

use crate::files::assert_holds;
use crate::whole::{mounted, outputs};
use crate::{CONTEXT, SETTINGS, apart, build, has, reference};

const STEPS: usize = 4;

/// A folder with one picture, and the model.
struct Desk {
    folder: tempfile::TempDir,
    model: StableDiffusion,
    concept: Concept,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pictures = folder.path().join("cat");
        std::fs::create_dir(&pictures).unwrap();
        let picture = image::RgbImage::from_fn(24, 24, |x, y| image::Rgb([10 * x as u8, 10 * y as u8, 90]));
        picture.save(pictures.join("a.png")).unwrap();
        Self { model: reference::model(), concept: concept::open(&pictures).unwrap(), folder }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.safetensors"))
    }

    fn job(&self, method: &'static Method, changes: &[(&str, &str)], out: &Path) -> Job<'_> {
        let steps = STEPS.to_string();
        let usual = SETTINGS.into_iter().filter(|(name, _)| has(method, name));
        let changes: Vec<_> = [("steps", &steps[..]), ("batch", "1"), ("warmup", "0")]
            .into_iter()
            .chain(usual)
            .chain(changes.iter().copied())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (method_settings, settings) = session::settings(method, &changes).unwrap();
        Job {
            model: &self.model,
            subjects: vec![Subject {
                concept: &self.concept,
                trigger: Trigger::new("<sks>", "cat").unwrap(),
                repeats: 1,
                weight: 1.0,
            }],
            template: "a photo of {token} {class}".into(),
            method,
            method_settings,
            settings,
            context: CONTEXT,
            out: out.into(),
            resume: false,
            stamp: false,
            cache: None,
            wishes: None,
        }
    }
}

/// Twice, and once more stopped on the way and resumed: the same bytes. What a period, a gate or a sleeping layer
/// remembers is in the saved state, or is not needed.
#[test]
fn a_run_is_a_function_of_its_inputs() {
    let desk = Desk::new();
    for row in METHODS {
        let [whole, twin, stopped] = ["whole", "twin", "stopped"].map(|name| desk.out(&format!("{}_{name}", row.name)));
        let trained = desk.job(row, &[], &whole).run(&mut |_| Ok(())).unwrap_or_else(|e| panic!("{}: {e}", row.name));
        assert_eq!(trained.losses.len(), STEPS);
        assert_whole(&desk, row, &whole, &trained.file, trained.parameters);

        desk.job(row, &[], &twin).run(&mut |_| Ok(())).unwrap();
        // In the middle of a second period.
        let mut job = desk.job(row, &[], &stopped);
        let error = job.run(&mut |event| match event {
            Event::Step { step: 3, .. } => Err(Error::cancelled()),
            _ => Ok(()),
        });
        assert!(error.is_err() && !stopped.exists(), "{}: not stopped", row.name);
        job.resume = true;
        let mut steps = Vec::new();
        job.run(&mut |event| {
            if let Event::Step { step, .. } = event {
                steps.push(step);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(steps, [4], "{}", row.name);
        let bytes = |path: &Path| std::fs::read(path).unwrap();
        assert!(bytes(&twin) == bytes(&whole), "{}: two runs, two files", row.name);
        assert!(bytes(&stopped) == bytes(&whole), "{}: resumed, it is another run", row.name);
    }
}

/// It says what it is, every number counts, and the model takes it.
fn assert_whole(desk: &Desk, row: &Method, out: &Path, returned: &LoraFile, parameters: usize) {
    let (model, file) = (&desk.model, LoraFile::open(out).unwrap());
    assert_eq!(&file, returned);
    assert_eq!(&file.metadata[metadata::METHOD][..], row.name);
    let width = model.text.config.hidden_size;
    assert_eq!(file.tokens["<sks>"].iter().map(Vec::len).collect::<Vec<_>>(), [width]);

    let targets = adapter::target::select(adapter::target::DEFAULT, &model.layers).unwrap();
    let adapter = build(row, &[]);
    let depth = |place: usize| place as f32 / targets.len() as f32;
    let count = |(place, id): (usize, &LayerId)| adapter.count(model.layer(*id), depth(place));
    assert_eq!(parameters, targets.iter().enumerate().map(count).sum::<usize>() + width, "{}", row.name);

    let layers: BTreeMap<String, &Layer> = model.layers.iter().map(|layer| (layer.module(), layer)).collect();
    for (module, layer) in &file.layers {
        assert!(layer.up.iter().any(|&x| x != 0.0), "{}: {module} did not train", row.name);
        let shapes = (layers[module].down_shape(layer.rank), layers[module].up_shape(layer.rank));
        assert_eq!((&layer.down_shape, &layer.up_shape), (&shapes.0, &shapes.1), "{module}");
    }
    let modules: Vec<String> = targets.iter().map(|&id| model.layer(id).module()).collect();
    assert!(file.modules().iter().all(|module| modules.contains(module)), "{}", row.name);
    // Where only some layers were awake, the others learnt nothing and are not there.
    let awake = |step: usize| adapter.awake(step, targets.len(), &Philox::new(CONTEXT.seed));
    let places: BTreeSet<usize> =
        (0..STEPS).flat_map(|step| awake(step).unwrap_or_else(|| (0..targets.len()).collect())).collect();
    let learnt: Vec<LayerId> = places.into_iter().map(|place| targets[place]).collect();
    assert_holds(row, &file, model, &learnt);

    if let Some((basis, slot)) = adapter.basis() {
        assert_eq!(file.metadata[metadata::BASIS], basis.to_string());
        assert_eq!(file.metadata[metadata::SLOT], slot.to_string());
        for (module, layer) in &file.layers {
            let rows = basis.rows(layer.input(), slot, layer.rank).unwrap();
            assert_eq!(layer.down, rows, "{module}: the read side moved");
        }
    }
    // Reading and writing again changes nothing.
    let again = desk.out("again");
    file.save(&again).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(out).unwrap(), "{}", row.name);
    let mounts = mounted(model, &file, &Strength::default());
    let ([_, with], [_, without]) = (outputs(model, &mounts), outputs(model, &Mounts::none()));
    assert!(apart(&with, &without) > 1e-6, "{}: the file changes nothing", row.name);
}

/// The values told while training are those of the file: every method that leaves a pair has them, no other.
#[test]
fn what_is_seen_live_is_what_the_file_holds() {
    let desk = Desk::new();
    for row in METHODS {
        let out = desk.out(row.name);
        let mut seen = None;
        let job = desk.job(row, &[("dtype", "f32")], &out);
        let trained = job
            .run(&mut |event| {
                if let Event::Spectrum(spectrum) = event {
                    seen = Some(spectrum);
                }
                Ok(())
            })
            .unwrap();
        let pairs = matches!(row.file, FileKind::Lora | FileKind::LoraAndBias);
        assert_eq!(seen.is_some(), pairs, "{}: give it `Adapter::pair`", row.name);
        let Some(seen) = seen else { continue };
        assert_eq!(seen.step, STEPS, "{}: the last step is always shown", row.name);
        let seen: BTreeMap<String, Vec<f32>> = seen.layers.into_iter().map(|one| (one.layer, one.values)).collect();
        for held in spectra(&trained.file).unwrap() {
            let values = &seen[&held.layer];
            assert!(values.is_sorted_by(|a, b| a >= b), "{} {}: {values:?}", row.name, held.layer);
            // A direction that the file leaves out is 0.
            let held = held.singular_values.iter().map(|&s| s as f32).chain(std::iter::repeat(0.0));
            for (found, expected) in values.iter().zip(held) {
                let error = (found - expected).abs() / values[0];
                assert!(error < 1e-4, "{} {found} instead of {expected}", row.name);
            }
        }
    }
}

/// Measuring and keeping change no byte of the file, and a kept step is what a run that ended there leaves.
#[test]
fn looking_on_changes_nothing() {
    let desk = Desk::new();
    let [blind, seen, short] = ["blind", "seen", "short"].map(|name| desk.out(name));
    let row = adapter::method("lora").unwrap();
    let schedule = ("schedule", "constant");
    let off = [schedule, ("validate_every", "0"), ("spectrum_every", "0")];
    let on = [schedule, ("validate_every", "1"), ("spectrum_every", "1"), ("keep_every", "2")];
    let mut events = 0;
    desk.job(row, &off, &blind)
        .run(&mut |event| {
            events += usize::from(matches!(event, Event::Steady { .. } | Event::Spectrum(_) | Event::Kept { .. }));
            Ok(())
        })
        .unwrap();
    assert_eq!(events, 0);
    let (mut steady, mut kept) = (Vec::new(), Vec::new());
    let mut watch = |event| {
        match event {
            Event::Step { gradient, .. } => assert!(gradient > 0.0 && gradient.is_finite()),
            Event::Steady { step, loss } => steady.push((step, loss)),
            Event::Kept { step, path } => kept.push((step, path)),
            _ => {}
        }
        Ok(())
    };
    desk.job(row, &on, &seen).run(&mut watch).unwrap();
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&blind) == bytes(&seen), "looking on changed the file");
    assert_eq!(steady.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(steady[3].1 < steady[0].1, "it learns: {steady:?}");
    assert_eq!((train::kept(&seen), kept.iter().map(|(step, _)| *step).collect::<Vec<_>>()), (kept, vec![2, 4]));
    let [(_, second), (_, last)] = &train::kept(&seen)[..] else { panic!("two were kept") };
    assert!(bytes(last) == bytes(&seen), "the last kept step is the file");

    let ended = desk.job(row, &[schedule, ("steps", "2")], &short).run(&mut |_| Ok(())).unwrap().file;
    let way = LoraFile::open(second).unwrap();
    assert_eq!((&way.layers, &way.tokens), (&ended.layers, &ended.tokens));
    assert_eq!((&way.metadata["ss_steps"][..], &way.metadata[metadata::STEP][..]), ("2", "2"));
    train::keep(&seen, 2).unwrap();
    assert!(bytes(&seen) == bytes(second));
    // It is the adapter now, and going on does not undo that.
    let mut job = desk.job(row, &on, &seen);
    job.resume = true;
    assert!(job.run(&mut |_| Ok(())).unwrap().losses.is_empty() && bytes(&seen) == bytes(second));
    // A fresh start forgets what the old run kept.
    desk.job(row, &off, &seen).run(&mut |_| Ok(())).unwrap();
    assert!(train::kept(&seen).is_empty() && bytes(&seen) == bytes(&blind));
}

/// Wishes are fulfilled after the step under way; a stopped run goes on although one of its steps is the adapter.
#[test]
fn a_wish_is_fulfilled_while_training_goes_on() {
    let desk = Desk::new();
    let (row, [whole, out]) = (adapter::method("lora").unwrap(), ["whole", "wished"].map(|name| desk.out(name)));
    desk.job(row, &[], &whole).run(&mut |_| Ok(())).unwrap();
    let wishes = Arc::new(Wishes::default());
    let mut job = desk.job(row, &[], &out);
    job.wishes = Some(Arc::clone(&wishes));
    let state = checkpoint::folder(&out);
    let mut saved = Vec::new();
    let error = job.run(&mut |event| {
        if let Event::Step { step, .. } = event {
            saved.push(state.is_dir());
            match step {
                1 => (wishes.save(), wishes.keep()).0,
                3 => return Err(Error::cancelled()),
                _ => {}
            }
        }
        Ok(())
    });
    assert!(error.is_err() && saved == [false, false, true], "{saved:?}");
    assert_eq!(train::kept(&out).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2]);
    train::keep(&out, 2).unwrap();
    job.resume = true;
    assert_eq!(job.run(&mut |_| Ok(())).unwrap().losses.len(), STEPS);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "wishes changed the file");
    assert_eq!(train::kept(&out).len(), 1, "kept on resume");
}

/// A layer that learnt nothing is not in the file: here every gate is shut by the first step, and the token remains.
#[test]
fn a_run_that_switched_everything_off_leaves_its_token() {
    let desk = Desk::new();
    let (row, out) = (adapter::method("sora").unwrap(), desk.out("shut"));
    // Two proximal steps of 1 each close every gate of N(0, 1) up to 2; so few there are none beyond.
    let trained = desk.job(row, &[("sparsity", "1"), ("rank", "1")], &out).run(&mut |_| Ok(())).unwrap();
    assert!(trained.file.modules().is_empty(), "{:?}", trained.file.modules());
    assert_eq!(trained.file.tokens.len(), 1);
    let gates = build(row, &[("rank", "1")]);
    let spot =
        |id| Spot { layer: desk.model.layer(id), weight: desk.model.weight(id), depth: 0.0, random: Philox::new(1) };
    assert!(gates.begin(&spot(LayerId(0))).unwrap()[2].values[0] != 0.0, "they begin open");
}
