//! `triptych sample`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{AdapterArg, Progress, Shell, field_value};
use crate::engine::device::read;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::png;
use crate::engine::io::safetensors::{self, Checkpoint, Dtype};
use crate::engine::parameters;
use crate::engine::preview::{Init, Pictures, Request, STRENGTH, Start};
use crate::engine::session::Used;
use crate::engine::words::stem;
use crate::engine::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// A folder in diffusers layout, a single file (.safetensors), of the family of SD 1.x, 2.x or SDXL, or `starter`
    #[arg(long, default_value = "starter")]
    model: String,
    /// What the picture shows, of any length: `(word)` or `(word:1.2)` counts more, `[word]` less, `\(` is a bracket, and
    /// BREAK starts a new chunk of 75 tokens
    #[arg(long)]
    prompt: String,
    /// What it should not show, written likewise
    #[arg(long, default_value = "")]
    negative: String,
    /// Which of the text encoder's layers is read, from the end: 1 is the last, 2 the last but one
    #[arg(long, default_value_t = 1, value_name = "N")]
    clip_skip: usize,
    /// Adapter to use, with strengths on picture and text; may be repeated
    #[arg(long, value_name = "F[:strength[:text-strength]]")]
    adapter: Vec<AdapterArg>,
    /// Sampler (`triptych methods samplers` lists them)
    #[arg(long, default_value = "dpmpp_2m_karras")]
    sampler: String,
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Guidance: how closely the prompt is followed
    #[arg(long, default_value_t = 4.0)]
    cfg: f64,
    /// Seed of the first picture; the next take the numbers after it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Width and height in pixels; the model's own if left out
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<[usize; 2]>,
    /// Change a field of sampling (`triptych methods samplers` lists them); may be repeated
    #[arg(long, value_name = "FIELD=VALUE", value_parser = field_value)]
    set: Vec<(String, String)>,
    /// Picture to start from instead of noise alone, resized and cut to the size
    #[arg(long, value_name = "F.png")]
    init: Option<PathBuf>,
    /// How far that picture may change: 0 as it is, 1 anything. Of the steps, this share is taken
    #[arg(long, default_value_t = STRENGTH, requires = "init")]
    strength: f64,
    /// What of that picture is repainted: white. Outside, every pixel stays as it is
    #[arg(long, value_name = "F.png")]
    mask: Option<PathBuf>,
    /// How many pictures; several become F-1.png, F-2.png …
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Start from the tensor `latents` [n, 4, h, w] of unit noise instead of the seed's
    #[arg(long, value_name = "F.safetensors")]
    latents: Option<PathBuf>,
    /// Write final `latents` and `image` as tensors
    #[arg(long, value_name = "F.safetensors")]
    dump: Option<PathBuf>,
    /// The picture to write
    #[arg(long, value_name = "F.png")]
    out: PathBuf,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    // Before anything is opened: a missing picture is told at once.
    let init = init(args)?;
    let mut progress = Progress::new(shell.json);
    let session = shell.session(&mut progress)?;
    let model = session.open_model(&args.model, &mut progress.watch())?;
    let used = args
        .adapter
        .iter()
        .map(|adapter| Ok(Used { file: LoraFile::open(&adapter.path)?.into(), strength: adapter.strength.clone() }))
        .collect::<Result<Vec<_>>>()?;
    let mounted = session.mount(&model, &used)?;
    let request = Request {
        prompt: args.prompt.clone(),
        negative: args.negative.clone(),
        clip_skip: args.clip_skip,
        sampler: args.sampler.clone(),
        steps: args.steps,
        cfg: args.cfg,
        seed: args.seed,
        size: args.size,
        count: args.count,
        changes: args.set.iter().cloned().collect(),
        init,
        start: args.latents.as_deref().map(start).transpose()?,
    };
    let begun = std::time::Instant::now();
    let pictures = session.sample(&model, &mounted, &request, &mut progress.watch())?;
    let seconds = begun.elapsed().as_secs_f64();
    let rgb = pictures.rgb()?;
    let adapters: Vec<_> = args.adapter.iter().map(|a| (stem(&a.path), a.strength.unet)).collect();
    let mut files = Vec::new();
    for (i, picture) in rgb.iter().enumerate() {
        let path = numbered(&args.out, i, rgb.len());
        let size = [picture.width(), picture.height()];
        png::write(&path, picture, &parameters::text(&request, size, i, &model.name, &adapters))?;
        files.push(path);
    }
    if let Some(path) = &args.dump {
        dump(path, &pictures)?;
    }
    let result = json!({ "files": files, "seconds": seconds, "seed": args.seed, "device": session.device.name });
    shell.print(&result, || files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn numbered(out: &Path, i: usize, count: usize) -> PathBuf {
    if count == 1 {
        return out.to_path_buf();
    }
    out.with_file_name(format!("{}-{}.png", stem(out), i + 1))
}

fn init(args: &Args) -> Result<Option<Init>> {
    match (&args.init, &args.mask) {
        (Some(file), mask) => Init::open(file, args.strength, mask.as_deref()).map(Some),
        (None, Some(_)) => {
            Err(Error::usage("A mask needs a picture that it belongs to", "Name the picture to start from with --init"))
        }
        (None, None) => Ok(None),
    }
}

fn start(path: &Path) -> Result<Start> {
    let file = Checkpoint::open(path)?;
    let values = file.f32("latents")?;
    let &[n, c, h, w] = file.shape("latents")? else {
        return Err(
            Error::new("The tensor “latents” does not have four axes", "It must be [n, 4, height, width]").at(path)
        );
    };
    if values.iter().any(|x| !x.is_finite()) {
        return Err(Error::new("The given latents hold NaN or infinite numbers", "Make them anew").at(path));
    }
    Ok(Start { values, shape: [n, c, h, w] })
}

fn dump(path: &Path, pictures: &Pictures) -> Result<()> {
    let tensor = |tensor: &burn::tensor::Tensor<4>| -> Result<safetensors::Tensor> {
        Ok(safetensors::Tensor::new(Dtype::F32, &tensor.dims(), &read(tensor.clone())?))
    };
    let tensors = BTreeMap::from([
        ("latents".to_owned(), tensor(&pictures.latents)?),
        ("image".to_owned(), tensor(&pictures.pixels)?),
    ]);
    safetensors::save(path, &tensors, &BTreeMap::new())
}

fn size(text: &str) -> Result<[usize; 2], String> {
    let parse = || {
        let (width, height) = text.split_once(['x', 'X', '×'])?;
        Some([width.trim().parse().ok()?, height.trim().parse().ok()?])
    };
    parse().ok_or_else(|| "write width x height, such as 512x768".into())
}
