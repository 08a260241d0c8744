//! The preview's commands: pictures of the mix, comparisons, grids, files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::engine::adapter::mount::Strength;
use crate::engine::io::png;
use crate::engine::parameters;
use crate::engine::project::PreviewForm;
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::cards::Loading;
use crate::ui::grid::{Grid, Plan};
use crate::ui::run::{Origin, Sample};
use crate::ui::studio::{Against, Studio};
use crate::ui::work::glimpse::Glimpse;
use crate::ui::work::painter::{self, Mix, Order, Painted, Tag};
use crate::ui::work::{Opened, Post, Report};

/// Pictures of the preview that are kept.
const HISTORY: usize = 24;

impl Studio {
    /// The desk's adapters that are open, as they are heard.
    pub fn mix(&self) -> Mix {
        let desk = &self.project.desk;
        let open = |file: &Path| Some(Arc::clone(&self.adapter(file)?.content.ready()?.file));
        desk.faders.iter().filter_map(|fader| Some((open(&fader.file)?, desk.heard(fader)))).collect()
    }
}

impl App {
    /// The picture of the mix as it is now, and what it is held against.
    pub(super) fn paint(&mut self) {
        let Some(request) = self.asked() else { return };
        let Loading::Ready(with) = &self.studio.opened else { return };
        if request.prompt.is_empty() {
            return;
        }
        let order = |tag, mix| Order { tag, with: with.clone(), mix, request: request.clone() };
        let mut orders = vec![order(Tag::Mixed, self.studio.mix())];
        match &self.studio.preview.against {
            Some(Against::Untouched) => {
                let mut mix = self.studio.mix();
                for (_, strength) in &mut mix {
                    *strength = Strength::uniform(0.0);
                }
                orders.push(order(Tag::Other, mix));
            }
            Some(Against::Alone(file)) => {
                let path = self.studio.placed(file);
                let mut mix = self.studio.mix();
                for (adapter, strength) in &mut mix {
                    *strength = Strength::uniform(if adapter.path == path { 1.0 } else { 0.0 });
                }
                orders.push(order(Tag::Other, mix));
            }
            None => {}
        }
        self.studio.preview.is_painting = true;
        self.painter.now(orders);
    }

    pub(super) fn glimpsed(&mut self, Glimpse { tag, planes }: Glimpse) {
        let seen = &mut self.studio.preview.seen;
        match tag {
            Tag::Mixed => seen.picture = Some(planes),
            Tag::Other => seen.other = Some(planes),
            Tag::Strip { .. } | Tag::Grid { .. } => {}
        }
    }

    pub(super) fn painted(&mut self, Painted { tag, request, picture }: Painted) {
        let view = &mut self.studio.preview;
        match (tag, picture) {
            (Tag::Mixed, Ok(picture)) => {
                let stage = if picture.coarse { "coarse" } else { "refined" };
                tracing::debug!("{stage} picture after {:.2} s", picture.seconds);
                view.error = None;
                view.is_painting = picture.coarse;
                if !picture.coarse {
                    view.history.push((request.clone(), picture.clone()));
                    if view.history.len() > HISTORY {
                        view.history.remove(0);
                    }
                }
                (view.picture, view.request) = (Some(picture), Some(request));
            }
            (Tag::Mixed, Err(error)) => {
                view.is_painting = false;
                view.error = Some(error);
                // What was seen may be what failed: the last picture that did not is on the host.
                view.seen.picture = None;
            }
            (Tag::Other, Ok(picture)) => view.other = Some(picture),
            (Tag::Other, Err(error)) => {
                view.other = None;
                view.seen.other = None;
                view.error = Some(error);
            }
            (Tag::Strip { step }, Ok(picture)) => {
                let strip = self.studio.run.iter_mut().flat_map(|run| &mut run.strip);
                let of_step = |sample: &&mut Sample| sample.step == step && matches!(sample.from, Origin::File { .. });
                if let Some(sample) = strip.into_iter().find(of_step) {
                    sample.look = Some(picture.texture);
                }
            }
            (Tag::Strip { .. }, Err(error)) => self.studio.log.error(&error),
            (Tag::Grid { run, cell }, picture) => {
                let Some(grid) = view.grid.as_mut().filter(|grid| grid.run == run) else { return };
                match picture {
                    Ok(picture) => {
                        if let Some(place) = grid.cells.get_mut(cell) {
                            *place = Some(picture);
                        }
                    }
                    Err(error) => {
                        grid.errors += 1;
                        self.studio.log.error(&error);
                    }
                }
            }
        }
    }

