//! `triptych classify`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Progress, Shell};
use crate::engine::Result;
use crate::engine::vision::classifier::EMBEDDED;
use crate::engine::vision::classify::{Seen, classify};
use crate::engine::vision::{Adapted, Classifier, Learnt};

#[derive(clap::Args)]
pub struct Args {
    /// A folder in Hugging Face layout (ViT or ResNet), a file of torchvision's `mobilenet_v2`, or `mobilenet`: that one with
    /// its ImageNet weights, which comes with the program
    #[arg(long, default_value = EMBEDDED)]
    model: String,
    /// What the classifier has learnt with `triptych train --data`: a file, or a folder in PEFT's layout
    #[arg(long, value_name = "F")]
    adapter: Option<PathBuf>,
    /// How many classes to name for each picture
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Pictures
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let mut progress = Progress::new(shell.json);
    let session = shell.session(&mut progress)?;
    let model = Classifier::open(&args.model, &session.device.device)?;
    let adapted = match &args.adapter {
        Some(path) => Adapted::with(&model, &Learnt::open(path, &model)?)?,
        None => Adapted::plain(&model),
    };
    let pictures = classify(&adapted, &args.images, args.top, &mut progress.watch())?;
    shell.print(&json!({ "model": model.name, "pictures": pictures }), || {
        pictures.iter().map(words).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn words(Seen { path, top }: &Seen) -> String {
    let guesses = top.iter().map(|guess| format!("\n  {:5.1} %  {}", 100.0 * guess.probability, guess.class));
    format!("{}{}", path.display(), guesses.collect::<String>())
}
