//! Whether a day at the window costs memory: train two adapters, merge them, make pictures, and again, in one process.
//!
//! `cargo bench --profile dev --bench endurance [-- MINUTES]`; two hours unless said otherwise. Prints the resident memory
//! once a minute, always at the same point of a round, and fails where it ends more than 5 % above what it was after a
//! twelfth of the time (ten minutes of two hours).

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and fails loudly")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use triptych::engine::adapter::METHODS;
use triptych::engine::adapter::mount::Strength;
use triptych::engine::concept::shipped::{self, SHIPPED};
use triptych::engine::device::Choice;
use triptych::engine::field::Settings;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::merge::{self, Source};
use triptych::engine::preview::Request;
use triptych::engine::session::{self, Lesson, Merging, Session, Training, Used};

const MINUTES: u64 = 120;
/// Caches fill and the allocator finds its size in the first part of so many.
const SETTLED: u64 = 12;
/// End over start that is still no growth.
const MOST: f64 = 1.05;
const MINUTE: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    triptych::engine::pages::keep();
    let minutes: u64 = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(MINUTES);
    let session = Session::open(Choice::Cpu, &mut |_| Ok(())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let (mut rounds, mut told, mut settled) = (0, 0, None);
    println!("minute  rounds  resident MiB");
    while begun.elapsed() < MINUTE * minutes as u32 {
        round(&session, folder.path(), rounds);
        rounds += 1;
        let (minute, resident) = (begun.elapsed().as_secs() / 60, resident());
        if minute > told || rounds == 1 {
            println!("{minute:6}  {rounds:6}  {resident:12.1}");
            told = minute;
        }
        if minute >= minutes / SETTLED {
            settled.get_or_insert(resident);
        }
    }
    let (settled, end) = (settled.unwrap(), resident());
    let ratio = end / settled;
    println!("{rounds} rounds: {settled:.1} MiB once settled, {end:.1} MiB at the end, ratio {ratio:.4}");
    if ratio > MOST { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What a person does between two looks at the clock, with another seed each time.
fn round(session: &Session, folder: &Path, number: usize) {
    let model = session.model("starter").unwrap();
    let template = session::template(&model);
    let mut files: Vec<LoraFile> = Vec::new();
    for (shipped, token) in SHIPPED.iter().zip(["<one>", "<two>"]) {
        let (pictures, _) = shipped::unpack(shipped, &folder.join(shipped.folder)).unwrap();
        let training = Training {
            lessons: vec![Lesson::new(token, Some(shipped.class_word.into()))],
            method: &METHODS[0],
            changes: [("steps", "12"), ("keep_every", "6"), ("save_every", "4"), ("validate_every", "6")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            slot: None,
            project: None,
            seed: number as u64,
            out: folder.join(shipped.folder).with_extension("safetensors"),
            resume: false,
            stamp: false,
            wishes: None,
        };
        let concept = session.concept(&pictures).unwrap();
        files.push(session.train(&model, &[concept], &training, &mut |_| Ok(())).unwrap().file);
    }
    let sample = |file: &LoraFile| {
        let used = Used { file: file.clone().into(), strength: Strength::default() };
        let mounted = session.mount(&model, &[used]).unwrap();
        let prompt = template.replace("{token}", "<one>").replace("{class}", SHIPPED[0].class_word);
        let request = Request { prompt, seed: number as u64, count: 2, ..Request::default() };
        session.sample(&model, &mounted, &request, &mut |_| Ok(())).unwrap().rgb().unwrap();
    };
    sample(&files[0]);
    for method in merge::METHODS.iter().filter(|method| method.needs == merge::Needs::Nothing) {
        let sources = files.iter().map(|file| Source { file: file.clone(), strength: Strength::default() }).collect();
        let settings = Settings::new(method.fields, []).unwrap();
        let out = folder.join(method.name).with_extension("safetensors");
        let merging = Merging { sources, method, settings, pictures: None, out };
        sample(&session::merge(&merging, &mut |_| Ok(())).unwrap().file);
    }
}

/// Memory of this process that is in RAM, in MiB.
fn resident() -> f64 {
    let pid = Pid::from_u32(std::process::id());
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).unwrap().memory() as f64 / f64::from(1 << 20)
}
