//! `triptych train`

mod classifier;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Progress, Shell, field_value, ranks_in_words};
use crate::engine::adapter;
use crate::engine::session::{self, Training};
use crate::engine::train::configuration::{Configuration, Together, one, whole};
use crate::engine::train::import;
use crate::engine::train::presets::{self, Preset};
use crate::engine::vision;
use crate::engine::{Error, Result};

/// Where neither the command line nor a configuration says another.
const MODEL: &str = "starter";
const METHOD: &str = "orthogonal";

#[derive(clap::Args)]
pub struct Args {
    /// A folder in diffusers layout, a single file (.safetensors), of the family of SD 1.x, 2.x or SDXL, or `starter`, which
    /// is the default; with --data a classifier, as `triptych classify` takes it
    #[arg(long)]
    model: Option<String>,
    /// Folder of pictures, with or without captions; several are taught together into one file and one slot
    #[arg(long, value_name = "DIR")]
    concept: Vec<PathBuf>,
    /// Teach a classifier: folder with a folder of pictures for each class, named after it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["concept", "token", "class", "repeats", "weight", "project", "stamp"])]
    data: Option<PathBuf>,
    /// The new word that calls the concept up, `<sks>` if left out; with several concepts, one for each, in their order
    #[arg(long)]
    token: Vec<String>,
    /// What the concept is an example of: robot, person, chair …; with several, one for each or none
    #[arg(long, value_name = "WORD")]
    class: Vec<String>,
    /// How often the pictures of each of several concepts are shown for once of another's
    #[arg(long, value_name = "N")]
    repeats: Vec<usize>,
    /// Weight of the loss of each of several concepts
    #[arg(long, value_name = "F")]
    weight: Vec<f32>,
    /// Adapter method (`triptych methods adapters` lists them); `orthogonal` if left out. With --data also `probe`, which is
    /// the default: the head of the classifier alone
    #[arg(long, value_parser = method_name)]
    method: Option<String>,
    /// Change a field of the method or of training; may be repeated
    #[arg(long, value_name = "FIELD=VALUE", value_parser = field_value)]
    set: Vec<(String, String)>,
    /// Slot of the shared basis; the lowest free one if left out
    #[arg(long, value_name = "N")]
    slot: Option<usize>,
    /// Project file that hands out slots; `triptych.toml` beside --out if left out
    #[arg(long, value_name = "F.toml")]
    project: Option<PathBuf>,
    /// Short for --set steps=N
    #[arg(long, value_name = "N")]
    steps: Option<String>,
    /// Short for --set batch=N
    #[arg(long, value_name = "N")]
    batch: Option<String>,
    /// Short for --set lr=F
    #[arg(long, value_name = "F")]
    lr: Option<String>,
    /// Everything random in the run; 0 if left out
    #[arg(long)]
    seed: Option<u64>,
    /// Fields that go together, by what is wanted or by the GPU's memory: quick, usual, thorough, 6gb, 8gb, 12gb, 24gb
    #[arg(long, value_name = "NAME", value_parser = presets::preset)]
    preset: Option<&'static Preset>,
    /// A configuration of another program: sd-scripts (TOML), `kohya_ss` or `OneTrainer` (JSON). What does not map is named
    #[arg(long, value_name = "F")]
    import: Option<PathBuf>,
    /// Everything from a file: `concept = "robot"`, `rank = 4` and so on, one line for each flag and field; what is said
    /// on the command line counts before it, and both before --import and --preset
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,
    /// Print the configuration that makes this training again, and train nothing
    #[arg(long)]
    print_config: bool,
    /// Go on from the saved state of the same command
    #[arg(long)]
    resume: bool,
    /// Write time and version into the file (without it, equal inputs make equal bytes)
    #[arg(long)]
    stamp: bool,
    /// The adapter file to write
    #[arg(long, value_name = "F.safetensors")]
    out: Option<PathBuf>,
}

/// Model, pictures, and what is to be done with them.
pub struct Asked {
    pub model: String,
    pub concepts: Vec<PathBuf>,
    pub training: Training,
}

