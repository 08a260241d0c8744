//! Pictures over two parameters.

use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;

use crate::engine::adapter::mount::Strength;
use crate::engine::contact_sheet::{self, Row};
use crate::engine::preview::Request;
use crate::engine::{Error, Result};
use crate::ui::work::painter::{Mix, Picture};

/// Cells of a grid at most: more could not be told apart, and would take an evening.
const MOST: usize = 100;

#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    Prompt,
    Seed,
    Steps,
    Guidance,
    Sampler,
    /// How far the picture to start from may change.
    Change,
    /// Of the adapter with this name in this file.
    Strength {
        name: String,
        file: PathBuf,
    },
}

/// What is varied, and over which values as they were typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub axes: [Axis; 2],
    /// Along x separated by commas (prompts by `|`), then along y.
    pub values: [String; 2],
}

/// A grid on its way.
pub struct Grid {
    pub run: u64,
    pub labels: [Vec<String>; 2],
    /// Row by row.
    pub cells: Vec<Option<Picture>>,
    pub errors: usize,
    pub started: Instant,
    pub base: Request,
}

impl Axis {
    pub fn title(&self) -> String {
        match self {
            Self::Prompt => "Prompt".into(),
            Self::Seed => "Seed".into(),
            Self::Steps => "Steps".into(),
            Self::Guidance => "Guidance".into(),
            Self::Sampler => "Sampler".into(),
            Self::Change => "Strength of change".into(),
            Self::Strength { name, .. } => format!("Strength of {name}"),
        }
    }

