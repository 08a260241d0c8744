//! What a picture's file tells of how it was made: A1111's `parameters` text, which `ComfyUI` and the usual viewers read.
//!
//! The prompt with `<lora:name:strength>` marks, `Negative prompt: …`, then one line of settings.

use std::collections::BTreeMap;

use crate::engine::diffusion::sampler::SAMPLERS;
use crate::engine::field::Settings;
use crate::engine::io::png;
use crate::engine::preview::{FIELDS, Request};

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
    let more: String = further(request).into_iter().map(|(name, value)| format!(", {name}: {value}")).collect();
    let parameters = format!(
        "{}{adapters}{negative}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {model}{more}",
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

/// The fields of a request and what A1111 and SD.Next call them; nobody else has a name for the spacing.
const NAMES: [(&str, &str); 3] =
    [("spacing", "Timestep spacing"), ("zero_snr", NOISE_SCHEDULE), ("guidance_rescale", "CFG rescale")];
const NOISE_SCHEDULE: &str = "Noise Schedule";
/// What A1111 calls the two noise schedules.
const SCHEDULES: [(&str, &str); 2] = [("on", "Zero Terminal SNR"), ("off", "Default")];
/// Written where a picture began with another one.
pub const DENOISING: &str = "Denoising strength";

/// The settings after the model's name: those that are not as usual, and which generator drew the noise.
fn further(request: &Request) -> Vec<(&'static str, String)> {
    let strength = request.init.as_ref().map(|init| (DENOISING, init.strength.to_string()));
    let field = |(field, name): (&str, &'static str)| {
        let value = request.changes.get(field)?;
        let schedule = SCHEDULES.iter().find(|(word, _)| name == NOISE_SCHEDULE && word == value);
        Some((name, schedule.map_or_else(|| value.clone(), |(_, title)| (*title).to_owned())))
    };
    let skip = (request.clip_skip > 1).then(|| ("Clip skip", request.clip_skip.to_string()));
    strength
        .into_iter()
        .chain(skip)
        .chain(NAMES.into_iter().filter_map(field))
        .chain([("RNG", "NV".to_owned())])
        .collect()
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
    // Later versions of A1111 tell the spacing apart from the sampler.
    let whole = || sampler(&format!("{} {}", value("Sampler")?, value("Schedule type")?));
    let named = whole().or_else(|| value("Sampler").and_then(sampler));
    let number = |name: &str| value(name)?.parse::<usize>().ok();
    let size = value("Size").and_then(|size| {
        let (width, height) = size.split_once('x')?;
        Some([width.parse().ok()?, height.parse().ok()?])
    });
    let field = |(field, name): (&str, &str)| {
        let text = value(name)?;
        let schedule = SCHEDULES.iter().find(|(_, title)| name == NOISE_SCHEDULE && *title == text);
        Some((field.to_owned(), schedule.map_or(text, |(word, _)| word).to_owned()))
    };
    let known = |(field, text): &(String, String)| Settings::new(FIELDS, [(field.as_str(), text.as_str())]).is_ok();
    Some(Request {
        changes: NAMES.into_iter().filter_map(field).filter(known).collect(),
        prompt: without_marks(prompt.trim()),
        negative: negative.trim().to_owned(),
        clip_skip: number("Clip skip").filter(|&skip| skip > 0).unwrap_or(usual.clip_skip),
        sampler: named.unwrap_or(usual.sampler),
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
    use crate::engine::preview::Init;

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
            changes: [("spacing", "trailing"), ("zero_snr", "on"), ("guidance_rescale", "0.7")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Request::default()
        };
        let text = text(&request, [64, 96], 0, "starter", &[("robot".into(), 0.5), ("head".into(), -1.0)]);
        let again = read(&text[png::PARAMETERS]).unwrap();
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }

    #[test]
    fn what_a_picture_began_with_is_told() {
        let picture = image::RgbImage::new(8, 8).into();
        let init = Init { file: "a.png".into(), picture, strength: 0.4, mask: None };
        let text = text(&Request { init: Some(init), ..Request::default() }, [8, 8], 0, "starter", &[]);
        assert!(text[png::PARAMETERS].ends_with("Model: starter, Denoising strength: 0.4, RNG: NV"), "{text:?}");
    }

    #[test]
    fn pictures_of_other_programs_are_understood() {
        let text = "cat <lora:x:0.8>, on a mat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, \
                    Size: 512x768, Model hash: abc, Model: sd15";
        let request = read(text).unwrap();
        assert_eq!((request.prompt.as_str(), request.negative.as_str()), ("cat, on a mat", "dog"));
        assert_eq!((request.steps, request.seed, request.size), (20, 5, Some([512, 768])));
        assert_eq!(request.sampler, "euler_ancestral");
        let text = "cat\nSteps: 20, Sampler: UniPC, CFG scale: 7, Noise Schedule: Default, CFG rescale: 7";
        let request = read(text).unwrap();
        assert_eq!((request.sampler.as_str(), request.changes.len()), ("unipc", 1));
        assert_eq!(request.changes["zero_snr"], "off");
        for (kind, expected) in [("Karras", "dpmpp_2m_karras"), ("Automatic", "dpmpp_2m")] {
            let text = format!("cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: {kind}, CFG scale: 7");
            assert_eq!(read(&text).unwrap().sampler, expected);
        }
        assert!(read("no settings here").is_none());
        assert!(read("").is_none());
    }
}
