//! The one door that command line and window go through: devices, models, adapters, jobs.

mod lesson;
mod preflight;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::engine::adapter::basis::BasisKind;
use crate::engine::adapter::mount::{self, Strength};
use crate::engine::adapter::{self, Method, target};
use crate::engine::concept::{self, Concept, Trigger};
use crate::engine::device::{self, Opened};
use crate::engine::event::{Event, Watch};
use crate::engine::field::{self, Settings};
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::metadata;
use crate::engine::merge::meeting::{Meeting, meeting};
use crate::engine::merge::note::Note;
use crate::engine::merge::{self, Inputs, Needs, Source, recipe};
use crate::engine::model::{Precision, StableDiffusion};
use crate::engine::ops::self_test;
use crate::engine::prepare::{self, Drawing};
use crate::engine::preview::{self, Mounted, Pictures, Request, Token};
use crate::engine::project::{self, Project};
use crate::engine::train::config;
use crate::engine::train::evidence::{self, Evidence};
use crate::engine::train::job::{Job, Subject};
use crate::engine::train::run::Trained;
use crate::engine::train::{self, Wishes};
use crate::engine::{Error, Result, cache, words};

pub use lesson::{Lesson, check, lessons};
pub use preflight::{Preflight, estimate};

/// Caption of a concept without caption files where the model's README gives no template.
const DEFAULT_TEMPLATE: &str = "a photo of {token} {class}";

/// An open device and a folder for what can be computed again.
pub struct Session {
    pub device: Opened,
    /// What models that it opens from now on are held as.
    pub precision: Precision,
    choice: device::Choice,
    cache: Option<PathBuf>,
    /// Pictures that a GPU's kernels are made for, by the model.
    prepared: Mutex<BTreeSet<(String, Drawing)>>,
}

/// An adapter file with the strength it is used at.
#[derive(Clone, Debug)]
pub struct Used {
    pub file: Arc<LoraFile>,
    pub strength: Strength,
}

/// What a training is asked to do; what is left open is chosen.
#[derive(Clone, Debug)]
pub struct Training {
    /// One for each concept; those taught together share the file and its slot.
    pub lessons: Vec<Lesson>,
    pub method: &'static Method,
    /// Changed fields of the method and of training.
    pub changes: Vec<(String, String)>,
    pub slot: Option<usize>,
    pub project: Option<PathBuf>,
    pub seed: u64,
    pub out: PathBuf,
    pub resume: bool,
    pub stamp: bool,
    /// Lets another thread ask for a saved state or a kept step while training goes on.
    pub wishes: Option<Arc<Wishes>>,
}

/// What a merge is asked to do.
pub struct Merging<'a> {
    pub sources: Vec<Source>,
    pub method: &'static merge::Method,
    /// Of the method's fields.
    pub settings: Settings,
    /// Where the method needs them.
    pub pictures: Option<Pictured<'a>>,
    pub out: PathBuf,
}

/// A model, and a concept for each source of a merge.
pub struct Pictured<'a> {
    pub session: &'a Session,
    pub model: &'a StableDiffusion,
    pub concepts: Vec<Option<Concept>>,
}

/// What a merge leaves.
pub struct Combined {
    pub file: LoraFile,
    pub notes: Vec<Note>,
    pub meeting: Meeting,
}

impl Session {
    /// Opens a device. A GPU that computes wrongly is named and the CPU taken, unless it was asked for by name.
    pub fn open(choice: device::Choice, watch: &mut Watch<'_>) -> Result<Self> {
        Self::on(device::open(choice)?, choice, watch)
    }

