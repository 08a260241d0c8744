//! `triptych spectrum`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{self, Shell};
use crate::engine::Result;
use crate::engine::spectrum::adapter;

#[derive(clap::Args)]
pub struct Args {
    /// The adapter file
    adapter: PathBuf,
    /// The model it was made for, where its changes depend on the model's own weights
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let spectra = adapter::spectra(&cli::adapter(&args.adapter, args.model.as_deref())?)?;
    let energy: f64 = spectra.iter().map(|layer| layer.energy).sum();
    // Weighted by energy: an idle layer says nothing about the adapter.
    let effective = if energy > 0.0 {
        spectra.iter().map(|layer| layer.effective_rank * layer.energy).sum::<f64>() / energy
    } else {
        0.0
    };
    let result = json!({ "energy": energy, "effective_rank": effective, "layers": spectra });
    shell.print(&result, || {
        let mut lines =
            vec![format!("{} layers, ‖ΔW‖ {:.4}, effective rank {effective:.2}", spectra.len(), energy.sqrt())];
        for layer in &spectra {
            let values = layer.singular_values.iter().map(|s| format!("{s:.3}")).collect::<Vec<_>>().join(" ");
            lines.push(format!(
                "{}\n    effective rank {:.2} of {}, stable rank {:.2}, 99 % of the energy in {}; σ {values}",
                layer.layer, layer.effective_rank, layer.rank, layer.stable_rank, layer.rank_for_99
            ));
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