    pub(super) fn start_grid(&mut self, plan: &Plan) {
        let (Some(base), Some(with)) = (self.asked(), self.studio.opened.ready().cloned()) else { return };
        match plan.cells(&base, &self.studio.mix()) {
            Ok((labels, cells)) => {
                self.studio.preview.grids += 1;
                let run = self.studio.preview.grids;
                self.painter.drop_later(|tag| matches!(tag, Tag::Strip { .. }));
                let order = |(cell, (request, mix))| Order {
                    tag: Tag::Grid { run, cell },
                    with: Opened::clone(&with),
                    mix,
                    request,
                };
                let started = Instant::now();
                self.studio.preview.grid =
                    Some(Grid { run, labels, cells: vec![None; cells.len()], errors: 0, started, base });
                self.painter.later(cells.into_iter().enumerate().map(order).collect());
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    pub(super) fn stop_grid(&mut self) {
        self.painter.drop_later(|tag| matches!(tag, Tag::Strip { .. }));
        self.studio.preview.grid = None;
    }

    pub(super) fn save_grid(&mut self, path: PathBuf) {
        let (Some(grid), Some(with)) = (&self.studio.preview.grid, self.studio.opened.ready()) else { return };
        let sheet = grid.sheet(&grid.base.prompt);
        let size = [sheet.width(), sheet.height()];
        let text = parameters::text(&grid.base, size, 0, &with.model.name, &painter::heard(&self.studio.mix()));
        self.write_picture(path, sheet, text);
    }

    pub(super) fn save_picture(&mut self, path: PathBuf) {
        let view = &self.studio.preview;
        let (Some(picture), Some(request), Some(with)) = (&view.picture, &view.request, self.studio.opened.ready())
        else {
            return;
        };
        let image = (*picture.image).clone();
        let size = [image.width(), image.height()];
        let text = parameters::text(request, size, 0, &with.model.name, &picture.heard);
        self.write_picture(path, image, text);
    }

    fn write_picture(&self, path: PathBuf, image: image::RgbImage, text: BTreeMap<String, String>) {
        let work = move |_: &Post| {
            png::write(&path, &image, &text)?;
            Ok(format!("Saved {}", path.display()))
        };
        self.post.spawn("picture", work, Report::Done);
    }

    /// Prompt and settings of a saved picture.
    pub(super) fn open_prompt(&self, path: PathBuf) {
        self.errands.run(move || asked_of(&path), Report::Prompt);
    }

    /// The picture to start from, and what is painted over it, stay as they are.
    pub(super) fn prompt_opened(&mut self, asked: Result<(PreviewForm, bool)>) {
        match asked {
            Ok((form, began_elsewhere)) => {
                if began_elsewhere {
                    let text = "This picture was made from another one, which it does not hold: choose that under “Start from a picture”";
                    self.studio.log.warn(text);
                }
                let PreviewForm { init, strength, mask, .. } = self.studio.project.preview.clone();
                self.studio.project.preview = PreviewForm { seed_locked: true, init, strength, mask, ..form };
                self.touch();
                self.paint();
            }
            Err(error) => self.studio.log.error(&error),
        }
    }
}

/// Prompt and settings, and whether the picture was made from another one.
fn asked_of(path: &Path) -> Result<(PreviewForm, bool)> {
    let texts = png::read_text(path)?;
    let text = texts.get(png::PARAMETERS).map_or("", String::as_str);
    let request = parameters::read(text).ok_or_else(|| {
        Error::new("This picture does not say how it was made", "Choose one that Triptych or A1111 saved as PNG")
            .at(path)
    })?;
    Ok((PreviewForm::from(request), text.contains(parameters::DENOISING)))
}