    /// On a device that is open already, with the same care.
    pub fn on(mut device: Opened, choice: device::Choice, watch: &mut Watch<'_>) -> Result<Self> {
        let cache = cache::folder();
        if let Some(driver) = &device.driver
            && let Some(fault) = self_test::cached(&device.device, driver, &[], cache.as_deref(), watch)?
        {
            let text = format!("{} computes wrongly ({fault})", device.name);
            if choice == device::Choice::Auto {
                device = device::open(device::Choice::Cpu)?;
                watch(Event::warning(format!("{text}; the CPU is used instead. A newer driver may help")))?;
            } else {
                watch(Event::warning(format!(
                    "{text}; it is used because it was asked for. Compare with --device cpu"
                )))?;
            }
        }
        watch(Event::note(format!("Device: {}", device.reason)))?;
        Ok(Self { device, precision: Precision::default(), choice, cache, prepared: Mutex::default() })
    }

    /// `starter`, a folder in diffusers layout, or a single file. A GPU that gets one of the model's own layers wrong is named, and
    /// the model runs on the CPU unless the GPU was asked for by name.
    pub fn model(&self, name: &str) -> Result<StableDiffusion> {
        self.open_model(name, &mut |event| {
            if let Event::Warning { text } = event {
                tracing::warn!("{text}");
            }
            Ok(())
        })
    }

    /// [`Self::model`], told of: the first time with a driver, its layers are tested.
    pub fn open_model(&self, name: &str, watch: &mut Watch<'_>) -> Result<StableDiffusion> {
        let folder = StableDiffusion::folder(name);
        let model = StableDiffusion::open_as(&folder, &self.device.device, self.precision)?;
        let Some(driver) = &self.device.driver else { return Ok(model) };
        let (device, shapes) = (&self.device, model.layer_shapes());
        let fault = self_test::cached(&device.device, driver, &shapes, self.cache.as_deref(), watch)?;
        let Some(fault) = fault else { return Ok(model) };
        let text = format!("{} computes wrongly ({fault})", device.name);
        if self.choice == device::Choice::Auto {
            watch(Event::warning(format!("{text}; the CPU is used instead")))?;
            StableDiffusion::open_as(&folder, &device::cpu(), self.precision)
        } else {
            watch(Event::warning(format!("{text}; compare with --device cpu")))?;
            Ok(model)
        }
    }

    /// Puts adapters in place together. Two that define one word differently are refused.
    pub fn mount(&self, model: &StableDiffusion, adapters: &[Used]) -> Result<Mounted> {
        let mut mounted = Mounted::default();
        for Used { file, strength } in adapters {
            mount::mount(&mut mounted.mounts, model, file, strength)?;
            if [metadata::METHOD, metadata::CLIP_SKIP].iter().any(|key| file.metadata.contains_key(*key)) {
                mounted.clip_skips.insert(file.clip_skip());
            }
        }
        let words = recipe::words(adapters.iter().map(|used| used.file.as_ref()))?;
        mounted.tokens = words.into_iter().map(|meaning| Token::of(model, meaning)).collect::<Result<_>>()?;
        Ok(mounted)
    }

    /// Moves the faders of adapters that [`Session::mount`] has put in place, in the same order.
    pub fn turn(&self, model: &StableDiffusion, mounted: &mut Mounted, adapters: &[Used]) {
        let table = model.modules();
        for (number, Used { file, strength }) in (1..).zip(adapters) {
            mount::turn(&table, &mut mounted.mounts, number, file, strength);
        }
    }

    pub fn sample(
        &self,
        model: &StableDiffusion,
        mounted: &Mounted,
        request: &Request,
        watch: &mut Watch<'_>,
    ) -> Result<Pictures> {
        self.prepare(model, request, watch)?;
        preview::sample(model, mounted, request, watch)
    }

    /// The same, without waiting for the device at the end.
    pub fn draw(
        &self,
        model: &StableDiffusion,
        mounted: &Mounted,
        request: &Request,
        watch: &mut Watch<'_>,
    ) -> Result<Pictures> {
        self.prepare(model, request, watch)?;
        preview::draw(model, mounted, request, watch)
    }

