//! `triptych merge`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{self, AdapterArg, Progress, Shell, field_value, ranks_in_words};
use crate::engine::concept::{self, Concept};
use crate::engine::export;
use crate::engine::field::Settings;
use crate::engine::io::names;
use crate::engine::merge::{self, Method, Needs, Promise, Source, note};
use crate::engine::model::StableDiffusion;
use crate::engine::project::Desk;
use crate::engine::session::{self, Combined, Merging, Pictured};
use crate::engine::words::counted;
use crate::engine::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// Adapter files, each with its strength
    #[arg(required_unless_present = "recipe", value_name = "F[:strength[:text-strength]]")]
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
    /// For methods that look at pictures, and for adapters whose changes depend on the model's own weights: `starter`, a
    /// folder in diffusers layout, or a single file
    #[arg(long, default_value = "starter", value_name = "MODEL")]
    model: String,
    /// For methods that look at pictures: a folder with the concept of adapter N, counted from 1; one for each
    #[arg(long, value_name = "N=DIR", value_parser = field_value)]
    evidence: Vec<(String, String)>,
    /// Adapters, strengths, method and fields from a recipe that the window saved
    #[arg(long, value_name = "F.toml", conflicts_with_all = ["adapters", "method", "set", "blocks"])]
    recipe: Option<PathBuf>,
    /// Add the adapters into the weights of this model instead (`starter`, a folder in diffusers layout, or a single file):
    /// --out is then the new model's folder, or its single file where the name ends in .safetensors
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["method", "set", "evidence"])]
    into: Option<String>,
    /// The adapter file to write
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let (method, settings, sources) = asked(args)?;
    if let Some(model) = &args.into {
        return into(model, &sources, args, shell);
    }
    let concepts = concepts(args, method, sources.len())?;
    let mut progress = Progress::new(shell.json);
    // Only what looks at pictures needs a device and a model.
    let opened = match concepts.iter().any(Option::is_some) {
        true => {
            let session = shell.session(&mut progress)?;
            let model = session.open_model(&args.model, &mut progress.watch())?;
            Some((session, model))
        }
        false => None,
    };
    let pictures = opened.as_ref().map(|(session, model)| Pictured { session, model, concepts });
    let merging = Merging { sources, method, settings, pictures, out: args.out.clone() };
    let combined = session::merge(&merging, &mut progress.watch())?;
    shell.print(&as_json(&merging, &combined), || in_words(&merging, &combined))?;
    Ok(ExitCode::SUCCESS)
}

/// Method, settings and sources: as given, or from the recipe.
fn asked(args: &Args) -> Result<(&'static Method, Settings, Vec<Source>)> {
    // What goes into a model is worked out for that one.
    let model = args.into.is_none().then_some(args.model.as_str());
    let open = |path: &Path, strength| Ok(Source { file: cli::adapter(path, model)?, strength });
    if let Some(recipe) = &args.recipe {
        let desk = Desk::open_recipe(recipe)?;
        let method = merge::method(&desk.method)?;
        let changes = desk.changes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let sources =
            desk.faders.iter().map(|fader| open(&fader.file, desk.heard(fader))).collect::<Result<Vec<_>>>()?;
        return Ok((method, Settings::new(method.fields, changes)?, sources));
    }
    let changes = args.set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let settings = Settings::new(args.method.fields, changes)?;
    let sources = args.adapters.iter().map(|adapter| open(&adapter.path, adapter.strength.clone()));
    let mut sources = sources.collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.blocks {
        set_blocks(path, &mut sources)?;
    }
    Ok((args.method, settings, sources))
}

/// Writes a whole model with the adapters in its weights.
fn into(model: &str, sources: &[Source], args: &Args, shell: &Shell) -> Result<ExitCode> {
    let folder = StableDiffusion::folder(model);
    let mut progress = Progress::new(shell.json);
    let device = shell.for_numbers(&mut progress)?;
    export::bake(&folder, sources, &args.out, &device, &mut progress.watch())?;
    let out = &args.out;
    shell.print(&json!({ "out": out, "model": model, "adapters": sources.len() }), || {
        format!(
            "{}: {} with {} in its weights; the adapters' words are in embeddings/ in the folder of that name",
            out.display(),
            model,
            counted(sources.len(), "adapter")
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(
    Merging { sources, out, .. }: &Merging<'_>,
    Combined { file, notes, meeting }: &Combined,
) -> serde_json::Value {
    let path = |i: usize| &sources[i].file.path;
    let pairs: Vec<_> = meeting
        .pairs
        .iter()
        .map(|pair| json!({ "first": path(pair.first), "second": path(pair.second), "product_max": pair.overlap.product_max, "cosine": pair.overlap.cosine, "sentence": pair.overlap.sentence }))
        .collect();
    json!({
        "out": out,
        "layers": file.modules().len(),
        "ranks": file.ranks(),
        "tokens": file.tokens.keys().collect::<Vec<_>>(),
        "certificate": meeting.certificate,
        "overlap": pairs,
        "notes": notes,
    })
}

fn in_words(
    Merging { sources, out, method, .. }: &Merging<'_>,
    Combined { file, notes, meeting }: &Combined,
) -> String {
    let mut lines = vec![format!(
        "{}: {}, {}{}, words {}",
        out.display(),
        counted(sources.len(), "adapter"),
        counted(file.modules().len(), "layer"),
        ranks_in_words(&file.ranks()),
        file.tokens.keys().cloned().collect::<Vec<_>>().join(" "),
    )];
    if let Some(certificate) = &meeting.certificate {
        let title = if certificate.disjoint { "Certificate" } else { "No certificate" };
        lines.push(format!("{title} ({}): {}", certificate.basis, certificate.sentence));
        if certificate.disjoint && !method.promises.contains(&Promise::Linear) {
            lines.push("That holds for the adapters; this method mixes them, so none comes back out exactly".into());
        }
    }
    for pair in &meeting.pairs {
        lines.push(format!(
            "{} × {}: {} (measured overlap {:.1e})",
            sources[pair.first].file.path.display(),
            sources[pair.second].file.path.display(),
            pair.overlap.sentence,
            pair.overlap.product_max
        ));
    }
    lines.extend(note::sentences(notes));
    lines.join("\n")
}

/// The pictures of each adapter. What a method would not look at is refused rather than left lying.
fn concepts(args: &Args, method: &Method, count: usize) -> Result<Vec<Option<Concept>>> {
    let mut concepts = vec![None; count];
    if method.needs == Needs::Nothing && !args.evidence.is_empty() {
        let what = format!("The method {} does not look at pictures", method.name);
        return Err(Error::usage(what, "Leave --evidence out, or choose another method"));
    }
    for (number, folder) in &args.evidence {
        let index = number.parse::<usize>().ok().filter(|n| (1..=count).contains(n)).ok_or_else(|| {
            Error::usage(format!("There is no adapter “{number}”"), format!("Count them from 1 to {count}"))
        })?;
        concepts[index - 1] = Some(concept::open(Path::new(folder))?);
    }
    Ok(concepts)
}

/// Block strengths for all adapters at the top level, for adapter N (from 1) in the table `[N]`.
fn set_blocks(path: &Path, sources: &mut [Source]) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    let broken = |what: String| Error::new(what, "Write lines such as \"down_blocks.0\" = 0.5").at(path);
    let table: toml::Table =
        toml::from_str(&text).map_err(|e| broken(format!("The block strengths cannot be read: {}", e.message())))?;
    let known: std::collections::BTreeSet<String> =
        sources.iter().flat_map(|source| source.file.modules()).map(|module| names::block(module)).collect();
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
