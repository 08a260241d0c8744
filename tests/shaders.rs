//! Every shader parses, validates and keeps the promises that its launch relies on; no GPU is needed.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use std::fs;
use std::path::{Path, PathBuf};

use naga::valid::{Capabilities, GlobalUse, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};
use triptych::engine::ops::wgsl::Wgsl;
use triptych::engine::ops::{OPS, Op};

/// A page, so that a shader is read at one sitting.
const LONGEST: usize = 79;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

/// Path below `shaders/` and text of every shader.
fn files() -> Vec<(String, String)> {
    let entries = walkdir::WalkDir::new(root()).sort_by_file_name().into_iter().map(Result::unwrap);
    let shaders = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "wgsl"));
    let place = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    shaders.map(|entry| (place(entry.path()), fs::read_to_string(entry.path()).unwrap())).collect()
}

/// The kernel of each of its element types.
fn kernels(op: &Op) -> impl Iterator<Item = Wgsl> {
    op.elements.iter().filter_map(|&elements| (op.kernel)(elements))
}

/// What a GPU's compiler would say, or else the first promise of `ops::wgsl::Wgsl` that a kernel breaks.
fn fault(text: &str, kernel: bool) -> Option<String> {
    let module = match naga::front::wgsl::parse_str(text) {
        Ok(module) => module,
        Err(error) => return Some(error.emit_to_string(text)),
    };
    let info = match Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16).validate(&module) {
        Ok(info) => info,
        Err(error) => return Some(error.emit_to_string(text)),
    };
    if !kernel {
        return None;
    }
    let [entry] = &module.entry_points[..] else { return Some("has not one entry point".into()) };
    if entry.name != "main" {
        return Some(format!("has the entry point “{}” instead of “main”", entry.name));
    }
    let uses = info.get_entry_point(0);
    let mut places = Vec::new();
    for (handle, variable) in module.global_variables.iter() {
        let Some(place) = variable.binding else { continue };
        let name = variable.name.as_deref().unwrap_or("?");
        let both = StorageAccess::LOAD | StorageAccess::STORE;
        if variable.space != (AddressSpace::Storage { access: both }) {
            return Some(format!("binds “{name}” otherwise than as var<storage, read_write>"));
        }
        if uses[handle] == GlobalUse::empty() {
            return Some(format!("binds “{name}” and never uses it"));
        }
        places.push((place.group, place.binding));
    }
    let in_order = places.iter().enumerate().all(|(i, &place)| place == (0, i as u32));
    (!in_order).then(|| "binds in another order than group 0 from 0 on".into())
}

#[test]
fn every_shader_is_valid() {
    let mut faults = Vec::new();
    let files = files();
    let common = |name: &str| files.iter().find(|(path, _)| path == name).map_or("", |(_, text)| text.as_str());
    for (path, text) in &files {
        let mut fail = |what: String| faults.push(format!("shaders/{path}: {what}"));
        if text.lines().count() > LONGEST {
            fail(format!("{} lines are more than {LONGEST}", text.lines().count()));
        }
        if path.starts_with("paint/") {
            fault(&format!("{}\n{text}", common("common/paint.wgsl")), false).map(&mut fail);
        }
        if let Some(name) = path.strip_prefix("common/")
            && name != "paint.wgsl"
            && !OPS.iter().flat_map(kernels).any(|kernel| kernel.text.contains(text.as_str()))
        {
            fail("is in no kernel's text".into());
        }
        let Some(place) = path.strip_prefix("ops/") else {
            if !["paint/", "common/"].iter().any(|folder| path.starts_with(folder)) {
                fail("lies where no shader does".into());
            }
            continue;
        };
        let name = place.split(['/', '.']).next().unwrap_or_default();
        let Some(op) = OPS.iter().find(|op| name == op.name) else {
            fail("has no row in ops::OPS".into());
            continue;
        };
        for &elements in op.elements {
            match (op.kernel)(elements) {
                None => fail(format!("declares {elements:?}, which WGSL lacks")),
                Some(kernel) if !kernel.text.contains(text.as_str()) => {
                    fail("is not in the text that its row compiles".into());
                }
                Some(kernel) => _ = fault(&kernel.filled(), true).map(|what| fail(format!("for {elements:?} {what}"))),
            }
        }
    }
    for op in OPS {
        if !root().join(format!("ops/{}.wgsl", op.name)).is_file() {
            faults.push(format!("ops::OPS has a row “{}” without shaders/ops/{}.wgsl", op.name, op.name));
        }
        let belongs =
            |path: &str| path == format!("ops/{}.wgsl", op.name) || path.starts_with(&format!("ops/{}/", op.name));
        for kernel in kernels(op) {
            let is_of =
                |path: &str, text: &str| belongs(path) || path.starts_with("common/") && kernel.text.contains(text);
            let read: usize = files.iter().filter(|(path, text)| is_of(path, text)).map(|(_, text)| text.len()).sum();
            if read != kernel.text.len() {
                faults.push(format!("the row “{}” compiles more than lies in shaders/", op.name));
            }
        }
        if op.formula.is_empty() || op.elements.is_empty() {
            faults.push(format!("the row “{}” lacks its formula or its element types", op.name));
        }
    }
    assert!(faults.is_empty(), "{} faults\n\n{}", faults.len(), faults.join("\n"));
}

const SOUND: &str = "
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&y) { y[id.x] = 2.0 * x[id.x]; }
}";

#[test]
fn a_broken_shader_would_be_caught() {
    assert_eq!(fault(SOUND, true), None);
    for (from, to, expected) in [
        ("= 2.0", "= ;", "expected expression"),
        ("array<f32>", "array<f31>", "f31"),
        ("array<f32>", "array<{{ element }}>", "expected"),
        ("2.0 *", "2u *", "Operation Multiply"),
        ("fn main(", "fn start(", "instead of “main”"),
        ("<storage, read_write> x", "<storage, read> x", "otherwise than"),
        ("x[id.x]", "3.0", "never uses"),
        ("binding(1)", "binding(2)", "another order"),
    ] {
        let found = fault(&SOUND.replace(from, to), true).unwrap_or_default();
        assert!(found.contains(expected), "{from} → {to} gave “{found}”");
    }
}
