//! `triptych convert`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Progress, Shell};
use crate::engine::convert::{self, Format, Loss, Paths};
use crate::engine::io::Dtype;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::model::StableDiffusion;
use crate::engine::model::stored::Stored;
use crate::engine::words::counted;
use crate::engine::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// The adapter: a file of any tool, or a folder that PEFT saved
    adapter: PathBuf,
    /// kohya, diffusers, peft, comfy, lycoris or full
    #[arg(long, value_name = "FORMAT", value_parser = convert::format)]
    to: &'static Format,
    /// In formats of low-rank pairs: directions to keep of layers that have more
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    rank: usize,
    /// How numbers are stored: f16, bf16 or f32; as in the adapter if left out
    #[arg(long, value_name = "FORMAT", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// The model it was made for, where its changes depend on the model's own weights (DoRA, OFT, BOFT, (IA)³, GLoRA) or
    /// it is of another size than the known ones
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// A picture that managers of models show for the file (modelspec.thumbnail)
    #[arg(long, value_name = "F.png")]
    thumbnail: Option<PathBuf>,
    /// The file to write; for peft, the folder
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let mut file = LoraFile::open(&args.adapter)?;
    let model = args.model.as_ref().map(|model| Stored::open(&StableDiffusion::folder(model))).transpose()?;
    if let Some(module) = file.relatives.keys().next() {
        let Some(model) = &model else {
            let what = format!("What this adapter does depends on the weights of its model (layer {module})");
            return Err(Error::usage(what, "Name the model it was made for: --model M").at(&args.adapter));
        };
        file = file.on(|module| model.base(module))?;
    }
    let paths = match &model {
        Some(model) => Paths::new(&model.blocks(), Some(model.family()), model.shapes()),
        None => Paths::of(file.family),
    };
    if let Some(picture) = &args.thumbnail {
        file.metadata.insert("modelspec.thumbnail".into(), convert::thumbnail::data_url(picture)?);
    }
    let mut progress = Progress::new(shell.json);
    let loss = convert::convert(&file, &paths, args.to, args.rank, args.dtype, &args.out, &mut progress.watch())?;
    let result = json!({ "out": args.out, "format": args.to.name, "layers": file.modules().len(), "lost": loss });
    shell.print(&result, || words(args, &file, &loss))?;
    Ok(ExitCode::SUCCESS)
}

fn words(args: &Args, file: &LoraFile, loss: &Loss) -> String {
    let mut lines = vec![format!(
        "{}: {} as {}",
        args.out.display(),
        counted(file.modules().len() + file.norms.len(), "layer"),
        args.to.title
    )];
    if loss.layers.is_empty() {
        // Less would be told as 0.00 %.
        let rounded = (loss.all >= 5e-5).then(|| format!("; rounding changes it by {:.2} %", 100.0 * loss.all));
        lines.push(format!("No direction was cut{}", rounded.unwrap_or_default()));
    } else {
        lines.push(format!(
            "{} cut to rank {}: {:.2} % of the whole change is lost (--rank N keeps more)",
            counted(loss.layers.len(), "layer"),
            args.rank,
            100.0 * loss.all
        ));
        let mut worst: Vec<_> = loss.layers.iter().collect();
        worst.sort_by(|a, b| b.1.total_cmp(a.1));
        lines.extend(worst.iter().map(|(layer, lost)| format!("    {:.2} % in {layer}", 100.0 * *lost)));
    }
    if !loss.beside.is_empty() {
        lines.push(format!(
            "Left out: the biases and norms of {}, which this format cannot hold (lycoris and full can)",
            counted(loss.beside.len(), "layer")
        ));
    }
    if !loss.words.is_empty() {
        lines.push(format!(
            "Left out: what {} means, for which this format has no place (kohya and lycoris have)",
            loss.words.join(" and ")
        ));
    }
    lines.join("\n")
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&rank| rank > 0).ok_or_else(|| format!("“{text}” is not a number from 1"))
}

fn dtype(text: &str) -> std::result::Result<Dtype, String> {
    match text {
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::BF16),
        "f32" => Ok(Dtype::F32),
        _ => Err(format!("there is no format “{text}”: choose f16, bf16 or f32")),
    }
}
