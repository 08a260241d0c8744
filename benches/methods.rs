//! Every adapter method on one shipped concept, every merge method on three: parameters, seconds, losses, similarity.
//!
//! `cargo bench --profile dev --bench methods [-- STEPS [adapters|merges|sized] [METHOD…]]`; 60 steps of every adapter
//! method unless said otherwise.
//! Prints Markdown; what `RESULTS.md` shows came from here.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Tensor;
use triptych::engine::adapter::mount::Strength;
use triptych::engine::adapter::{METHODS, Method};
use triptych::engine::concept::latents::pixels;
use triptych::engine::concept::shipped::{self, SHIPPED, Shipped};
use triptych::engine::concept::{self, Concept, Fit};
use triptych::engine::device::Choice;
use triptych::engine::event::{Event, Watch};
use triptych::engine::field::Settings;
use triptych::engine::io::lora_file::{LoraFile, LoraLayer};
use triptych::engine::merge::note::sentences;
use triptych::engine::merge::{self, Evidence, Inputs, Question, Source};
use triptych::engine::model::StableDiffusion;
use triptych::engine::preview::{Mounted, Request};
use triptych::engine::random::Philox;
use triptych::engine::session::{self, Combined, Merging, Pictured, Session, Training, Used};
use triptych::engine::similarity::Judge;
use triptych::engine::spectrum::adapter::deltas;
use triptych::engine::spectrum::overlap;
use triptych::engine::train::config::plain_caption;

/// Seeds and number of pictures as in the demo.
const SEED: u64 = 1;
const PICTURE_SEED: u64 = 3;
const PICTURES: usize = 6;
const WINDOW: usize = 20;

struct Bench {
    session: Session,
    model: StableDiffusion,
    judge: Judge,
    steps: String,
    folder: tempfile::TempDir,
}

/// A concept with what it should look like.
struct Lesson {
    shipped: &'static Shipped,
    token: String,
    concept: Concept,
    held_out: Tensor<4>,
}

fn main() {
    triptych::engine::pages::keep();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let steps = words.first().cloned().unwrap_or_else(|| "60".into());
    let shows = |what: &str| words.get(1).is_none_or(|only| only == what);
    let session = Session::open(Choice::Cpu, &mut |_| Ok(())).unwrap();
    let model = session.model("starter").unwrap();
    let judge = Judge::new(&model.device).unwrap();
    let bench = Bench { session, model, judge, steps, folder: tempfile::tempdir().unwrap() };
    if shows("adapters") {
        bench.adapters(&words[words.len().min(2)..]);
    }
    if shows("merges") {
        bench.merges();
    }
    if shows("sized") {
        sized();
    }
}

impl Bench {
    fn lesson(&self, number: usize) -> Lesson {
        let shipped = &SHIPPED[number];
        let (train, held_out) = shipped::unpack(shipped, &self.folder.path().join(shipped.folder)).unwrap();
        let size = self.model.native_size();
        let held_out = concept::open(&held_out).unwrap().images;
        let held_out = held_out
            .iter()
            .map(|picture| pixels(&concept::load(&picture.path, size, [255; 3], Fit::Pad).unwrap(), &self.model));
        Lesson {
            shipped,
            token: format!("<{}>", ["one", "two", "three"][number % 3]),
            concept: concept::open(&train).unwrap(),
            held_out: Tensor::cat(held_out.collect(), 0),
        }
    }

    /// The file and the losses; seconds and numbers trained.
    fn train(&self, method: &'static Method, lesson: &Lesson, out: &Path) -> (LoraFile, Vec<f32>, f64, usize) {
        let training = Training {
            lessons: vec![session::Lesson::new(&lesson.token, Some(lesson.shipped.class_word.into()))],
            method,
            changes: vec![("steps".into(), self.steps.clone())],
            slot: None,
            project: None,
            seed: SEED,
            out: out.into(),
            resume: false,
            stamp: false,
            wishes: None,
        };
        let mut begun = None;
        let mut seconds = 0.0;
        let mut watch = |event: Event| {
            // Pictures and prompts are prepared before the first step, which compiles nothing on the CPU.
            if let Event::Step { .. } = event {
                seconds = begun.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
            }
            Ok(())
        };
        let trained =
            self.session.train(&self.model, std::slice::from_ref(&lesson.concept), &training, &mut watch).unwrap();
        let steps = trained.losses.len();
        (trained.file, trained.losses, seconds / (steps - 1) as f64, trained.parameters)
    }

    /// How like the concept the pictures of its prompt are.
    fn similarity(&self, mounted: &Mounted, prompt: String, lesson: &Lesson) -> f32 {
        let request = Request { prompt, seed: PICTURE_SEED, count: PICTURES, ..Request::default() };
        let pictures = self.session.sample(&self.model, mounted, &request, &mut |_| Ok(())).unwrap();
        self.judge.similarity(pictures.pixels * 2.0 - 1.0, lesson.held_out.clone()).unwrap()
    }

    fn mounted(&self, file: &LoraFile) -> Mounted {
        let used = Used { file: file.clone().into(), strength: Strength::default() };
        self.session.mount(&self.model, &[used]).unwrap()
    }

    fn prompt(&self, lesson: &Lesson) -> String {
        let template = session::template(&self.model);
        template.replace("{token}", &lesson.token).replace("{class}", lesson.shipped.class_word)
    }

