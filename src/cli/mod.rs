//! The command line: one file per command. Results go to stdout, everything said on the way to stderr.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod classify;
mod convert;
mod demo;
mod doctor;
mod inspect;
mod merge;
mod methods;
mod overlap;
mod progress;
mod queue;
mod sample;
mod spectrum;
mod train;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::Device;
use clap::{Parser, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use crate::engine::adapter::mount::Strength;
use crate::engine::device::{self, Choice};
use crate::engine::error::Kind;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::model::stored::Stored;
use crate::engine::model::{Precision, StableDiffusion};
use crate::engine::session::Session;
use crate::engine::{Error, Result};
use crate::ui::{self, Start};

pub use progress::Progress;

/// Teach an image model new concepts and combine them without the concepts spoiling each other.
///
/// Without a command, the window opens.
///
/// Exit codes: 0 done, 1 failed with a sentence, 2 a wrong command, 130 stopped by Ctrl+C.
#[derive(Parser)]
#[command(name = "triptych", version, about, long_about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What computes: auto (a real GPU, else the CPU), cpu, gpu, or gpu:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: Choice,
    /// What a model's weights are held as: auto (f16 where the file has f16 and the model is large, else f32), f32, or f16;
    /// everything is computed in f32
    #[arg(long, global = true, value_name = "PRECISION")]
    precision: Option<Precision>,
    /// Print one JSON object as the result, and progress as one JSON object a line, on stdout
    #[arg(long, global = true)]
    json: bool,
    /// Without a command: the project the window opens on; the last one if left out
    #[arg(long, value_name = "F.toml")]
    project: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The main job, nothing asked: two concepts, orthogonal slots, a merge, pictures and a report
    Demo(demo::Args),
    /// Tell what an image classifier sees in pictures
    Classify(classify::Args),
    /// Say what a file or folder is: a model, an adapter or a concept
    Inspect(inspect::Args),
    /// Make pictures from a prompt
    Sample(sample::Args),
    /// Teach a model a concept, or a classifier its classes, and write it as an adapter file
    Train(train::Args),
    /// Line up trainings and let them run one after the other
    Queue(queue::Args),
    /// Merge adapters into one file
    Merge(merge::Args),
    /// Write an adapter as a file of another tool
    Convert(convert::Args),
    /// Singular values and effective ranks of an adapter, layer by layer
    Spectrum(spectrum::Args),
    /// How much adapters get in each other's way, pair by pair
    Overlap(overlap::Args),
    /// List the methods with all their fields
    Methods(methods::Args),
    /// Examine this machine: adapters, caches, whether its device computes rightly and how fast
    Doctor(doctor::Args),
}

/// What every command is given besides its own arguments.
struct Shell {
    device: Choice,
    precision: Precision,
    json: bool,
}

impl Cli {
    pub fn run(self, began: Instant) -> ExitCode {
        let shell = Shell { device: self.device, precision: self.precision.unwrap_or_default(), json: self.json };
        let Some(command) = self.command else { return window(self.project, self.device, self.precision, began) };
        let work = || match command {
            Command::Demo(args) => demo::run(&args, &shell),
            Command::Classify(args) => classify::run(&args, &shell),
            Command::Inspect(args) => inspect::run(&args, &shell),
            Command::Sample(args) => sample::run(&args, &shell),
            Command::Train(args) => train::run(&args, &shell),
            Command::Queue(args) => queue::run(&args, &shell),
            Command::Merge(args) => merge::run(&args, &shell),
            Command::Convert(args) => convert::run(&args, &shell),
            Command::Spectrum(args) => spectrum::run(&args, &shell),
            Command::Overlap(args) => overlap::run(&args, &shell),
            Command::Methods(args) => methods::run(&args, &shell),
            Command::Doctor(args) => doctor::run(&args, &shell),
        };
        let result = device::on_workers("computing", device::cores(), work).and_then(|result| result);
        match result {
            Ok(code) => code,
            Err(error) => {
                if shell.json {
                    // The sentence goes to stderr too.
                    say(&json!({ "error": sentence(&error) }).to_string()).ok();
                }
                eprintln!("{error}");
                ExitCode::from(match error.kind {
                    Kind::Failed => 1,
                    Kind::Usage => 2,
                    Kind::Cancelled => 130,
                })
            }
        }
    }
}

