//! `triptych train`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Progress, Shell, field_value, ranks_in_words};
use crate::engine::adapter::{self, Method};
use crate::engine::session::{self, Lesson, Session, Training};
use crate::engine::{Error, Result, field};

#[derive(clap::Args)]
pub struct Args {
    /// A folder in diffusers layout, a single file (.safetensors) of the SD 1.x family, or `starter`
    #[arg(long, default_value = "starter")]
    pub model: String,
    /// Folder of pictures, with or without captions; several are taught together into one file and one slot
    #[arg(long, value_name = "DIR", required = true)]
    pub concept: Vec<PathBuf>,
    /// The new word that calls the concept up; with several concepts, one for each, in their order
    #[arg(long, default_value = "<sks>")]
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
    /// Adapter method (`triptych methods adapters` lists them)
    #[arg(long, default_value = "orthogonal", value_parser = adapter::method)]
    method: &'static Method,
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
    /// Everything random in the run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fields from a file (`field = value` lines); --set and the shorts override it
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,
    /// Go on from the saved state of the same command
    #[arg(long)]
    resume: bool,
    /// Write time and version into the file (without it, equal inputs make equal bytes)
    #[arg(long)]
    stamp: bool,
    /// The adapter file to write
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

impl Args {
    /// What is asked for. A misspelt field is told before anything is loaded.
    pub fn training(&self) -> Result<Training> {
        let mut changes = match &self.config {
            Some(path) => config_file(path)?,
            None => Vec::new(),
        };
        let shorts = [("steps", &self.steps), ("batch", &self.batch), ("lr", &self.lr)];
        changes.extend(shorts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
        changes.extend(self.set.iter().cloned());
        session::settings(self.method, &changes)?;
        Ok(Training {
            lessons: self.lessons()?,
            method: self.method,
            changes,
            slot: self.slot,
            project: self.project.clone(),
            seed: self.seed,
            out: self.out.clone(),
            resume: self.resume,
            stamp: self.stamp,
            wishes: None,
        })
    }

    /// One for each concept: what is given once for each is given in their order.
    fn lessons(&self) -> Result<Vec<Lesson>> {
        let n = self.concept.len();
        let given = [
            ("token", self.token.len(), false),
            ("class", self.class.len(), true),
            ("repeats", self.repeats.len(), true),
            ("weight", self.weight.len(), true),
        ];
        if let Some((name, found, _)) = given.into_iter().find(|&(_, m, may_lack)| m != n && !(may_lack && m == 0)) {
            return Err(Error::usage(
                format!("There are {n} concepts and --{name} is given {found} times"),
                format!("Give --{name} once for each concept, in the same order"),
            ));
        }
        let lesson = |i: usize| {
            let plain = Lesson::new(&self.token[i], self.class.get(i).cloned());
            Lesson {
                repeats: self.repeats.get(i).copied().unwrap_or(plain.repeats),
                weight: self.weight.get(i).copied().unwrap_or(plain.weight),
                ..plain
            }
        };
        Ok((0..n).map(lesson).collect())
    }
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let training = args.training()?;
    let mut progress = Progress::new(shell.json);
    let session = Session::open(shell.device, &mut progress.watch())?;
    let model = session.model(&args.model)?;
    let concepts = args.concept.iter().map(|folder| session.concept(folder)).collect::<Result<Vec<_>>>()?;
    let start = std::time::Instant::now();
    let trained = session.train(&model, &concepts, &training, &mut progress.watch())?;
    let seconds = start.elapsed().as_secs_f64();
    let (first, last) = (trained.losses.first(), trained.losses.last());
    let result = json!({
        "out": args.out,
        "steps": trained.losses.len(),
        "loss": [first, last],
        "seconds": seconds,
        "parameters": trained.parameters,
        "layers": trained.file.modules().len(),
    });
    shell.print(&result, || {
        format!(
            "{}: {} layers{}, word {} — use it with\n  triptych sample --model {} --adapter {} --prompt \"… {} {}\" --out picture.png",
            args.out.display(),
            trained.file.modules().len(),
            ranks_in_words(&trained.file.ranks()),
            args.token.join(", "),
            args.model,
            args.out.display(),
            args.token[0],
            args.class.first().map_or("", String::as_str),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A flat TOML table of fields.
fn config_file(path: &std::path::Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| {
        Error::new(format!("The configuration cannot be read: {}", e.message()), "Write lines such as rank = 4")
            .at(path)
    })?;
    field::changes(&table).map_err(|e| e.at(path))
}
