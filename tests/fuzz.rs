//! Files that are broken in every way: whatever opens one says so in a sentence, without a panic and without asking for
//! more memory than the file could fill.
//!
//! Seeded: the same rounds each time. `TRIPTYCH_FUZZ_SECONDS=3600 cargo test --test fuzz` goes on for an hour, from
//! `TRIPTYCH_FUZZ_FIRST` on; a finding names its round.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::lora_file::loads::loads_in;
use triptych::engine::io::lora_file::relative::Base;
use triptych::engine::io::safetensors::{Checkpoint, Tensor, save};
use triptych::engine::io::{Dtype, detect};
use triptych::engine::project::{AdapterEntry, ConceptEntry, Desk, Fader, Project};
use triptych::engine::random::Philox;

thread_local! {
    /// The largest piece of memory that this thread asked for.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

#[expect(unsafe_code, reason = "an allocator is unsafe by nature; this one only looks at the sizes")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size()))).ok();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What a reader may ask for at once beside what the file fills: tables of names, buffers.
const SPARE: usize = 1 << 20;
/// Numbers of a file are kept as f64 at most, from halves.
const WIDER: usize = 16;

/// Bytes that break more than others.
const WORDS: [&[u8]; 22] = [
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967296",
    b"-1",
    b"0",
    b"1e309",
    b"null",
    b"true",
    b"\"\"",
    b"{}",
    b"[]",
    b"[[",
    b"{\"",
    b"\\u0000",
    b"\xff\xfe",
    b"F64",
    b"I64",
    b"lora_down.weight",
    b"alpha",
    b"..",
    b"=",
    b"\n",
];

fn mutated(seed: &[u8], round: u32) -> Vec<u8> {
    let random = Philox::new(u64::from(round));
    let mut bytes = seed.to_vec();
    let changes = 1 + random.below(0, 0, 6);
    for change in 0..changes as u32 {
        let pick = |stream: u32, n: usize| random.below(1 + stream, change, n.max(1));
        // Headers are where sizes stand.
        let reach = if pick(0, 4) > 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = pick(1, reach);
        let end = (at + 1 + pick(2, 24)).min(bytes.len());
        match pick(3, 7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << pick(4, 8),
            1 if at < bytes.len() => bytes[at] = pick(5, 256) as u8,
            2 => drop(bytes.drain(at.min(end)..end)),
            3 => {
                let copy = bytes[at.min(end)..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            4 => drop(bytes.splice(at.min(end)..end, WORDS[pick(6, WORDS.len())].iter().copied())),
            5 => drop(bytes.splice(at..at, WORDS[pick(6, WORDS.len())].iter().copied())),
            _ => bytes.truncate(pick(7, bytes.len() + 1)),
        }
    }
    // Half of the headers keep the length that they have now, so that what is in them is read at all.
    if bytes.len() > 8 && random.below(90, 0, 2) == 0 {
        let header =
            bytes.windows(2).position(|pair| pair == b"}}").map_or(bytes.len(), |end| end + 2).saturating_sub(8);
        bytes[..8].copy_from_slice(&(header as u64).to_le_bytes());
    }
    bytes
}

/// Every kind of layer in one file of few bytes.
fn adapters() -> Vec<Vec<u8>> {
    let shapes: [&[(&str, &[usize])]; 10] = [
        &[("lora_down.weight", &[2, 4]), ("lora_up.weight", &[6, 2]), ("alpha", &[]), ("dora_scale", &[6, 1])],
        &[("lora_down.weight", &[2, 4, 1, 1]), ("lora_mid.weight", &[2, 2, 3, 3]), ("lora_up.weight", &[6, 2, 1, 1])],
        &[("hada_w1_a", &[6, 2]), ("hada_w1_b", &[2, 4]), ("hada_w2_a", &[6, 2]), ("hada_w2_b", &[2, 4])],
        &[("lokr_w1", &[2, 2]), ("lokr_w2_a", &[3, 1]), ("lokr_w2_b", &[1, 2]), ("alpha", &[])],
        &[("oft_blocks", &[3, 2, 2]), ("alpha", &[]), ("rescale", &[6, 1])],
        &[("oft_R.weight", &[2, 1])],
        &[("a1.weight", &[4, 2]), ("a2.weight", &[2, 4]), ("b1.weight", &[6, 2]), ("b2.weight", &[2, 4])],
        &[("weight", &[6]), ("on_input", &[])],
        &[("diff", &[6, 4]), ("diff_b", &[6])],
        &[("w_norm", &[6]), ("b_norm", &[6])],
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let file = |layer: &&[(&str, &[usize])]| {
        let tensor =
            |shape: &[usize]| Tensor::new(Dtype::F32, shape, &Philox::new(1).normal(0, shape.iter().product()));
        let named = layer.iter().map(|(part, shape)| (format!("lora_unet_mid_block_x.{part}"), tensor(shape)));
        let metadata = BTreeMap::from([("lora_adapter_metadata".to_owned(), "{\"unet.r\": 2}".to_owned())]);
        save(&path, &named.collect(), &metadata).unwrap();
        std::fs::read(&path).unwrap()
    };
    shapes.iter().map(file).collect()
}

fn read_adapter(path: &Path) {
    drop(detect::detect(path).map(|found| found.words()));
    drop(Checkpoint::open(path).map(|file| loads_in(&[file])));
    let base = Base { weight: vec![0.5; 24], shape: vec![6, 4], bias: Some(vec![0.5; 6]) };
    let Ok(file) = LoraFile::open(path) else { return };
    for module in file.modules() {
        drop(file.pair(module));
    }
    drop(file.on(|_| Ok(Some(base.clone()))));
}

/// What reads a kind of file, and whole ones of it to begin with.
struct Target {
    name: &'static str,
    file: &'static str,
    seeds: Vec<Vec<u8>>,
    /// Files beside it, as they are.
    beside: Vec<(&'static str, Vec<u8>)>,
    read: fn(&Path),
}

fn targets() -> Vec<Target> {
    let adapters = adapters();
    let peft = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "use_rslora": true, "alpha_pattern": {"x": 3},
        "use_cayley_neumann": true, "num_cayley_neumann_terms": 5, "feedforward_modules": ["x"]}"#;
    let mut project = Project::new(8);
    project.desk.faders.push(Fader::new("a.safetensors".into()));
    project.desk.faders[0].blocks.insert("mid_block".into(), 0.5);
    project.desk.changes.insert("density".into(), "0.5".into());
    project.adapters.push(AdapterEntry::of("a.safetensors".into()));
    project.concepts.push(ConceptEntry {
        name: "a".into(),
        folder: "a".into(),
        token: "<a>".into(),
        class: "b".into(),
    });
    let recipe = toml::to_string(&project.desk).unwrap();
    let project = toml::to_string(&project).unwrap();
    let folder = |path: &Path| read_adapter(path.parent().unwrap());
    vec![
        Target { name: "adapter", file: "a.safetensors", seeds: adapters.clone(), beside: vec![], read: read_adapter },
        Target {
            name: "adapter_config",
            file: "adapter_config.json",
            seeds: vec![peft.to_vec()],
            beside: vec![("adapter_model.safetensors", adapters[0].clone())],
            read: folder,
        },
        Target {
            name: "project",
            file: "a.toml",
            seeds: vec![project.into()],
            beside: vec![],
            read: |path| drop(Project::open(path, 8)),
        },
        Target {
            name: "recipe",
            file: "a.toml",
            seeds: vec![recipe.into()],
            beside: vec![],
            read: |path| drop(Desk::open_recipe(path)),
        },
    ]
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn whatever_is_broken_is_told_in_a_sentence() {
    let time = Duration::from_secs(number("TRIPTYCH_FUZZ_SECONDS", 8));
    let first = number("TRIPTYCH_FUZZ_FIRST", 0) as u32;
    let targets = targets();
    // Whole files are read; otherwise nothing behind the first check would ever be.
    let folder = tempfile::tempdir().unwrap();
    let place = |target: &Target, content: &[u8]| -> PathBuf {
        for (name, content) in &target.beside {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        std::fs::write(folder.path().join(target.file), content).unwrap();
        folder.path().join(target.file)
    };
    for seed in &targets[0].seeds {
        LoraFile::open(&place(&targets[0], seed)).unwrap_or_else(|e| panic!("{e}"));
    }
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let (mut round, mut largest, mut findings) = (first, 0, Vec::new());
    while begun.elapsed() < time && findings.is_empty() {
        let target = &targets[round as usize % targets.len()];
        let seed = &target.seeds[round as usize / targets.len() % target.seeds.len()];
        let content = mutated(seed, round);
        let path = place(target, &content);
        LARGEST.set(0);
        let panicked = catch_unwind(AssertUnwindSafe(|| (target.read)(&path))).is_err();
        let asked = LARGEST.get();
        largest = largest.max(asked);
        if panicked || asked > SPARE + WIDER * content.len() {
            let kept = std::env::temp_dir().join(format!("triptych-fuzz-{}-{round}", target.name));
            std::fs::write(&kept, &content).unwrap();
            findings.push(format!(
                "round {round} ({}): panicked {panicked}, asked for {asked} bytes for a file of {}; kept as {}",
                target.name,
                content.len(),
                kept.display()
            ));
        }
        std::fs::remove_file(&path).unwrap();
        round += 1;
    }
    drop(std::panic::take_hook());
    println!("{} rounds, the largest piece of memory {largest} bytes", round - first);
    assert!(findings.is_empty(), "{findings:#?}");
}
