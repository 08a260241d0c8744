//! What happens on a command, and on a report.

mod settings;
mod shelf;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::engine::Error;
use crate::engine::device;
use crate::engine::event::Event;
use crate::engine::merge::meeting::meeting;
use crate::engine::project::{AdapterEntry, ConceptEntry, Fader, Project};
use crate::engine::session::Session;
use crate::ui::app::App;
use crate::ui::cards::{self, AdapterCard, ConceptCard, Loading};
use crate::ui::command::Command;
use crate::ui::facts::Facts;
use crate::ui::preflight::Preflight;
use crate::ui::run::{Run, RunState};
use crate::ui::studio::Undoable;
use crate::ui::work::{Opened, Post, Report, dialog};

impl App {
    /// Opens the device and the model on it, on a thread.
    pub(super) fn open_device(&mut self) {
        let studio = &mut self.studio;
        studio.opened = Loading::Waiting;
        self.opening += 1;
        let opening = self.opening;
        let (choice, name) = (studio.device, model_name(&studio.project.model, &studio.path));
        // A device is handed over once; after that it is there already.
        let gpu = (choice == device::Choice::Auto).then(|| self.gpu.take()).flatten();
        let shared = (choice == device::Choice::Auto).then(|| self.shared.clone()).flatten();
        let work = move |post: &Post| {
            let mut watch = |event| {
                post.send(Report::Said(event));
                Ok(())
            };
            let shared = match gpu.map(device::share).transpose()? {
                Some(device) => {
                    post.send(Report::Shared(device.clone()));
                    Some(device)
                }
                None => shared,
            };
            let session = match shared {
                Some(device) => Session::on(device, choice, &mut watch)?,
                None => Session::open(choice, &mut watch)?,
            };
            let model = session.model(&name)?;
            Ok(Opened { session: session.into(), model: model.into() })
        };
        self.post.spawn("model", work, move |opened| Report::Opened(opening, opened));
    }

    /// Cards for everything the project names; what is known already stays.
    pub(super) fn open_cards(&mut self) {
        let Project { concepts, adapters, .. } = self.studio.project.clone();
        let known = std::mem::take(&mut self.studio.concepts);
        for entry in concepts {
            let folder = self.studio.placed(&entry.folder);
            let content = known.iter().find(|card| card.folder == folder).map(|card| card.content.clone());
            if content.is_none() {
                self.open_concept(folder.clone());
            }
            self.studio.concepts.push(ConceptCard { entry, folder, content: content.unwrap_or(Loading::Waiting) });
        }
        let known = std::mem::take(&mut self.studio.adapters);
        for entry in adapters {
            let path = self.studio.placed(&entry.file);
            let content = known.iter().find(|card| card.path == path).map(|card| card.content.clone());
            if content.is_none() {
                self.open_adapter(path.clone());
            }
            self.studio.adapters.push(AdapterCard { entry, path, content: content.unwrap_or(Loading::Waiting) });
        }
        self.meet();
    }

    fn open_concept(&self, folder: PathBuf) {
        let place = folder.clone();
        let work = move |post: &Post| cards::concept(&place, post.ctx());
        self.post.spawn("concept", work, |content| Report::Concept(folder, content));
    }

    pub(super) fn open_adapter(&self, path: PathBuf) {
        let place = path.clone();
        self.post.spawn("adapter", move |_| cards::adapter(&place), |content| Report::Adapter(path, content));
    }

    /// Measures how the desk's adapters stand to each other.
    fn meet(&mut self) {
        let faders = self.studio.project.desk.faders.iter();
        let found: Vec<_> = faders
            .filter_map(|fader| {
                let content = self.studio.adapter(&fader.file)?.content.ready()?;
                Some((fader.file.clone(), content.file.clone()))
            })
            .collect();
        let (names, files): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        if self.meeting_of == names {
            return;
        }
        self.meeting_of.clone_from(&names);
        self.studio.meeting = None;
        if names.len() < 2 {
            return;
        }
        let work = move |_: &Post| meeting(&files.iter().map(AsRef::as_ref).collect::<Vec<_>>());
        self.post.spawn("overlap", work, |meeting| Report::Meeting(names, meeting));
    }