    /// Makes a GPU's kernels for pictures of a size, once. Stopped half-way, it goes on from there the next time.
    fn prepare(&self, model: &StableDiffusion, request: &Request, watch: &mut Watch<'_>) -> Result<()> {
        if model.device == device::cpu() {
            return Ok(());
        }
        let drawing = preview::drawing(model, request)?;
        let key = (model.hash.clone(), drawing.clone());
        let prepared = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !prepared().contains(&key) {
            prepare::drawing(model, &drawing, watch)?;
            prepared().insert(key);
        }
        Ok(())
    }

    /// Teaches `model` concepts, one for each lesson, and writes the adapter file.
    pub fn train(
        &self,
        model: &StableDiffusion,
        concepts: &[Concept],
        training: &Training,
        watch: &mut Watch<'_>,
    ) -> Result<Trained> {
        let (method_settings, settings) = self::settings(training.method, &training.changes)?;
        // A wrong setting, and a training that does not fit, are told before a slot is taken for them.
        let preflight = Preflight::of(model, training.method, &training.changes, &training.out)?;
        if let Some(refusal) = preflight.refusal {
            return Err(refusal);
        }
        let subjects = subjects(concepts, &training.lessons)?;
        if subjects.iter().any(|subject| subject.trigger.class_word.is_empty()) {
            watch(Event::warning(
                "No class word was given (--class): the concept will be learnt more slowly and kept apart less well",
            ))?;
        }
        let tokens = training.lessons.iter().map(|lesson| &*lesson.token).collect::<Vec<_>>().join(" ");
        let mut context = adapter::Context { seed: training.seed, slot: 0, block: default_block(model) };
        let mut before = None;
        if training.method.takes_slot {
            let targets = target::select(settings.text("targets"), &model.layers)?;
            let narrowest = targets.iter().map(|&id| model.layer(id).input()).min().unwrap_or(0);
            let path = training.project.clone().unwrap_or_else(|| project::beside(&training.out));
            // Random columns are drawn anew for every number, so only slots run out.
            let basis = (training.method.build)(&method_settings, &context)?.basis();
            let runs_out = basis.is_some_and(|(basis, _)| basis.kind == BasisKind::Slots);
            let width = if runs_out { narrowest } else { usize::MAX };
            let old = Project::open(&path, context.block)?.slot_of(&training.out, &path).cloned();
            let (project, slot) = Project::claim(&path, context.block, &training.out, &tokens, training.slot, width)?;
            (context.slot, context.block) = (slot, project.block);
            let of = if runs_out { format!(" of {}", narrowest / project.block) } else { String::new() };
            watch(Event::note(format!("Slot {slot}{of} in {}", path.display())))?;
            before = Some((path, old));
        }
        let [memory, disk] = [preflight.estimate.total(), preflight.estimate.disk].map(words::bytes);
        watch(Event::note(format!("Memory: about {memory}; on the disk at most {disk}")))?;
        let block = context.block;
        let job = Job {
            model,
            subjects,
            template: template(model),
            method: training.method,
            method_settings,
            settings,
            context,
            out: training.out.clone(),
            resume: training.resume,
            stamp: training.stamp,
            cache: self.cache.as_ref().map(|folder| folder.join("latents")),
            wishes: training.wishes.clone(),
        };
        let trained = job.run(watch);
        if let (Err(_), Some((path, old))) = (&trained, before) {
            // The first error is the one to tell.
            let _ = match old {
                // The file and the saved state are still those of the old slot.
                Some(old) => {
                    Project::claim(&path, block, &training.out, &old.token, Some(old.number), usize::MAX).map(drop)
                }
                // A saved state, kept steps and the best so far need their slot again; without them, nothing was taught.
                None if train::has_left(&training.out) => Ok(()),
                None => Project::release(&path, block, &training.out).map(drop),
            };
        }
        trained
    }

    /// Reads a folder of pictures.
    pub fn concept(&self, folder: &Path) -> Result<Concept> {
        concept::open(folder)
    }
}

