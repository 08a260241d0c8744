//! `triptych demo`: two concepts, orthogonal slots, a merge, and a plain pair beside it, judged by held-out pictures.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::Tensor;
use image::RgbImage;
use serde::Serialize;

use crate::cli::{Progress, Shell};
use crate::engine::adapter::{self, mount::Strength};
use crate::engine::concept::latents::pixels;
use crate::engine::concept::shipped::{self, SHIPPED, Shipped};
use crate::engine::concept::{self, Concept, Fit};
use crate::engine::contact_sheet::{self, Row};
use crate::engine::event::Event;
use crate::engine::field::Settings;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::{atomic, png};
use crate::engine::merge::{self, Source, certificate};
use crate::engine::model::StableDiffusion;
use crate::engine::preview::{Mounted, Pictures, Request};
use crate::engine::session::{self, Lesson, Merging, Session, Training, Used};
use crate::engine::similarity::Judge;
use crate::engine::spectrum::{self, adapter::deltas};
use crate::engine::train::config::plain_caption;
use crate::engine::{Error, Result};

/// The two concepts and their words.
const CONCEPTS: [(&Shipped, &str); 2] = [(&SHIPPED[0], "<one>"), (&SHIPPED[1], "<two>")];
/// The orthogonal pair, and the plain one beside it.
const METHODS: [&str; 2] = ["orthogonal", "lora"];
const SEED: u64 = 1;
/// Pictures in each row, from these seeds on; not the training's.
const PICTURES: usize = 6;
const PICTURE_SEED: u64 = 3;
/// Steps whose mean loss is reported as first and last: single losses jump with their timesteps.
const LOSS_WINDOW: usize = 20;
/// More overlap than this is not rounding.
const MAX_OVERLAP: f64 = 1e-5;
/// Share of what a concept gained alone that the merged file should keep.
const KEPT: f32 = 0.8;

#[derive(clap::Args)]
pub struct Args {
    /// Folder for adapters, pictures and report
    #[arg(long, default_value = "triptych-demo", value_name = "DIR")]
    out: PathBuf,
    /// Training steps for each adapter; fewer are faster and show less
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
}

/// `report.json`.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: String,
    seconds: BTreeMap<&'static str, f64>,
    runs: Vec<Run>,
    /// Largest `‖ΔWᵢΔWⱼᵀ‖ / (‖ΔWᵢ‖‖ΔWⱼ‖)` of any layer.
    overlap: BTreeMap<&'static str, f64>,
    certificate: Option<certificate::Certificate>,
}

#[derive(Serialize)]
struct Run {
    method: &'static str,
    concept: &'static str,
    slot: Option<usize>,
    loss: [f32; 2],
    similarity: Similarity,
}

/// Mean cosine of `MobileNetV2` features to the held-out pictures.
#[derive(Clone, Copy, Serialize)]
struct Similarity {
    base: f32,
    solo: f32,
    merged: f32,
}

impl Similarity {
    fn kept(self) -> f32 {
        (self.merged - self.base) / (self.solo - self.base)
    }
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut progress = Progress::new(shell.json);
    let session = shell.session(&mut progress)?;
    let model = session.open_model("starter", &mut progress.watch())?;
    let judge = Judge::new(&model.device)?;
    let mut demo = Demo { args, session, model, judge, progress, seconds: BTreeMap::new(), rows: Vec::new() };
    let taught = CONCEPTS.iter().map(|(shipped, _)| demo.unpack(shipped)).collect::<Result<Vec<_>>>()?;
    let report = demo.teach_and_merge(&taught, begun)?;

    let sheet = contact_sheet::draw("Two concepts, taught apart and merged", &[], &demo.rows, 2);
    let sheet_path = args.out.join("contact_sheet.png");
    png::write(&sheet_path, &sheet, &BTreeMap::new())?;
    let report_path = args.out.join("report.json");
    let text = serde_json::to_string_pretty(&report)
        .map_err(|e| Error::new(format!("The report cannot be written ({e})"), "Report this"))?;
    atomic::write(&report_path, |out| std::io::Write::write_all(out, text.as_bytes()))?;