/// Opens the window.
fn window(project: Option<PathBuf>, device: Choice, precision: Option<Precision>, began: Instant) -> ExitCode {
    let preferences = dirs::config_dir().map(|folder| folder.join("triptych").join("window.toml"));
    match ui::run(Start { project, device, precision, preferences, queue: None, began }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Shell {
    /// Opens the device.
    fn session(&self, progress: &mut Progress) -> Result<Session> {
        let mut session = Session::open(self.device, &mut progress.watch())?;
        session.precision = self.precision;
        Ok(session)
    }

    /// Where adapters are measured and added into weights: that takes a CPU seconds, less than opening a GPU and moving
    /// everything there and back, so a GPU is taken where it was named.
    fn for_numbers(&self, progress: &mut Progress) -> Result<Device> {
        match self.device {
            Choice::Gpu(_) => Ok(self.session(progress)?.device.device),
            Choice::Auto | Choice::Cpu => Ok(device::cpu()),
        }
    }

    /// The result: as JSON, or in words.
    fn print(&self, result: &impl Serialize, words: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            let text = serde_json::to_string(result)
                .map_err(|e| Error::new(format!("The result cannot be written ({e})"), "Leave out --json"))?;
            say(&text)
        } else {
            say(words().trim_end())
        }
    }
}

/// A line on stdout. That nobody reads it any more (`| head`) is no fault, where `println!` would panic.
fn say(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(format!("The result could not be printed: {e}"), "Free some disk space, or print elsewhere"))
        }
        _ => Ok(()),
    }
}

/// An error as JSON.
fn sentence(error: &Error) -> Value {
    json!({ "what": error.what, "do": error.advice, "path": error.path })
}

/// ` of rank 8`, ` of rank 4 to 8`; nothing where no layer has factors.
fn ranks_in_words(ranks: &BTreeSet<usize>) -> String {
    match (ranks.first(), ranks.last()) {
        (Some(least), Some(most)) if least == most => format!(" of rank {most}"),
        (Some(least), Some(most)) => format!(" of rank {least} to {most}"),
        _ => String::new(),
    }
}

/// An adapter file; what depends on a model's own weights is worked out for `model`, where one is named.
fn adapter(path: &Path, model: Option<&str>) -> Result<LoraFile> {
    let file = LoraFile::open(path)?;
    match model.filter(|_| !file.relatives.is_empty()) {
        Some(model) => {
            let model = Stored::open(&StableDiffusion::folder(model))?;
            file.on(|module| model.base(module))
        }
        None => Ok(file),
    }
}

/// `FILE[:strength[:text-strength]]`.
#[derive(Clone, Debug, PartialEq)]
struct AdapterArg {
    path: PathBuf,
    strength: Strength,
}

impl std::str::FromStr for AdapterArg {
    type Err = Error;

    /// Cuts at the last colons, and only where a number follows: paths may hold colons themselves.
    fn from_str(text: &str) -> Result<Self> {
        let cut = |text: &str| -> Option<(String, f32)> {
            let (rest, number) = text.rsplit_once(':')?;
            let number = number.parse::<f32>().ok().filter(|x| x.is_finite())?;
            Some((rest.to_owned(), number))
        };
        let (path, strength) = match cut(text) {
            None => (text.to_owned(), Strength::default()),
            Some((rest, last)) => match cut(&rest) {
                None => (rest, Strength::uniform(last)),
                Some((path, unet)) => (path, Strength { unet, text: last, ..Strength::default() }),
            },
        };
        if path.is_empty() {
            return Err(Error::usage(
                format!("“{text}” names no file"),
                "Write FILE, FILE:strength or FILE:strength:text-strength",
            ));
        }
        Ok(Self { path: path.into(), strength })
    }
}

/// `field=value`.
fn field_value(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Error::usage(format!("“{text}” is not field=value"), "Write for example --set rank=4"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn strengths_are_cut_off_the_end() {
        let parse = |text: &str| text.parse::<AdapterArg>().unwrap();
        assert_eq!(parse("a.safetensors").strength, Strength::default());
        assert_eq!(parse("C:\\a:0.5"), AdapterArg { path: "C:\\a".into(), strength: Strength::uniform(0.5) });
        let both = parse("a:b:-0.25:1e-1");
        assert_eq!((both.path.to_str(), both.strength.unet, both.strength.text), (Some("a:b"), -0.25, 0.1));
        assert_eq!(parse("a:nan").path.to_str(), Some("a:nan"));
        assert!(":1".parse::<AdapterArg>().is_err());
    }
}
