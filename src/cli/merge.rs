//! `triptych merge`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{AdapterArg, Shell, field_value};
use crate::engine::field::Settings;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::names;
use crate::engine::merge::{self, Method, Source, certificate};
use crate::engine::spectrum::{self, adapter};
use crate::engine::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// Adapter files, each with its strength
    #[arg(required = true, value_name = "F[:strength[:text-strength]]")]
    adapters: Vec<AdapterArg>,
    /// Merge method (`triptych methods merges` lists them)
    #[arg(long, default_value = "sum", value_parser = merge::method)]
    method: &'static Method,
    /// Strengths of single blocks: lines such as `"down_blocks.0" = 0.5`, for all adapters or under [1], [2] …
    #[arg(long, value_name = "F.toml")]
    blocks: Option<PathBuf>,
    /// Change a field of the method; may be repeated
    #[arg(long, value_name = "FIELD=VALUE", value_parser = field_value)]
    set: Vec<(String, String)>,
    /// The adapter file to write
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let settings =
        Settings::new(args.method.fields, args.set.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
    let mut sources = args
        .adapters
        .iter()
        .map(|adapter| Ok(Source { file: LoraFile::open(&adapter.path)?, strength: adapter.strength.clone() }))
        .collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.blocks {
        set_blocks(path, &mut sources)?;
    }
    let files: Vec<&LoraFile> = sources.iter().map(|source| &source.file).collect();
    // Mixed bases are refused before anything is written.
    let certificate = certificate::certify(&files)?;
    let deltas = files.iter().map(|file| adapter::deltas(file)).collect::<Result<Vec<_>>>()?;
    let mut overlaps = Vec::new();
    for j in 1..files.len() {
        for i in 0..j {
            overlaps.push((i, j, spectrum::overlap(&deltas[i], &deltas[j])?));
        }
    }
    let merged = merge::merge(&sources, args.method, &settings)?;
    merged.save(&args.out)?;

    let pairs: Vec<_> = overlaps
        .iter()
        .map(|(i, j, pair)| json!({ "first": files[*i].path, "second": files[*j].path, "product_max": pair.product_max, "cosine": pair.cosine, "sentence": pair.sentence }))
        .collect();
    let ranks = merged.ranks();
    let result = json!({ "out": args.out, "layers": merged.layers.len(), "ranks": ranks, "tokens": merged.tokens.keys().collect::<Vec<_>>(), "certificate": certificate, "overlap": pairs });
    shell.print(&result, || {
        let mut lines = vec![format!(
            "{}: {} adapters, {} layers of rank {}, words {}",
            args.out.display(),
            sources.len(),
            merged.layers.len(),
            ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join("/"),
            merged.tokens.keys().cloned().collect::<Vec<_>>().join(" "),
        )];
        if let Some(certificate) = &certificate {
            let title = if certificate.disjoint { "Certificate" } else { "No certificate" };
            lines.push(format!("{title} ({}): {}", certificate.basis, certificate.sentence));
        }
        for (i, j, pair) in &overlaps {
            lines.push(format!(
                "{} × {}: {} (measured overlap {:.1e})",
                files[*i].path.display(),
                files[*j].path.display(),
                pair.sentence,
                pair.product_max
            ));
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Block strengths for all adapters at the top level, for adapter N (from 1) in the table `[N]`.
fn set_blocks(path: &Path, sources: &mut [Source]) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    let broken = |what: String| Error::new(what, "Write lines such as \"down_blocks.0\" = 0.5").at(path);
    let table: toml::Table =
        toml::from_str(&text).map_err(|e| broken(format!("The block strengths cannot be read: {}", e.message())))?;
    let known: std::collections::BTreeSet<String> =
        sources.iter().flat_map(|source| source.file.layers.keys()).map(|module| names::block(module)).collect();
    let strength = |name: &str, value: &toml::Value| -> Result<f32> {
        if !known.contains(name) {
            let list = known.iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::usage(format!("There is no block “{name}”"), format!("Choose among {list}")).at(path));
        }
        let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64)).filter(|x| x.is_finite());
        number.map(|x| x as f32).ok_or_else(|| broken(format!("The strength of {name} is not a number")))
    };
    let (mut common, mut single) = (BTreeMap::new(), Vec::new());
    for (name, value) in &table {
        match (value, name.parse::<usize>()) {
            (toml::Value::Table(blocks), Ok(number)) if (1..=sources.len()).contains(&number) => {
                single.push((number - 1, blocks));
            }
            (toml::Value::Table(_), _) => return Err(broken(format!("[{name}] is not the number of an adapter"))),
            (value, _) => {
                common.insert(name.clone(), strength(name, value)?);
            }
        }
    }
    for source in &mut *sources {
        source.strength.blocks.clone_from(&common);
    }
    for (index, blocks) in single {
        for (name, value) in blocks {
            sources[index].strength.blocks.insert(name.clone(), strength(name, value)?);
        }
    }
    Ok(())
}
