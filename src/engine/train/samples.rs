//! Pictures of what was learnt by a step, in `OUT.samples/`: `000080-1.png` is the first prompt's at step 80.
//!
//! They are made from the adapter as its file would have it, with a seed of their own: no number of the training changes.

use std::path::{Path, PathBuf};

use crate::engine::concept;
use crate::engine::event::{Event, Watch};
use crate::engine::io::png;
use crate::engine::model::prompt;
use crate::engine::model::tokenizer::Word;
use crate::engine::preview::{self, Mounted, Request, Token};
use crate::engine::train::beside;
use crate::engine::train::config::Config;
use crate::engine::train::job::{Job, Subject};
use crate::engine::train::step::Trainee;
use crate::engine::words::stem;
use crate::engine::{Error, Result, parameters};

/// Steps of the sampler: enough to judge by.
const STEPS: usize = 12;

/// The folder that holds the samples of the run that writes `out`.
pub fn folder(out: &Path) -> PathBuf {
    beside(out, ".samples")
}

/// A picture for each prompt.
pub fn make(job: &Job<'_>, config: &Config, trainee: &Trainee, step: usize, watch: &mut Watch<'_>) -> Result<()> {
    let names = trainee.tokens.iter().map(|&index| trainee.parameters[index].name.clone());
    let tokens = names
        .zip(trainee.words(&trainee.values()))
        .map(|(text, vectors)| Token { word: Word { text, vectors: vectors.dims()[1] }, vectors });
    let mounted = Mounted { mounts: trainee.at_rest(), tokens: tokens.collect(), ..Mounted::default() };
    let adapter = stem(&job.out);
    for (i, prompt) in prompts(job, config).into_iter().enumerate() {
        let request = Request {
            prompt: prompt::literal(&prompt),
            clip_skip: config.clip_skip,
            steps: STEPS,
            seed: job.context.seed,
            size: config.views.resolutions.first().map(|&side| [side; 2]),
            ..Request::default()
        };
        // The bar of the training stays: of the sampler's own progress only warnings are told.
        let mut quiet = |event: Event| if matches!(event, Event::Warning { .. }) { watch(event) } else { Ok(()) };
        let pictures = preview::sample(job.model, &mounted, &request, &mut quiet)?.rgb()?;
        let path = folder(&job.out).join(format!("{step:06}-{}.png", i + 1));
        for picture in &pictures {
            let size = [picture.width(), picture.height()];
            png::write(
                &path,
                picture,
                &parameters::text(&request, size, 0, &job.model.name, &[(adapter.clone(), 1.0)]),
            )?;
        }
        watch(Event::Sampled { step, prompt, path })?;
    }
    Ok(())
}

/// Those of the settings, each about the concept whose word it has or else the first; without any, one for each concept.
fn prompts(job: &Job<'_>, config: &Config) -> Vec<String> {
    let caption = |text, subject: &Subject<'_>| concept::caption(text, &job.template, &subject.trigger);
    let about = |text: &str| job.subjects.iter().find(|subject| text.contains(&subject.trigger.token));
    let texts = config.sample_prompts();
    if texts.is_empty() {
        return job.subjects.iter().map(|subject| caption(None, subject)).collect();
    }
    let subject = |text: &str| about(text).or(job.subjects.first());
    texts.into_iter().filter_map(|text| Some(caption(Some(text), subject(text)?))).collect()
}

/// Forgets the samples of an earlier run; what is not there is fine.
pub fn remove(out: &Path) -> Result<()> {
    let folder = folder(out);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_sample(path)) {
        std::fs::remove_file(&path).map_err(|e| Error::io("remove an old sample", &path, &e))?;
    }
    // Whatever else somebody has put there stays, and the folder with it.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

/// `000080-1.png`
fn is_sample(path: &Path) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = || path.file_name()?.to_str()?.strip_suffix(".png")?.split_once('-');
    parts().is_some_and(|(step, prompt)| step.len() >= 6 && number(step) && number(prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_samples_are_forgotten() {
        let desk = tempfile::tempdir().unwrap();
        let out = desk.path().join("a.safetensors");
        assert!(remove(&out).is_ok());
        std::fs::create_dir(folder(&out)).unwrap();
        for name in ["000080-1.png", "1000000-12.png", "mine.png", "80-1.png"] {
            std::fs::write(folder(&out).join(name), "").unwrap();
        }
        remove(&out).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(folder(&out)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["80-1.png", "mine.png"]);
    }
}