    let verdict = Verdict::of(&report);
    shell.print(&report, || {
        let mut lines: Vec<String> = report.runs.iter().map(run_line).collect();
        for (name, overlap) in &report.overlap {
            lines.push(format!("overlap of the {name} pair: {overlap:.1e}"));
        }
        lines.extend(report.certificate.iter().map(|certificate| certificate.sentence.clone()));
        lines.push(format!(
            "{:.0} s in all. Look at {} and {}",
            report.seconds["total"],
            sheet_path.display(),
            report_path.display()
        ));
        lines.join("\n")
    })?;
    for sentence in verdict.failures.iter().chain(&verdict.costs) {
        eprintln!("{sentence}");
    }
    Ok(if verdict.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_line(run: &Run) -> String {
    let Similarity { base, solo, merged } = run.similarity;
    let kept =
        if solo > base { format!(" ({:.0} % of the gain kept)", run.similarity.kept() * 100.0) } else { String::new() };
    format!(
        "{:<10} {:<20} loss {:.3} → {:.3}, similarity {base:.3} untouched → {solo:.3} alone → {merged:.3} merged{kept}",
        run.method, run.concept, run.loss[0], run.loss[1],
    )
}

/// What the numbers say in sentences.
struct Verdict {
    /// Promises that were not kept.
    failures: Vec<String>,
    /// Merging that cost more than it should.
    costs: Vec<String>,
}

impl Verdict {
    fn of(report: &Report) -> Self {
        let mut failures = Vec::new();
        let mut costs = Vec::new();
        for run in report.runs.iter().filter(|run| run.method == METHODS[0]) {
            let s = run.similarity;
            if s.solo.is_nan() || s.solo <= s.base {
                failures.push(format!("{} was not learnt: alone it is no more like the concept than the untouched model. Train for more steps.", run.concept));
            } else if s.kept() < KEPT {
                costs.push(format!(
                    "Merging cost {} {:.0} % of what it had gained.",
                    run.concept,
                    (1.0 - s.kept()) * 100.0
                ));
            }
        }
        let overlap = report.overlap["orthogonal"];
        if overlap.is_nan() || overlap > MAX_OVERLAP {
            failures.push(format!("The orthogonal adapters overlap by {overlap:.1e}, more than rounding explains."));
        }
        Self { failures, costs }
    }
}

/// A concept on disk.
struct Taught {
    concept: Concept,
    held_out: Tensor<4>,
    held_out_pictures: Vec<RgbImage>,
}

struct Demo<'a> {
    args: &'a Args,
    session: Session,
    model: StableDiffusion,
    judge: Judge,
    progress: Progress,
    seconds: BTreeMap<&'static str, f64>,
    rows: Vec<Row>,
}

impl Demo<'_> {
    /// Lays a shipped concept out in the output folder.
    fn unpack(&mut self, shipped: &Shipped) -> Result<Taught> {
        let (train, held_out) = shipped::unpack(shipped, &self.args.out.join("concepts").join(shipped.folder))?;
        let held_out = self.session.concept(&held_out)?;
        let images = held_out
            .images
            .iter()
            .map(|picture| concept::load(&picture.path, self.model.native_size(), [255; 3], Fit::Pad))
            .collect::<Result<Vec<_>>>()?;
        let held_out = Tensor::cat(images.iter().map(|image| pixels(image, &self.model)).collect(), 0);
        let held_out_pictures = Pictures { latents: held_out.clone(), pixels: held_out.clone() / 2.0 + 0.5 }.rgb()?;
        Ok(Taught { concept: self.session.concept(&train)?, held_out, held_out_pictures })
    }