    pub(super) fn hear(&mut self, report: Report) {
        match report {
            Report::Shared(device) => self.shared = Some(device),
            // One that was asked for before the last comes too late.
            Report::Opened(opening, _) if opening != self.opening => {}
            Report::Opened(_, opened) => {
                if let Err(error) = &opened {
                    self.studio.log.error(error);
                }
                self.studio.facts = opened.as_ref().ok().map(|opened| Facts::of(&opened.model));
                self.studio.opened = opened.into();
                self.look_ahead();
                self.paint();
            }
            Report::Concept(folder, content) => {
                if let Err(error) = &content {
                    self.studio.log.error(error);
                }
                for card in self.studio.concepts.iter_mut().filter(|card| card.folder == folder) {
                    card.content = content.clone().into();
                }
            }
            Report::Adapter(path, content) => {
                if let Err(error) = &content {
                    self.studio.log.error(error);
                }
                for card in self.studio.adapters.iter_mut().filter(|card| card.path == path) {
                    card.content = content.clone().into();
                }
                self.meeting_of.clear();
                self.meet();
                self.paint();
            }
            Report::Captioned(folder, written) => self.captioned(folder, written),
            Report::Crop(key, crop) => self.studio.crops.put(key, crop.into()),
            Report::Meeting(files, meeting) => {
                if files == self.meeting_of {
                    self.studio.meeting = Some((files, meeting));
                }
            }
            Report::Training(event) => {
                self.said(&event);
                self.heard_of_training(event);
            }
            Report::Kept(Ok((step, file))) => self.sample_step(step, file),
            Report::ProjectSaved(result) => self.autosaved(result),
            Report::Queue(Ok(entries)) => self.studio.queue.entries = entries,
            Report::TrainingEnded(result) => self.training_ended(result),
            Report::Painted(painted) => self.painted(painted),
            Report::Do(command) => {
                let ctx = self.post.ctx().clone();
                self.act(command, &ctx);
            }
            Report::NoDialog(question) => self.studio.asking = Some(question),
            Report::Merged(result) => self.merged(result),
            Report::Done(Ok(text)) => self.studio.log.note(text),
            Report::Sampled(Ok(sample)) => {
                if let Some(run) = &mut self.studio.run {
                    run.strip.push(sample);
                }
            }
            Report::Sampled(Err(error))
            | Report::Kept(Err(error))
            | Report::Queue(Err(error))
            | Report::Done(Err(error)) => {
                self.studio.log.error(&error);
            }
            Report::Said(event) => self.said(&event),
        }
    }

    fn said(&mut self, event: &Event) {
        match event {
            Event::Note { text } => self.studio.log.note(text),
            Event::Warning { text } => self.studio.log.warn(text),
            Event::Saved { path } => self.studio.log.note(format!("Saved {}", path.display())),
            _ => {}
        }
    }

    /// Onto the shelf and the desk; one that is there already is opened anew.
    pub(super) fn add_adapter(&mut self, entry: AdapterEntry) {
        self.remember("adapter");
        let desk = &mut self.studio.project.desk;
        if !desk.faders.iter().any(|fader| fader.file == entry.file) {
            desk.faders.push(Fader::new(entry.file.clone()));
        }
        self.put(entry);
    }

    /// Onto the shelf; one that is there already is opened anew.
    pub(super) fn shelve(&mut self, entry: AdapterEntry) {
        self.remember("adapter");
        self.put(entry);
    }

    fn put(&mut self, entry: AdapterEntry) {
        let project = &mut self.studio.project;
        let file = entry.file.clone();
        match project.adapters.iter_mut().find(|known| known.file == file) {
            Some(known) => *known = entry,
            None => project.adapters.push(entry),
        }
        let path = self.studio.placed(&file);
        self.studio.adapters.retain(|card| card.path != path);
        self.touch();
        self.open_cards();
    }

    /// The project has changed.
    pub(super) fn touch(&mut self) {
        self.studio.changed = Some(Instant::now());
    }

