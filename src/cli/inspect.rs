//! `triptych inspect`

use std::process::ExitCode;

use crate::cli::{Shell, ranks_in_words};
use crate::engine::Result;
use crate::engine::inspect::{Report, inspect};
use crate::engine::words::counted;

#[derive(clap::Args)]
pub struct Args {
    /// A model (folder, single file or `starter`), an adapter file, a folder of pictures, or any file of a model
    path: String,
    /// Tell the buckets of pictures for this model, instead of Stable Diffusion at 512 pixels
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let report = inspect(&args.path, args.model.as_deref())?;
    shell.print(&report, || words(&report))?;
    Ok(ExitCode::SUCCESS)
}

fn words(report: &Report) -> String {
    match report {
        Report::Model {
            name,
            sha256,
            parameters,
            native_size: [width, height],
            prediction,
            caption,
            targets,
            block,
            capacity,
        } => {
            let parameters = parameters
                .iter()
                .map(|(part, n)| format!("{:.2} M in {part}", *n as f64 / 1e6))
                .collect::<Vec<_>>()
                .join(", ");
            let targets = targets.iter().map(|(name, n)| format!("\n    {name}: {n}")).collect::<String>();
            format!(
                "Model {name}\n  weights: {parameters}\n  pictures: {width}×{height}\n  predicts: {prediction}\n  captions: {caption}\n  \
                 slots: room for {capacity} concepts of {block} columns each\n  layers to train, by group:{targets}\n  sha256: {sha256}"
            )
        }
        Report::Adapter {
            path,
            method,
            family,
            base,
            tokens,
            token_layers,
            layers,
            ranks,
            dtype,
            parameters,
            bytes,
            ..
        } => {
            let unknown = || "not said".to_owned();
            let tokens = tokens
                .iter()
                .map(|(token, n)| match token_layers.get(token) {
                    Some(layers) => format!("{token} ({} in {layers} layers)", counted(*n, "per-layer vector")),
                    None => format!("{token} ({})", counted(*n, "vector")),
                })
                .collect::<Vec<_>>()
                .join(", ");
            let ranks = ranks_in_words(&ranks.iter().copied().collect());
            let mut text = format!(
                "Adapter {}\n  method: {}\n  made for: {}{}\n  words: {}\n  {layers} layers{ranks}, {parameters} numbers as {dtype}, {bytes} bytes",
                path.display(),
                method.clone().unwrap_or_else(unknown),
                base.clone().unwrap_or_else(unknown),
                family.map_or(String::new(), |family| format!(" ({family})")),
                if tokens.is_empty() { "none".into() } else { tokens },
            );
            text += &more(report);
            text
        }
        Report::Other { path, what, advice, tensors, dtype, bytes } => {
            let size = match tensors {
                0 => String::new(),
                n => format!("\n  {}, the first as {dtype}; {bytes} bytes", counted(*n, "tensor")),
            };
            format!("{what}: {}{size}\n  {advice}", path.display())
        }
        Report::Concept { name, class_word, pictures, captioned, masked, resolution, buckets, skipped } => {
            let skipped = skipped
                .iter()
                .map(|(path, why)| format!("\n  left out: {} — {why}", path.display()))
                .collect::<String>();
            let class = class_word.as_ref().map_or(String::new(), |word| format!(", class word “{word}”"));
            let masks = if *masked > 0 { format!(", {masked} with masks") } else { String::new() };
            let buckets = buckets
                .iter()
                .map(|([width, height], n)| format!("\n    {width}×{height}: {}", counted(*n, "picture")))
                .collect::<String>();
            format!(
                "Concept {name}: {pictures} pictures, {captioned} with captions{masks}{class}\n  \
                 buckets at {resolution} pixels (--set fit=bucket):{buckets}{skipped}"
            )
        }
    }
}

/// What there is to say of an adapter beyond its size.
fn more(report: &Report) -> String {
    let Report::Adapter { file, basis, slot, relative, norms, loads_in, .. } = report else { return String::new() };
    let mut text = String::new();
    if let Some(file) = file {
        text += &format!("\n  holds {}", file.words());
    }
    if *relative > 0 {
        let layers = counted(*relative, "layer");
        text +=
            &format!("\n  {layers} change the model's own weights: merging and measuring need convert --model M first");
    }
    if *norms > 0 {
        text += &format!("\n  {} of norms, which only merge --into can apply", counted(*norms, "difference"));
    }
    for (tool, fate) in loads_in {
        text += &format!("\n  loads in {tool}: {}", fate.words());
    }
    if let (Some(basis), Some(slot)) = (basis, slot) {
        text += &format!("\n  basis: {basis}, slot {slot}");
    }
    text
}
