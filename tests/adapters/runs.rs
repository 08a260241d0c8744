//! Real runs through the training loop, on a picture of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use triptych::engine::Error;
use triptych::engine::adapter::mount::Strength;
use triptych::engine::adapter::{self, METHODS, Method, Spot};
use triptych::engine::concept::{self, Concept, Trigger};
use triptych::engine::event::Event;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::metadata;
use triptych::engine::model::{Layer, LayerId, Mounts, StableDiffusion};
use triptych::engine::random::Philox;
use triptych::engine::session;
use triptych::engine::train::job::Job;

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
            concept: &self.concept,
            trigger: Trigger::new("<sks>", "cat").unwrap(),
            template: "a photo of {token} {class}".into(),
            method,
            method_settings,
            settings,
            context: CONTEXT,
            out: out.into(),
            resume: false,
            stamp: false,
            cache: None,
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