/// Merges adapters and writes the file. Only methods that look at pictures need an open device.
pub fn merge(merging: &Merging<'_>, watch: &mut Watch<'_>) -> Result<Combined> {
    let Merging { sources, method, settings, pictures, out } = merging;
    // What must not be merged is refused before anything is computed.
    let meeting = meeting(&sources.iter().map(|source| &source.file).collect::<Vec<_>>(), &device::cpu())?;
    let concepts = match (method.needs, pictures) {
        (Needs::Nothing, _) => Vec::new(),
        (Needs::ModelAndPictures, pictures) => seen(sources, pictures.as_ref())?,
    };
    let importance = |question: merge::Question, watch: &mut Watch<'_>| {
        let (Some(Pictured { session, model, .. }), Some(concept)) = (pictures, concepts[question.source]) else {
            return Err(Error::usage("A silent adapter has no pictures", "Raise its strength"));
        };
        let cache = session.cache.as_ref().map(|folder| folder.join("latents"));
        let (adapter, template) = (&sources[question.source].file, &template(model)[..]);
        let evidence = Evidence { model, adapter, concept, template, cache: cache.as_deref() };
        evidence.importance(question.draws, question.seed, watch)
    };
    let fingerprints =
        concepts.iter().map(|concept| concept.map(evidence::fingerprint).transpose()).collect::<Result<Vec<_>>>()?;
    let base = pictures.as_ref().map(|pictures| &pictures.model.hash);
    let evidence =
        merge::Evidence { record: json!({ "model": base, "sources": fingerprints }), importance: &importance };
    let evidence = (!concepts.is_empty()).then_some(&evidence);
    let (mut file, notes) = merge::merge(&Inputs { sources, evidence }, method, settings, watch)?;
    file.save(out)?;
    file.path.clone_from(out);
    Ok(Combined { file, notes, meeting })
}

/// The concept of each source; those that are heard must have one.
fn seen<'a>(sources: &[Source], pictures: Option<&'a Pictured<'_>>) -> Result<Vec<Option<&'a Concept>>> {
    let concept = |i: usize| pictures.and_then(|pictures| pictures.concepts.get(i)?.as_ref());
    if let Some(missing) = (0..sources.len()).find(|&i| concept(i).is_none() && !sources[i].is_silent()) {
        let n = missing + 1;
        return Err(Error::usage(
            format!("This merge looks at pictures of each concept, and adapter {n} has none"),
            format!("Add --evidence {n}=FOLDER with pictures it was taught with, and --model with the model"),
        )
        .at(&sources[missing].file.path));
    }
    Ok((0..sources.len()).map(concept).collect())
}

/// Each concept with its word.
fn subjects<'a>(concepts: &'a [Concept], lessons: &[Lesson]) -> Result<Vec<Subject<'a>>> {
    if concepts.is_empty() || concepts.len() != lessons.len() {
        let what = format!("There are {} concepts to teach and {} words for them", concepts.len(), lessons.len());
        return Err(Error::usage(what, "Give each concept a token of its own"));
    }
    check(lessons)?;
    let subject = |(concept, lesson): (&'a Concept, &Lesson)| {
        let class_word = lesson.class_word.clone().or_else(|| concept.class_word.clone()).unwrap_or_default();
        let trigger = Trigger::new(&lesson.token, &class_word)?;
        Ok(Subject { concept, trigger, repeats: lesson.repeats, weight: lesson.weight })
    };
    concepts.iter().zip(lessons).map(subject).collect()
}

/// How the model's captions read.
pub fn template(model: &StableDiffusion) -> String {
    model.readme.as_deref().and_then(concept::template_from_readme).unwrap_or_else(|| DEFAULT_TEMPLATE.into())
}

/// Columns of the shared basis a concept owns in a new project.
pub fn default_block(model: &StableDiffusion) -> usize {
    if config::is_small(model) { 8 } else { 16 }
}

/// The settings of a method and of its training; see [`field::both`].
pub fn settings(method: &Method, changes: &[(String, String)]) -> Result<(Settings, Settings)> {
    field::both(method.fields, config::FIELDS, changes)
}
