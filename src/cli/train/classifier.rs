//! `triptych train --data`

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::missing;
use crate::cli::{Progress, Shell};
use crate::engine::Result;
use crate::engine::adapter::Context;
use crate::engine::train::configuration::Configuration;
use crate::engine::vision::classifier::EMBEDDED;
use crate::engine::vision::dataset::DataSet;
use crate::engine::vision::job::{self, Job};
use crate::engine::vision::{Classifier, probe};

/// Columns of the shared basis that a slot owns: the narrowest layers of small networks read 16.
const BLOCK: usize = 8;

pub fn run(asked: &Configuration, data: &Path, resume: bool, shell: &Shell) -> Result<ExitCode> {
    let method = job::method(asked.method.as_deref().unwrap_or(probe::NAME))?;
    let (method_settings, settings) = job::settings(method, &asked.changes()?)?;
    let out = asked.out.clone().ok_or_else(|| missing("out", "classes.safetensors"))?;
    let name = asked.model.as_deref().unwrap_or(EMBEDDED);
    let mut progress = Progress::new(shell.json);
    let session = shell.session(&mut progress)?;
    let model = Classifier::open(name, &session.device.device)?;
    let data = DataSet::open(data)?;
    let context = Context { seed: asked.seed.unwrap_or(0), slot: asked.slot.unwrap_or(0), block: BLOCK };
    let job = Job { model: &model, data: &data, method, method_settings, settings, context, out, resume };
    let start = Instant::now();
    let taught = job.run(&mut progress.watch())?;
    let (confusion, picture) = taught.confusion.as_ref().map(|(confusion, picture)| (confusion, picture)).unzip();
    let result = json!({
        "out": job.out,
        "steps": taught.losses.len(),
        "loss": [taught.losses.first(), taught.losses.last()],
        "seconds": start.elapsed().as_secs_f64(),
        "parameters": taught.parameters,
        "layers": taught.layers,
        "classes": data.classes,
        "accuracy": confusion.map(crate::engine::vision::confusion::Confusion::accuracy),
        "confusion": confusion.map(|confusion| &confusion.counts),
        "picture": picture,
    });
    shell.print(&result, || {
        format!(
            "{}: {} classes — use it with\n  triptych classify --model {name} --adapter {} picture.png",
            job.out.display(),
            data.classes.len(),
            job.out.display(),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
