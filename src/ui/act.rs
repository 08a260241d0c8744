//! What happens on a command: one arm for each, and the work of each subject in a file of its own.

mod beginning;
mod change;
mod follow;
mod hear;
mod open;
mod project;
mod queue;
mod settings;
mod shelf;

use std::path::Path;

use crate::engine::project::AdapterEntry;
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::run::{Run, RunState};
use crate::ui::work::dialog;

pub use project::leave;

impl App {
    #[expect(clippy::too_many_lines, reason = "a flat table: one arm for each command")]
    pub(in crate::ui) fn act(&mut self, command: Command, ctx: &egui::Context) {
        match command {
            Command::SetDesk { desk, what } => {
                self.remember(what);
                self.studio.project.desk = desk;
                self.desk_changed();
            }
            Command::SetTraining(form) => {
                self.studio.project.training = form;
                self.look_ahead();
                self.touch();
            }
            Command::OpenSettings(path) => self.open_settings(path),
            Command::SaveSettings(path) => self.save_settings(path),
            Command::DismissLeftOut => self.studio.left_out.clear(),
            Command::SetPreview(form) => {
                self.studio.project.preview = form;
                self.touch();
                self.paint();
            }
            Command::Undo => self.undo(),
            Command::Redo => self.redo(),
            Command::Add(path) => self.add(path),
            Command::AddConcept(path) => self.add_concept(&path),
            Command::AddAdapter(path) => {
                let file = self.studio.named(&path);
                self.add_adapter(AdapterEntry::of(file));
            }
            Command::SetConcept(entry) => {
                self.remember("concept");
                let concepts = &mut self.studio.project.concepts;
                if let Some(known) = concepts.iter_mut().find(|known| known.folder == entry.folder) {
                    *known = entry;
                }
                self.touch();
                self.open_cards();
            }
            Command::SetCaption { concept, picture, text } => self.set_caption(&concept, picture, text),
            Command::Find(from) => self.find(from),
            Command::Found(to) => self.found(&to),
            Command::Reopen(file) => self.reopen(&file),
            Command::Crop(key) => self.crop(key),
            Command::RemoveConcept(folder) => {
                self.remember("removal");
                self.studio.project.concepts.retain(|entry| entry.folder != folder);
                self.touch();
                self.open_cards();
            }
            Command::RemoveAdapter { file, frees } => self.remove_adapter(&file, frees),
            Command::RenameAdapter { file, name } => {
                self.remember("rename");
                if let Some(entry) = self.studio.project.adapters.iter_mut().find(|entry| entry.file == file) {
                    entry.name = name;
                }
                self.touch();
                self.open_cards();
            }
            Command::OpenModel(_) | Command::SetDevice(_) | Command::SetPrecision(_) if self.studio.is_training() => {
                self.studio.log.warn("A training is running: stop it first");
            }
            Command::OpenModel(name) => {
                self.studio.project.model = name;
                self.touch();
                self.open_device();
            }
            Command::LookAhead => self.look_ahead(),
            Command::SetPrecision(precision) => {
                self.studio.precision = precision;
                self.studio.preferences.precision = precision;
                self.save_preferences();
                self.open_device();
            }
            Command::SetDevice(choice) => {
                self.studio.device = choice;
                self.open_device();
            }
            Command::SaveMerged(path) => self.save_merged(path),
            Command::BakeMerged(folder) => self.bake_merged(folder),
            Command::SaveRecipe(path) => self.save_recipe(path),
            Command::OpenRecipe(path) => self.open_recipe(path),
            Command::StopMerge => self.stop_merge(),
            Command::Compare(against) => {
                self.studio.preview.against = against;
                self.studio.preview.other = None;
                self.studio.preview.seen.other = None;
                self.paint();
            }
            Command::StartGrid(plan) => self.start_grid(&plan),
            Command::StopGrid => self.stop_grid(),
            Command::SaveGrid(path) => self.save_grid(path),
            Command::SavePicture(path) => self.save_picture(path),
            Command::OpenPrompt(path) => self.open_prompt(path),
            Command::StartFrom(path) => self.start_from(&path),
            Command::StartFromPicture => self.start_from_picture(),
            Command::CopyPicture => {
                if let Some(picture) = &self.studio.preview.picture {
                    let size = [picture.image.width() as usize, picture.image.height() as usize];
                    ctx.copy_image(egui::ColorImage::from_rgb(size, &picture.image));
                    self.studio.log.note("The picture is on the clipboard");
                }
            }
            Command::Paint => {
                let form = &mut self.studio.project.preview;
                if !form.seed_locked {
                    form.seed = form.seed.wrapping_add(1);
                }
                self.paint();
            }
            Command::OpenProject(path) => self.open_project(path, true),
            Command::NewProject(path) => self.open_project(path, false),
            Command::Save => self.save(),
            Command::SaveProjectAs(path) => self.save_as(path),
            Command::Ask(question) => dialog::ask(question, &self.post),
            Command::DismissNotice => self.studio.asking = None,
            Command::DismissHint(name) => {
                self.studio.preferences.hints_read.insert(name.into());
                self.save_preferences();
            }
            Command::SetTheme(name) => {
                self.studio.preferences.theme = name.into();
                self.save_preferences();
            }
            Command::SetZoom(zoom) => {
                self.studio.preferences.zoom = zoom;
                self.save_preferences();
            }
            Command::LookAt(file) => self.studio.looked_at = file,
            Command::Reveal(path) => self.reveal(path),
            Command::Train => self.train(true),
            Command::TrainAnew => self.train(false),
            Command::Enqueue => self.enqueue(),
            Command::RunQueue => self.run_queue(),
            Command::ListQueue => self.list_queue(),
            Command::RemoveQueued(id) => self.change_queue(move |queue| queue.remove(&id)),
            Command::RetryQueued(id) => self.change_queue(move |queue| queue.retry(&id)),
            Command::MoveQueued(id, place) => self.change_queue(move |queue| queue.move_to(&id, place)),
            Command::Pause | Command::Resume => {
                let paused = matches!(command, Command::Pause);
                let may = |run: &&mut Run| matches!(run.state, RunState::Running | RunState::Paused);
                if let Some(run) = self.studio.run.as_mut().filter(may) {
                    run.pause(paused);
                }
            }
            Command::Stop => {
                self.studio.queue.runs = false;
                if let Some(run) = self.studio.run.as_mut().filter(|run| run.is_live()) {
                    run.state = RunState::Stopping;
                    run.control.stop();
                }
            }
            Command::SaveNow => {
                if let Some(run) = &self.studio.run {
                    run.control.wishes.save();
                }
            }
            Command::SampleNow => {
                if let Some(run) = &self.studio.run {
                    run.control.wishes.keep();
                }
            }
            Command::KeepStep(step) => self.keep_step(step),
        }
    }
}

/// `starter`, or where the project's model lies.
pub(super) fn model_name(model: &str, project: &Path) -> String {
    if model == "starter" {
        return model.into();
    }
    crate::engine::project::placed(Path::new(model), project).to_string_lossy().into_owned()
}
