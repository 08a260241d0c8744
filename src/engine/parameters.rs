//! What a picture's file tells of how it was made: A1111's `parameters` text, which `ComfyUI` and the usual viewers read.
//!
//! The prompt with `<lora:name:strength>` marks, `Negative prompt: …`, then one line of settings.

use std::collections::BTreeMap;

use crate::engine::diffusion::sampler::SAMPLERS;
use crate::engine::io::png;
use crate::engine::preview::Request;

/// The texts of a PNG: picture `i` of the request, made by `model` with adapters of these names and strengths.
pub fn text(
    request: &Request,
    size: [u32; 2],
    i: usize,
    model: &str,
    adapters: &[(String, f32)],
) -> BTreeMap<String, String> {
    let adapters: String = adapters.iter().map(|(name, strength)| format!(" <lora:{name}:{strength}>")).collect();
    let negative = match request.negative.as_str() {
        "" => String::new(),
        negative => format!("\nNegative prompt: {negative}"),
    };
    let clip_skip = match request.clip_skip {
        1 => String::new(),
        skip => format!(", Clip skip: {skip}"),
    };
    let parameters = format!(
        "{}{adapters}{negative}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {model}{clip_skip}",
        request.prompt,
        request.steps,
        request.sampler,
        request.cfg,
        request.seed.wrapping_add(i as u64),
        size[0],
        size[1],
    );
    BTreeMap::from([(png::PARAMETERS.to_owned(), parameters), ("Software".to_owned(), "Triptych".to_owned())])
}

/// What such a text asks for, as far as this program can do it; `None` where there are no settings in it. The strengths of
/// adapters are not part of it: their marks are taken out of the prompt.
pub fn read(text: &str) -> Option<Request> {
    let settings_at = text.rfind("Steps: ").filter(|&at| at == 0 || text[..at].ends_with('\n'))?;
    let (words, settings) = text.split_at(settings_at);
    let (prompt, negative) = match words.find("Negative prompt: ") {
        Some(at) => (&words[..at], words[at..].trim_start_matches("Negative prompt: ")),
        None => (words, ""),
    };
    let value = |name: &str| {
        settings.split(", ").find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
    };
    let usual = Request::default();
    let number = |name: &str| value(name)?.parse::<usize>().ok();
    let size = value("Size").and_then(|size| {
        let (width, height) = size.split_once('x')?;
        Some([width.parse().ok()?, height.parse().ok()?])
    });
    Some(Request {
        prompt: without_marks(prompt.trim()),
        negative: negative.trim().to_owned(),
        clip_skip: number("Clip skip").filter(|&skip| skip > 0).unwrap_or(usual.clip_skip),
        sampler: value("Sampler").and_then(sampler).unwrap_or(usual.sampler),
        steps: number("Steps").unwrap_or(usual.steps),
        cfg: value("CFG scale").and_then(|cfg| cfg.parse().ok()).unwrap_or(usual.cfg),
        seed: value("Seed").and_then(|seed| seed.parse().ok()).unwrap_or(usual.seed),
        size,
        ..Request::default()
    })
}

/// The sampler of this name here, or of its name in A1111: `DPM++ 2M Karras`.
fn sampler(name: &str) -> Option<String> {
    let plain =
        |name: &str| name.to_lowercase().replace(['+', ' ', '_', '-'], "").replace("pp", "").replace("ancestral", "a");
    SAMPLERS.iter().find(|row| plain(row.name) == plain(name)).map(|row| row.name.to_owned())
}

fn without_marks(prompt: &str) -> String {
    let mut rest = prompt;
    let mut kept = String::new();
    while let Some(start) = rest.find("<lora:") {
        let Some(length) = rest[start..].find('>') else { break };
        kept.push_str(rest[..start].trim_end());
        rest = &rest[start + length + 1..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let request = Request {
            prompt: "a 3d emoji of <robo> robot, Steps: many".into(),
            negative: "hat, shoes".into(),
            clip_skip: 2,
            steps: 17,
            cfg: 3.5,
            seed: u64::MAX,
            size: Some([64, 96]),
            sampler: SAMPLERS[2].name.into(),
            ..Request::default()
        };
        let text = text(&request, [64, 96], 0, "starter", &[("robot".into(), 0.5), ("head".into(), -1.0)]);
        let again = read(&text[png::PARAMETERS]).unwrap();
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }

    #[test]
    fn pictures_of_other_programs_are_understood() {
        let text = "cat <lora:x:0.8>, on a mat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, \
                    Size: 512x768, Model hash: abc, Model: sd15";
        let request = read(text).unwrap();
        assert_eq!((request.prompt.as_str(), request.negative.as_str()), ("cat, on a mat", "dog"));
        assert_eq!((request.steps, request.seed, request.size), (20, 5, Some([512, 768])));
        assert_eq!(request.sampler, "euler_ancestral");
        assert!(read("no settings here").is_none());
        assert!(read("").is_none());
    }
}