    #[expect(clippy::too_many_lines, reason = "a flat table: one arm for each command")]
    pub(super) fn act(&mut self, command: Command, ctx: &egui::Context) {
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
            Command::OpenSettings(path) => self.open_settings(&path),
            Command::SaveSettings(path) => self.save_settings(&path),
            Command::DismissLeftOut => self.studio.left_out.clear(),
            Command::SetPreview(form) => {
                self.studio.project.preview = form;
                self.touch();
                self.paint();
            }
            Command::Undo => {
                let now = self.studio.undoable();
                if let Ok(before) = self.studio.undo.back(now) {
                    self.restore(before);
                }
            }
            Command::Redo => {
                let now = self.studio.undoable();
                if let Ok(after) = self.studio.undo.forth(now) {
                    self.restore(after);
                }
            }
            Command::Add(path) => self.add(&path),
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
            Command::Crop { picture, how } => self.crop((picture, how)),
            Command::RemoveConcept(folder) => {
                self.remember("removal");
                self.studio.project.concepts.retain(|entry| entry.folder != folder);
                self.touch();
                self.open_cards();
            }
            Command::RemoveAdapter(file) => {
                self.remember("removal");
                self.studio.project.adapters.retain(|entry| entry.file != file);
                self.studio.project.desk.faders.retain(|fader| fader.file != file);
                self.desk_changed();
                self.open_cards();
            }
            Command::RenameAdapter { file, name } => {
                self.remember("rename");
                if let Some(entry) = self.studio.project.adapters.iter_mut().find(|entry| entry.file == file) {
                    entry.name = name;
                }
                self.touch();
                self.open_cards();
            }
            Command::OpenModel(_) | Command::SetDevice(_) if self.studio.is_training() => {
                self.studio.log.warn("A training is running: stop it first");
            }
            Command::OpenModel(name) => {
                self.studio.project.model = name;
                self.touch();
                self.open_device();
            }
            Command::SetDevice(choice) => {
                self.studio.device = choice;
                self.open_device();
            }
            Command::SaveMerged(path) => self.save_merged(path),
            Command::BakeMerged(folder) => self.bake_merged(folder),
            Command::SaveRecipe(path) => self.save_recipe(path),
            Command::OpenRecipe(path) => self.open_recipe(&path),
            Command::Compare(against) => {
                self.studio.preview.against = against;
                self.studio.preview.other = None;
                self.paint();
            }
            Command::StartGrid(plan) => self.start_grid(&plan),
            Command::StopGrid => self.stop_grid(),
            Command::SaveGrid(path) => self.save_grid(path),
            Command::SavePicture(path) => self.save_picture(path),
            Command::OpenPrompt(path) => self.open_prompt(&path),
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
            Command::OpenProject(path) if !path.is_file() => {
                let advice = "Open it from where it is now";
                self.studio.log.error(&Error::new("The project is not there any more", advice).at(path));
            }
            Command::OpenProject(path) | Command::NewProject(path) => self.open_project(&path),
            Command::Save => {
                self.save();
            }
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
            Command::Reveal(path) => {
                if let Err(error) = opener::reveal(&path) {
                    self.studio.log.error(
                        &Error::new(
                            format!("The file manager could not be opened ({error})"),
                            "Open the folder yourself",
                        )
                        .at(&path),
                    );
                }
            }
            Command::Train => self.train(self.studio.can_go_on()),
            Command::TrainAnew => self.train(false),
            Command::Enqueue => self.enqueue(),
            Command::RunQueue => self.run_queue(),
            Command::ListQueue => self.list_queue(),
            Command::RemoveQueued(id) => self.change_queue(|queue| queue.remove(&id)),
            Command::RetryQueued(id) => self.change_queue(|queue| queue.retry(&id)),
            Command::MoveQueued(id, place) => self.change_queue(|queue| queue.move_to(&id, place)),
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

    /// What the training of the form will take.
    pub(super) fn look_ahead(&mut self) {
        self.studio.preflight = Preflight::of(&self.studio, &self.studio.preferences);
    }

    /// Keeps what is about to change for undo.
    pub(super) fn remember(&mut self, what: &'static str) {
        let now = self.studio.undoable();
        self.studio.undo.note(now, what, Instant::now());
    }

    fn restore(&mut self, Undoable { desk, concepts, adapters }: Undoable) {
        let project = &mut self.studio.project;
        (project.desk, project.concepts, project.adapters) = (desk, concepts, adapters);
        self.open_cards();
        self.desk_changed();
    }

    pub(super) fn desk_changed(&mut self) {
        self.touch();
        self.meet();
        self.paint();
    }

    /// Whatever was dropped or chosen: pictures, an adapter, a project.
    fn add(&mut self, path: &Path) {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let folder = self.studio.named(path);
            if self.studio.project.concepts.iter().any(|entry| entry.folder == folder) {
                self.studio.log.note(format!("{name} is in the project already"));
                return;
            }
            self.remember("new concept");
            let concepts = &mut self.studio.project.concepts;
            let token = format!("<{}>", name.split_whitespace().collect::<Vec<_>>().join("-").to_lowercase());
            self.studio.project.training.concept.clone_from(&folder);
            concepts.push(ConceptEntry { name, folder, token, class: String::new() });
            self.touch();
            self.open_cards();
        } else if ending == "safetensors" {
            let file = self.studio.named(path);
            self.add_adapter(AdapterEntry::of(file));
        } else if ending == "json" || ending == "toml" && !Project::is_one(path) {
            self.open_settings(path);
        } else if ending == "toml" {
            self.open_project(path);
        } else if ending == "png" {
            self.open_prompt(path);
        } else {
            self.studio.log.error(
                &Error::new(
                    "This is neither a folder of pictures, nor an adapter (.safetensors), nor a project or settings (.toml, .json)",
                    "Drop the folder that holds the pictures",
                )
                .at(path),
            );
        }
    }