impl Args {
    /// What is asked for: by the preset, what is imported, the file and the command line, each over those before it.
    fn configuration(&self) -> Result<Configuration> {
        let mut asked = Configuration::default();
        if let Some(preset) = self.preset {
            preset.changes.iter().for_each(|(name, text)| asked.set(name, text));
        }
        if let Some(path) = &self.import {
            let imported = import::open(path)?;
            imported.left_out.iter().for_each(|sentence| eprintln!("{}: {sentence}", imported.from));
            asked = asked.overridden_by(imported.configuration);
        }
        if let Some(path) = &self.config {
            asked = asked.overridden_by(Configuration::read(path)?);
        }
        let mut said = Configuration {
            model: self.model.clone(),
            concept: self.concept.first().cloned(),
            token: self.token.first().cloned(),
            class: self.class.first().cloned(),
            repeats: self.repeats.first().copied(),
            weight: self.weight.first().copied(),
            together: self.together()?,
            data: self.data.clone(),
            method: self.method.clone(),
            slot: self.slot,
            project: self.project.clone(),
            seed: self.seed,
            out: self.out.clone(),
            stamp: self.stamp,
            ..Configuration::default()
        };
        let shorts = [("steps", &self.steps), ("batch", &self.batch), ("lr", &self.lr)];
        for (name, text) in shorts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
            said.set(name, text);
        }
        self.set.iter().for_each(|(name, text)| said.set(name, text));
        Ok(asked.overridden_by(said))
    }

    /// Checked: a misspelt field is told before anything is loaded.
    pub fn asked(&self) -> Result<Asked> {
        let configuration = self.configuration()?;
        if configuration.data.is_some() {
            return Err(Error::usage(
                "Teaching a classifier (--data) cannot wait in the queue",
                "Start it with triptych train",
            ));
        }
        let method = adapter::method(configuration.method.as_deref().unwrap_or(METHOD))?;
        let changes = configuration.changes()?;
        session::settings(method, &changes)?;
        let (concepts, lessons): (Vec<_>, Vec<_>) = session::lessons(&configuration).into_iter().unzip();
        if concepts.is_empty() {
            return Err(missing("concept", "pictures"));
        }
        session::check(&lessons)?;
        Ok(Asked {
            model: configuration.model.unwrap_or_else(|| MODEL.into()),
            concepts,
            training: Training {
                lessons,
                method,
                changes,
                slot: configuration.slot,
                project: configuration.project,
                seed: configuration.seed.unwrap_or(0),
                out: configuration.out.ok_or_else(|| missing("out", "adapter.safetensors"))?,
                resume: self.resume,
                stamp: configuration.stamp,
                wishes: None,
            },
        })
    }

    /// The second concept and those after it: what is given once for each is given in their order.
    fn together(&self) -> Result<Vec<Together>> {
        let n = self.concept.len();
        let given = [
            ("token", self.token.len(), false),
            ("class", self.class.len(), true),
            ("repeats", self.repeats.len(), true),
            ("weight", self.weight.len(), true),
        ];
        let fits = |m: usize, may_lack: bool| m == n || n <= 1 && m <= 1 || may_lack && m == 0;
        if let Some((name, found, _)) = given.into_iter().find(|&(_, m, may_lack)| !fits(m, may_lack)) {
            return Err(Error::usage(
                format!("There are {n} concepts and --{name} is given {found} times"),
                format!("Give --{name} once for each concept, in the same order"),
            ));
        }
        let other = |i: usize| Together {
            concept: self.concept[i].clone(),
            token: self.token[i].clone(),
            class: self.class.get(i).cloned(),
            repeats: self.repeats.get(i).copied().unwrap_or_else(one),
            weight: self.weight.get(i).copied().unwrap_or_else(whole),
        };
        Ok((1..n).map(other).collect())
    }
}

/// A name that `--method` takes.
fn method_name(name: &str) -> Result<String> {
    vision::job::method(name).map(|_| name.to_owned())
}

fn missing(flag: &str, example: &str) -> Error {
    Error::usage(
        format!("--{flag} is missing"),
        format!("Add --{flag} {example}, or a line {flag} = \"{example}\" to the file of --config"),
    )
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let configuration = args.configuration()?;
    if args.print_config {
        let text = configuration.text()?;
        shell.print(&json!({ "configuration": configuration }), || text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(data) = &configuration.data {
        return classifier::run(&configuration, data, args.resume, shell);
    }
    let Asked { model: model_name, concepts, training } = args.asked()?;
    let words: Vec<&str> = training.lessons.iter().map(|lesson| lesson.token.as_str()).collect();
    let mut progress = Progress::new(shell.json);
    let session = shell.session(&mut progress)?;
    let model = session.open_model(&model_name, &mut progress.watch())?;
    let concepts = concepts.iter().map(|folder| session.concept(folder)).collect::<Result<Vec<_>>>()?;
    let start = std::time::Instant::now();
    let trained = session.train(&model, &concepts, &training, &mut progress.watch())?;
    let seconds = start.elapsed().as_secs_f64();
    let (first, last) = (trained.losses.first(), trained.losses.last());
    let result = json!({
        "out": training.out,
        "steps": trained.losses.len(),
        "loss": [first, last],
        "seconds": seconds,
        "parameters": trained.parameters,
        "layers": trained.file.modules().len(),
    });
    shell.print(&result, || {
        format!(
            "{}: {} layers{}, word {} — use it with\n  triptych sample --model {} --adapter {} --prompt \"… {} {}\" --out picture.png",
            training.out.display(),
            trained.file.modules().len(),
            ranks_in_words(&trained.file.ranks()),
            words.join(", "),
            model_name,
            training.out.display(),
            words[0],
            training.lessons[0].class_word.clone().unwrap_or_default(),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
