//! `triptych`: parse, log, run.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let began = std::time::Instant::now();
    triptych::engine::pages::keep();
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
