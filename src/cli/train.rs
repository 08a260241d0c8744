//! `triptych train`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Progress, Shell, field_value, ranks_in_words};
use crate::engine::adapter::{self, Method};
use crate::engine::session::{self, Session, Training};
use crate::engine::{Error, Result, field};

#[derive(clap::Args)]
pub struct Args {
    /// A folder in diffusers layout, a single file (.safetensors) of the SD 1.x family, or `starter`
    #[arg(long, default_value = "starter")]
    pub model: String,
    /// Folder of pictures, with or without captions
    #[arg(long, value_name = "DIR")]
    pub concept: PathBuf,
    /// The new word that calls the concept up
    #[arg(long, default_value = "<sks>")]
    token: String,
    /// What the concept is an example of: robot, person, chair …
    #[arg(long, value_name = "WORD")]
    class: Option<String>,
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
            token: self.token.clone(),
            class_word: self.class.clone(),
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
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let training = args.training()?;
    let mut progress = Progress::new(shell.json);
    let session = Session::open(shell.device, &mut progress.watch())?;
    let model = session.model(&args.model)?;
    let concept = session.concept(&args.concept)?;
    let start = std::time::Instant::now();
    let trained = session.train(&model, &concept, &training, &mut progress.watch())?;
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
            args.token,
            args.model,
            args.out.display(),
            args.token,
            args.class.clone().unwrap_or_default(),
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