    fn save_as(&mut self, path: PathBuf) {
        if self.studio.is_training() {
            self.studio.log.warn("A training is running: stop it before the project is saved elsewhere");
            return;
        }
        let mut project = self.studio.project.clone();
        project.rebase(&self.studio.path, &path);
        if let Err(error) = project.save_as(&path) {
            self.studio.log.error(&error);
            return;
        }
        // What undo remembers is named as the old place had it.
        self.studio.undo = crate::ui::undo::Undo::new();
        (self.studio.project, self.studio.path) = (project, path);
        self.studio.looked_at = None;
        self.recent();
        self.open_cards();
    }

    fn open_project(&mut self, path: &Path) {
        if self.studio.is_training() {
            self.studio.log.warn("A training is running: stop it before another project is opened");
            return;
        }
        if !self.save() {
            return;
        }
        let before = model_name(&self.studio.project.model, &self.studio.path);
        match Project::open(path, self.studio.project.block) {
            Ok(project) => {
                let other_model = model_name(&project.model, path) != before;
                (self.studio.project, self.studio.path) = (project, path.to_path_buf());
                self.studio.undo = crate::ui::undo::Undo::new();
                (self.studio.run, self.studio.looked_at) = (None, None);
                self.studio.preview =
                    crate::ui::studio::View { grids: self.studio.preview.grids + 1, ..Default::default() };
                self.look_ahead();
                self.save();
                self.recent();
                self.open_cards();
                if other_model {
                    self.open_device();
                } else {
                    self.paint();
                }
            }
            Err(error) => self.studio.log.error(&error),
        }
    }

    pub(super) fn recent(&mut self) {
        let path = self.studio.path.clone();
        self.studio.preferences.opened(&path);
        self.save_preferences();
    }

    pub(super) fn save_preferences(&mut self) {
        let Some(path) = &self.preferences else { return };
        if let Err(error) = self.studio.preferences.save(path) {
            self.studio.log.error(&error);
        }
    }
}

/// The last acts of a window.
pub fn leave(app: &mut App) {
    if let Some(run) = app.studio.run.as_ref().filter(|run| run.is_live()) {
        run.control.stop();
    }
    if app.studio.changed.is_some() {
        app.save();
    }
    let figures = app.studio.pace.figures();
    tracing::info!(
        "UI thread {:.2} ms median, {:.2} ms p99; frame to frame {:.2} ms median, {:.2} ms p99; {} frames",
        1e3 * figures.work[0],
        1e3 * figures.work[1],
        1e3 * figures.frame[0],
        1e3 * figures.frame[1],
        figures.frames,
    );
}

/// `starter`, or where the project's model lies.
pub(super) fn model_name(model: &str, project: &Path) -> String {
    if model == "starter" {
        return model.into();
    }
    crate::engine::project::placed(Path::new(model), project).to_string_lossy().into_owned()
}
