//! `triptych overlap`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{self, Progress, Shell};
use crate::engine::merge::certificate;
use crate::engine::spectrum::{self, adapter};
use crate::engine::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// Two or more adapter files
    #[arg(required = true, num_args = 2..)]
    adapters: Vec<PathBuf>,
    /// Every layer too
    #[arg(long)]
    layers: bool,
    /// The model they were made for, where their changes depend on the model's own weights
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let files =
        args.adapters.iter().map(|path| cli::adapter(path, args.model.as_deref())).collect::<Result<Vec<_>>>()?;
    let deltas = files.iter().map(adapter::deltas).collect::<Result<Vec<_>>>()?;
    // Different bases have no certificate, but they can be measured.
    let certificate = certificate::certify(&files.iter().collect::<Vec<_>>()).map_err(|error: Error| error.what);
    let mut lines = Vec::new();
    let mut pairs = Vec::new();
    let device = shell.for_numbers(&mut Progress::new(shell.json))?;
    let mut overlaps = spectrum::overlaps(&deltas, &device)?.into_iter();
    for j in 1..files.len() {
        for (i, pair) in (0..j).zip(&mut overlaps) {
            lines.push(format!(
                "{} × {}\n  {}\n  ‖ΔWᵢΔWⱼᵀ‖ at most {:.1e} of ‖ΔWᵢ‖‖ΔWⱼ‖; cosine {:+.3}; read sides share {:.3} ({:.1} × chance), write sides {:.3} ({:.1} × chance)",
                args.adapters[i].display(),
                args.adapters[j].display(),
                pair.sentence,
                pair.product_max,
                pair.cosine,
                pair.read.observed,
                pair.read.times_chance,
                pair.write.observed,
                pair.write.times_chance,
            ));
            if args.layers {
                lines.extend(pair.layers.iter().map(|l| {
                    format!(
                        "    {}: cosine {:+.3}, product {:.1e}, write {:.3}",
                        l.layer, l.cosine, l.product, l.write.observed
                    )
                }));
            }
            pairs.push(json!({ "first": args.adapters[i], "second": args.adapters[j], "overlap": pair }));
        }
    }
    match &certificate {
        Ok(Some(certificate)) => lines.push(format!("Certificate ({}): {}", certificate.basis, certificate.sentence)),
        Ok(None) => lines.push("No certificate: not all of them are orthogonal adapters".into()),
        Err(why) => lines.push(format!("No certificate: {why}")),
    }
    let certificate = certificate.ok().flatten();
    shell.print(&json!({ "pairs": pairs, "certificate": certificate }), || lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}
