//! `triptych doctor`

use std::process::ExitCode;

use crate::cli::{Progress, Shell};
use crate::engine::Result;
use crate::engine::device;
use crate::engine::doctor::{Adapter, Caches, Limits, Report, SelfTest, examine};
use crate::engine::model::StableDiffusion;
use crate::engine::ops::self_test::{Check, LAYER, Verdict};
use crate::engine::words::{bytes, counted};

#[derive(clap::Args)]
pub struct Args {
    /// Try the layers of this model too: a folder, a single file, or `starter`
    #[arg(long, value_name = "M", default_value = "starter")]
    model: String,
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let mut progress = Progress::new(shell.json);
    // Its shapes are all that is asked of it.
    let model = StableDiffusion::open(&StableDiffusion::folder(&args.model), &device::cpu())?;
    let (name, shapes) = (model.name.clone(), model.layer_shapes());
    drop(model);
    let report = examine(shell.device, &shapes, &mut progress.watch())?;
    shell.print(&report, || words(&report, &name))?;
    Ok(if report.self_test.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Short enough for a bug report.
fn words(report: &Report, model: &str) -> String {
    let Report { machine, adapters, automatic, device, caches, self_test, speed } = report;
    let libraries = machine.libraries.iter().map(|(name, version)| format!(", {name} {version}")).collect::<String>();
    let free = machine.free_bytes.map_or(String::new(), |free| format!(", {} free", bytes(free)));
    let mut lines = vec![
        format!("triptych {}{libraries}", machine.triptych),
        machine.system.clone(),
        format!(
            "{}, {}, {} of memory{free}",
            machine.processor,
            counted(machine.cores, "thread"),
            bytes(machine.memory_bytes)
        ),
        String::new(),
    ];
    if adapters.is_empty() {
        lines.push("No graphics adapter".into());
    }
    lines.extend(adapters.iter().flat_map(of_adapter));
    lines.push(format!("--device auto takes: {automatic}"));
    lines.push(format!("Tried here: {}", device.reason));
    lines.push(String::new());
    lines.extend(of_caches(caches));
    lines.push(String::new());
    lines.extend(of_self_test(self_test, model));
    lines.push(String::new());
    lines.push("Speed, the fastest of several times".into());
    lines.extend(speed.iter().map(|speed| match &speed.fault {
        Some(fault) => format!("  {:<52} did not run ({fault})", speed.name),
        None => format!("  {:<52} {:>9.1} {:<8} {:>9.2} ms", speed.name, speed.rate, speed.unit, speed.milliseconds),
    }));
    lines.join("\n")
}

fn of_adapter(adapter: &Adapter) -> [String; 3] {
    let Adapter { choice, name, api, driver, kind, f16, limits } = adapter;
    let Limits {
        buffer_bytes,
        binding_bytes,
        storage_buffers,
        workgroup_invocations,
        workgroup_size: [x, y, z],
        workgroup_bytes,
        workgroups_per_axis,
    } = limits;
    let f16 = if *f16 { "computes in f16" } else { "no f16" };
    [
        format!("{choice}: {name}, {kind}, {api}, {driver}; {f16}"),
        format!(
            "  buffers of {}, {} of them bound; {storage_buffers} for a kernel",
            bytes(*buffer_bytes),
            bytes(*binding_bytes)
        ),
        format!(
            "  workgroups of {workgroup_invocations}, at most {x}×{y}×{z}, with {workgroup_bytes} bytes; \
             {workgroups_per_axis} along an axis"
        ),
    ]
}

fn of_caches(caches: &Caches) -> [String; 2] {
    let Caches { folder, latents, self_tests, kernels, kernels_bytes, tuned } = caches;
    let place = folder.as_ref().map_or("nowhere".into(), |folder| folder.display().to_string());
    [
        format!("Kept in {place}: latents {}, {}", bytes(latents.bytes), counted(self_tests.files, "passed self-test")),
        format!("Kernels in {}: {tuned} tuned, {}", kernels.display(), bytes(*kernels_bytes)),
    ]
}

/// Layers are many: those that are right are counted.
fn of_self_test(test: &SelfTest, model: &str) -> Vec<String> {
    let SelfTest { passed, whole, remembered, checks } = test;
    let verdict = if *passed { "passed" } else { "FAILED" };
    let part = if *whole { "" } else { ", without gradients and layers: in software they take minutes" };
    let before = if *remembered { "; the quick one at every start passed before" } else { "" };
    let mut lines = vec![format!("Self-test against the CPU {verdict}{part}{before}")];
    let is_counted = |check: &Check| check.name.starts_with(LAYER) && check.verdict == Verdict::Right;
    lines.extend(checks.iter().filter(|check| !is_counted(check)).map(|check| {
        let Check { name, difference, milliseconds, verdict } = check;
        match verdict {
            Verdict::Right => format!("  right   {name:<36} {difference:>8.1e} {milliseconds:>9.1} ms"),
            Verdict::Wrong(why) => format!("  WRONG   {name:<36} {why}"),
            Verdict::Absent => format!("  absent  {name:<36} the device has no such numbers"),
        }
    }));
    let right: Vec<&Check> = checks.iter().filter(|check| is_counted(check)).collect();
    if !right.is_empty() {
        let worst = right.iter().fold(0.0_f32, |worst, check| worst.max(check.difference));
        let milliseconds: f64 = right.iter().map(|check| check.milliseconds).sum();
        let name = format!("{} of {model}", counted(right.len(), "layer shape"));
        lines.push(format!("  right   {name:<36} {worst:>8.1e} {milliseconds:>9.1} ms"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_right_are_counted_and_one_that_is_wrong_is_named() {
        let check = |name: &str, verdict| Check { name: name.into(), difference: 1e-7, milliseconds: 2.0, verdict };
        let checks = vec![
            check("GELU", Verdict::Right),
            check("f16 as f32", Verdict::Absent),
            check("layer norm", Verdict::Right),
            check("layer of 8 → 8, 3×3", Verdict::Right),
            check("layer of 8 → 16, 3×3", Verdict::Right),
            check("layer of 96 → 96, 1×1", Verdict::Wrong("off by 3e-1 of its largest value, 7".into())),
        ];
        let text =
            of_self_test(&SelfTest { passed: false, whole: true, remembered: false, checks }, "starter").join("\n");
        assert!(text.starts_with("Self-test against the CPU FAILED\n"), "{text}");
        assert!(text.contains("2 layer shapes of starter") && text.contains("WRONG   layer of 96 → 96"), "{text}");
        assert!(text.contains("layer norm") && !text.contains("8 → 8"), "{text}");
    }
}