    /// Values to begin with.
    pub fn usual(&self) -> &'static str {
        match self {
            Self::Prompt => "{prompt} | {prompt}, smiling",
            Self::Seed => "0, 1, 2, 3",
            Self::Steps => "5, 10, 20",
            Self::Guidance => "1, 2, 4, 7",
            Self::Sampler => "ddim, euler, dpmpp_2m",
            Self::Change => "0.2, 0.4, 0.6, 0.8",
            Self::Strength { .. } => "0, 0.5, 1, 1.5",
        }
    }

    fn split(&self, text: &str) -> Vec<String> {
        let by = if *self == Self::Prompt { '|' } else { ',' };
        text.split(by).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty()).collect()
    }

    fn set(&self, value: &str, request: &mut Request, mix: &mut Mix) -> Result<()> {
        let wrong =
            || Error::usage(format!("{} cannot be “{value}”", self.title()), "Write numbers separated by commas");
        match self {
            Self::Prompt => request.prompt = value.replace("{prompt}", &request.prompt),
            Self::Seed => request.seed = value.parse().ok().ok_or_else(wrong)?,
            Self::Steps => request.steps = value.parse().ok().filter(|&n| n > 0).ok_or_else(wrong)?,
            Self::Guidance => request.cfg = value.parse().ok().ok_or_else(wrong)?,
            Self::Sampler => {
                value.clone_into(&mut request.sampler);
                crate::engine::diffusion::sampler::sampler(value)?;
            }
            Self::Change => {
                let init = request.init.as_mut().ok_or_else(|| {
                    let what = "There is no picture whose change could be varied";
                    Error::usage(what, "Choose one under Picture, at “Start from a picture”")
                })?;
                let strength = value.parse().ok().filter(|x| (0.0..=1.0).contains(x));
                init.strength = strength.ok_or_else(wrong)?;
            }
            Self::Strength { file, .. } => {
                let strength: f32 = value.parse().ok().ok_or_else(wrong)?;
                for (_, heard) in mix.iter_mut().filter(|(adapter, _)| adapter.path == *file) {
                    *heard = Strength { blocks: heard.blocks.clone(), ..Strength::uniform(strength) };
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    /// The labels along both axes, and every cell row by row.
    #[expect(clippy::type_complexity, reason = "the two things that a plan is turned into")]
    pub fn cells(&self, base: &Request, mix: &Mix) -> Result<([Vec<String>; 2], Vec<(Request, Mix)>)> {
        let [x, y] = &self.axes;
        let labels = [x.split(&self.values[0]), y.split(&self.values[1])];
        let count = labels[0].len() * labels[1].len();
        if count == 0 || count > MOST {
            return Err(Error::usage(
                format!("A grid of {count} pictures cannot be made"),
                format!("Write at least one value for each side, and at most {MOST} pictures in all"),
            ));
        }
        let mut cells = Vec::new();
        for row in &labels[1] {
            for column in &labels[0] {
                let (mut request, mut mix) = (base.clone(), mix.clone());
                y.set(row, &mut request, &mut mix)?;
                x.set(column, &mut request, &mut mix)?;
                cells.push((request, mix));
            }
        }
        Ok((labels, cells))
    }
}

impl Grid {
    pub fn done(&self) -> usize {
        self.cells.iter().flatten().count() + self.errors
    }

    pub fn is_live(&self) -> bool {
        self.done() < self.cells.len()
    }

    /// Seconds until it is whole.
    pub fn left(&self) -> Option<f64> {
        let done = self.done();
        let each = self.started.elapsed().as_secs_f64() / done as f64;
        (done > 0).then(|| each * (self.cells.len() - done) as f64)
    }

    /// One picture with labels; cells that are missing stay white.
    pub fn sheet(&self, title: &str) -> RgbImage {
        let size = self.cells.iter().flatten().next().map_or((64, 64), |picture| picture.image.dimensions());
        let empty = || RgbImage::from_pixel(size.0, size.1, image::Rgb([255; 3]));
        let rows: Vec<Row> = self.labels[1]
            .iter()
            .zip(self.cells.chunks(self.labels[0].len()))
            .map(|(label, cells)| Row {
                label: label.clone(),
                pictures: cells.iter().map(|cell| cell.as_ref().map_or_else(empty, |p| (*p.image).clone())).collect(),
            })
            .collect();
        contact_sheet::draw(title, &self.labels[0], &rows, if size.0 <= 128 { 2 } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::preview::Init;

    #[test]
    fn a_plan_varies_both_sides() {
        let plan =
            Plan { axes: [Axis::Seed, Axis::Prompt], values: ["1, 2,".into(), "{prompt} | {prompt} blue".into()] };
        let base = Request { prompt: "cat".into(), ..Request::default() };
        let (labels, cells) = plan.cells(&base, &Mix::new()).unwrap();
        assert_eq!(labels[0], ["1", "2"]);
        let made: Vec<_> = cells.iter().map(|(r, _)| (r.seed, r.prompt.as_str())).collect();
        assert_eq!(made, [(1, "cat"), (2, "cat"), (1, "cat blue"), (2, "cat blue")]);
    }

    #[test]
    fn the_change_of_a_picture_is_varied_where_there_is_one() {
        let plan = Plan { axes: [Axis::Change, Axis::Seed], values: ["0.25, 1".into(), "1".into()] };
        assert!(plan.cells(&Request::default(), &Mix::new()).unwrap_err().what.contains("no picture"));
        let picture = RgbImage::new(8, 8).into();
        let init = Init { file: "a.png".into(), picture, strength: 0.5, mask: None };
        let base = Request { init: Some(init), ..Request::default() };
        let (_, cells) = plan.cells(&base, &Mix::new()).unwrap();
        let found: Vec<_> = cells.iter().filter_map(|(request, _)| Some(request.init.as_ref()?.strength)).collect();
        assert_eq!(found, [0.25, 1.0]);
        let wrong = Plan { values: ["1.5".into(), "1".into()], ..plan };
        assert!(wrong.cells(&base, &Mix::new()).is_err());
    }

    #[test]
    fn wrong_values_are_told() {
        let plan = |axis, text: &str| Plan { axes: [axis, Axis::Seed], values: [text.into(), "1".into()] };
        for (axis, text) in [(Axis::Steps, "0"), (Axis::Guidance, "x"), (Axis::Sampler, "magic"), (Axis::Seed, "")] {
            assert!(plan(axis, text).cells(&Request::default(), &Mix::new()).is_err(), "{text}");
        }
    }
}