    /// Those named, or all.
    fn adapters(&self, only: &[String]) {
        let lesson = self.lesson(0);
        let prompt = plain_caption(&session::template(&self.model), lesson.shipped.class_word);
        let untouched = self.similarity(&Mounted::default(), prompt, &lesson);
        println!("{} steps on “{}”; untouched {untouched:.3}\n", self.steps, lesson.shipped.title);
        println!("| method | numbers trained | s / step | loss, first → last {WINDOW} | similarity | file KiB |");
        println!("|---|---|---|---|---|---|");
        let is_meant = |row: &&Method| only.is_empty() || only.iter().any(|name| name == row.name);
        for row in METHODS.iter().filter(is_meant) {
            let out = self.folder.path().join(row.name).join("a.safetensors");
            let (file, losses, seconds, parameters) = self.train(row, &lesson, &out);
            let window = WINDOW.min(losses.len().div_ceil(2));
            let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
            let (first, last) = (mean(&losses[..window]), mean(&losses[losses.len() - window..]));
            let similarity = self.similarity(&self.mounted(&file), self.prompt(&lesson), &lesson);
            let size = std::fs::metadata(&out).unwrap().len() / 1024;
            println!(
                "| {} | {parameters} | {seconds:.3} | {first:.3} → {last:.3} | {similarity:.3} | {size} |",
                row.name
            );
        }
    }

    /// Three concepts in three slots, as adapters of the program's first method.
    fn merges(&self) {
        let lessons: Vec<Lesson> = (0..3).map(|number| self.lesson(number)).collect();
        let files: Vec<LoraFile> = lessons
            .iter()
            .map(|lesson| {
                let out = self.folder.path().join("three").join(lesson.shipped.folder).with_extension("safetensors");
                self.train(&METHODS[0], lesson, &out).0
            })
            .collect();
        let likeness = |file: &dyn Fn(usize) -> Mounted| -> Vec<String> {
            let of = |(i, lesson)| self.similarity(&file(i), self.prompt(lesson), lesson);
            lessons.iter().enumerate().map(of).map(|similarity| format!("{similarity:.3}")).collect()
        };
        println!("\n{} steps each; alone {}\n", self.steps, likeness(&|i| self.mounted(&files[i])).join(" / "));
        println!(
            "| merge | seconds | most directions in a layer | cosine with each source | similarity of each concept | what it says |"
        );
        println!("|---|---|---|---|---|---|");
        for row in merge::METHODS {
            let concepts = lessons.iter().map(|lesson| Some(lesson.concept.clone())).collect();
            let source = |file: &LoraFile| Source { file: file.clone(), strength: Strength::default() };
            let merging = Merging {
                sources: files.iter().map(source).collect(),
                method: row,
                settings: Settings::new(row.fields, []).unwrap(),
                pictures: Some(Pictured { session: &self.session, model: &self.model, concepts }),
                out: self.folder.path().join(format!("{}.safetensors", row.name)),
            };
            let begun = Instant::now();
            let Combined { file, notes, .. } = session::merge(&merging, &mut |_| Ok(())).unwrap();
            let seconds = begun.elapsed().as_secs_f64();
            let whole = deltas(&file).unwrap();
            let cosines: Vec<String> = files
                .iter()
                .map(|source| overlap(&whole, &deltas(source).unwrap()).unwrap().cosine)
                .map(|cosine| format!("{cosine:.2}"))
                .collect();
            println!(
                "| {} | {seconds:.2} | {} | {} | {} | {} |",
                row.name,
                file.ranks().last().unwrap(),
                cosines.join(" / "),
                likeness(&|_| self.mounted(&file)).join(" / "),
                sentences(&notes).join("; ")
            );
        }
    }
}

/// Rank 16 on all attention layers of the SD 1.5 denoiser: width, and how many transformer blocks have it.
const BLOCKS: [(usize, usize); 3] = [(320, 5), (640, 5), (1280, 6)];

fn sd_sized(seed: u64) -> Source {
    let mut layers = BTreeMap::new();
    for (width, count) in BLOCKS {
        for (block, attention) in (0..count).flat_map(|block| [(block, 1), (block, 2)]) {
            let from = if attention == 1 { width } else { 768 };
            for (part, input) in [("q", width), ("k", from), ("v", from), ("out", width)] {
                let values = |stream, n| Philox::new(seed).stream(stream).normal(layers.len() as u32, n);
                let (down, up) = (values(0, 16 * input), values(1, width * 16));
                let (down_shape, up_shape) = (vec![16, input], vec![width, 16]);
                let layer = LoraLayer { down, up, rank: 16, alpha: 16.0, down_shape, up_shape };
                layers.insert(format!("lora_unet_mid_block_{width}_{block}_attn{attention}_{part}"), layer);
            }
        }
    }
    Source { file: LoraFile { layers, ..LoraFile::default() }, strength: Strength::default() }
}

/// What a merge itself takes at that size; the pictures of `fisher` are left out.
fn sized() {
    let sources = [1, 2, 3].map(sd_sized);
    let importance = |question: Question, _: &mut Watch<'_>| {
        let of = |layer: &LoraLayer| Philox::new(9).uniform(0, layer.out() * layer.input());
        let layers = &sources[question.source].file.layers;
        Ok(layers.iter().map(|(module, layer)| (module.clone(), of(layer))).collect())
    };
    let evidence = Evidence { record: serde_json::Value::Null, importance: &importance };
    let inputs = Inputs { sources: &sources, evidence: Some(&evidence) };
    println!("\n{} layers, three adapters of rank 16\n\n| merge | seconds |\n|---|---|", sources[0].file.layers.len());
    for row in merge::METHODS {
        let settings = Settings::new(row.fields, []).unwrap();
        let begun = Instant::now();
        merge::merge(&inputs, row, &settings, &mut |_| Ok(())).unwrap();
        println!("| {} | {:.3} |", row.name, begun.elapsed().as_secs_f64());
    }
}
