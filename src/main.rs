//! `triptych`: parse, log, run.

use std::process::ExitCode;

use clap::Parser as _;

/// A step makes and drops hundreds of tensors; a system's allocator gives their pages back each time and clears them
/// anew, which cost a tenth of a training step and a fifth of a sampling step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let began = std::time::Instant::now();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("TRIPTYCH_LOG")
                .unwrap_or_else(|_| "triptych=warn,triptych::ui=info,error".into()),
        )
        .init();
    triptych::cli::Cli::parse().run(began)
}