    fn teach_and_merge(&mut self, taught: &[Taught], begun: Instant) -> Result<Report> {
        let template = session::template(&self.model);
        let mut base = Vec::new();
        for ((shipped, _), taught) in CONCEPTS.iter().zip(taught) {
            self.row(format!("{}: pictures it never saw", shipped.title), taught.held_out_pictures.clone());
            let pictures = self.pictures(&Mounted::default(), &plain_caption(&template, shipped.class_word))?;
            self.row(format!("untouched model: {}", shipped.class_word), pictures.rgb()?);
            base.push(self.similarity(&pictures, taught)?);
        }
        let (mut runs, mut overlap, mut proof) = (Vec::new(), BTreeMap::new(), None);
        for method in METHODS {
            let trained = CONCEPTS
                .iter()
                .zip(taught)
                .map(|((shipped, token), taught)| self.train(method, shipped, token, taught))
                .collect::<Result<Vec<_>>>()?;
            let files: Vec<&LoraFile> = trained.iter().map(|(file, _)| file).collect();
            let pair = if method == METHODS[0] { "orthogonal" } else { "plain" };
            overlap.insert(pair, spectrum::overlap(&deltas(files[0])?, &deltas(files[1])?)?.product_max);
            proof = proof.or(certificate::certify(&files)?);
            let merged = self.merge(method, &files)?;
            let solo = files.iter().map(|file| self.mount(&[file])).collect::<Result<Vec<_>>>()?;
            let both = self.mount(&files)?;
            let merged = self.mount(&[&merged])?;
            for (i, ((shipped, token), taught)) in CONCEPTS.iter().zip(taught).enumerate() {
                let prompt = template.replace("{token}", token).replace("{class}", shipped.class_word);
                let [alone, together, merged] =
                    [&solo[i], &both, &merged].map(|mounted| self.pictures(mounted, &prompt));
                let (alone, together, merged) = (alone?, together?, merged?);
                self.row(format!("{method}, alone: {}", shipped.title), alone.rgb()?);
                self.row(format!("{method}, both mounted: {}", shipped.title), together.rgb()?);
                self.row(format!("{method}, merged file: {}", shipped.title), merged.rgb()?);
                let similarity = Similarity {
                    base: base[i],
                    solo: self.similarity(&alone, taught)?,
                    merged: self.similarity(&merged, taught)?,
                };
                let (file, loss) = &trained[i];
                let slot = certificate::identity(file)?.and_then(|(_, slots)| slots.first().copied());
                runs.push(Run { method, concept: shipped.folder, slot, loss: *loss, similarity });
            }
        }
        let seconds = {
            self.seconds.insert("total", begun.elapsed().as_secs_f64());
            self.seconds.clone()
        };
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            device: self.session.device.name.clone(),
            seconds,
            runs,
            overlap,
            certificate: proof,
        })
    }

    /// Trains one adapter with the default fields; returns its file and its first and last mean loss.
    fn train(
        &mut self,
        method: &'static str,
        shipped: &Shipped,
        token: &str,
        taught: &Taught,
    ) -> Result<(LoraFile, [f32; 2])> {
        let start = Instant::now();
        let changes = self.args.steps.iter().map(|steps| ("steps".to_owned(), steps.to_string())).collect();
        let training = Training {
            lessons: vec![Lesson::new(token, Some(shipped.class_word.to_owned()))],
            method: adapter::method(method)?,
            changes,
            slot: None,
            project: Some(self.args.out.join("triptych.toml")),
            seed: SEED,
            out: self.args.out.join(method).join(format!("{}.safetensors", shipped.folder)),
            resume: false,
            stamp: false,
            wishes: None,
        };
        let mut watch = self.progress.watch();
        watch(Event::note(format!("Teaching {} as {token} with {}", shipped.title, training.method.title)))?;
        let trained = self.session.train(&self.model, std::slice::from_ref(&taught.concept), &training, &mut watch)?;
        drop(watch);
        *self.seconds.entry("training").or_default() += start.elapsed().as_secs_f64();
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        let window = LOSS_WINDOW.min(trained.losses.len().div_ceil(2));
        let (first, last) = (&trained.losses[..window], &trained.losses[trained.losses.len() - window..]);
        Ok((trained.file, [mean(first), mean(last)]))
    }

    fn merge(&mut self, method: &str, files: &[&LoraFile]) -> Result<LoraFile> {
        let start = Instant::now();
        let sources: Vec<Source> =
            files.iter().map(|&file| Source { file: file.clone(), strength: Strength::default() }).collect();
        let out = self.args.out.join(method).join("merged.safetensors");
        let row = merge::method("sum")?;
        let settings = Settings::new(row.fields, [])?;
        let merging = Merging { sources, method: row, settings, pictures: None, out };
        session::merge(&merging, &mut self.progress.watch())?;
        *self.seconds.entry("merging").or_default() += start.elapsed().as_secs_f64();
        LoraFile::open(&merging.out)
    }

    fn mount(&self, files: &[&LoraFile]) -> Result<Mounted> {
        let used: Vec<Used> =
            files.iter().map(|&file| Used { file: file.clone().into(), strength: Strength::default() }).collect();
        self.session.mount(&self.model, &used)
    }

    fn pictures(&mut self, mounted: &Mounted, prompt: &str) -> Result<Pictures> {
        let start = Instant::now();
        let request = Request { prompt: prompt.to_owned(), seed: PICTURE_SEED, count: PICTURES, ..Request::default() };
        let pictures = self.session.sample(&self.model, mounted, &request, &mut self.progress.watch())?;
        *self.seconds.entry("sampling").or_default() += start.elapsed().as_secs_f64();
        Ok(pictures)
    }

    fn similarity(&mut self, pictures: &Pictures, taught: &Taught) -> Result<f32> {
        let start = Instant::now();
        let similarity = self.judge.similarity(pictures.pixels.clone() * 2.0 - 1.0, taught.held_out.clone())?;
        *self.seconds.entry("judging").or_default() += start.elapsed().as_secs_f64();
        Ok(similarity)
    }

    fn row(&mut self, label: String, pictures: Vec<RgbImage>) {
        self.rows.push(Row { label, pictures });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(solo: f32, merged: f32, overlap: f64) -> Report {
        let run = Run {
            method: "orthogonal",
            concept: "x",
            slot: Some(0),
            loss: [0.3, 0.1],
            similarity: Similarity { base: 0.5, solo, merged },
        };
        Report {
            version: "0",
            device: "CPU".into(),
            seconds: BTreeMap::new(),
            runs: vec![run],
            overlap: BTreeMap::from([("orthogonal", overlap), ("plain", 0.1)]),
            certificate: None,
        }
    }

    #[test]
    fn broken_promises_fail_and_costly_merges_are_said() {
        let judge = |solo, merged, overlap| {
            let verdict = Verdict::of(&report(solo, merged, overlap));
            (verdict.failures.len(), verdict.costs.len())
        };
        assert_eq!(judge(0.7, 0.68, 1e-8), (0, 0));
        assert_eq!(judge(0.7, 0.6, 1e-8), (0, 1));
        assert_eq!(judge(0.5, 0.5, 1e-8), (1, 0));
        assert_eq!(judge(f32::NAN, 0.5, 1e-8), (1, 0));
        assert_eq!(judge(0.7, 0.7, 1e-4), (1, 0));
    }

    #[test]
    fn the_report_keeps_its_shape() {
        let value = json!(report(0.7, 0.6, 1e-8));
        for key in ["version", "device", "seconds", "runs", "overlap", "certificate"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert!(value["runs"][0]["similarity"]["merged"].is_number() && value["overlap"]["plain"].is_number());
    }
}
