//! Opens what the project names, on threads: the device, the model, concepts, adapters, and how these stand to each other.

use std::path::PathBuf;

use crate::engine::Result;
use crate::engine::device;
use crate::engine::merge::meeting::meeting;
use crate::engine::project::Project;
use crate::engine::session::Session;
use crate::engine::train::checkpoint;
use crate::ui::act::model_name;
use crate::ui::app::App;
use crate::ui::cards::{self, AdapterCard, ConceptCard, Loading};
use crate::ui::preflight::Preflight;
use crate::ui::preparing::Preparing;
use crate::ui::work::{Opened, Post, Report};

impl App {
    /// Opens the device and the model on it, on a thread.
    pub(in crate::ui) fn open_device(&mut self) {
        let studio = &mut self.studio;
        studio.opened = Loading::Waiting;
        self.opening += 1;
        let opening = self.opening;
        let (choice, precision) = (studio.device, studio.precision);
        let name = model_name(&studio.project.model, &studio.path);
        // A device is handed over once; after that it is there already.
        let gpu = (choice == device::Choice::Auto).then(|| self.gpu.take()).flatten();
        let shared = (choice == device::Choice::Auto).then(|| self.shared.clone()).flatten();
        let work = move |post: &Post| {
            let mut preparing = None;
            let mut watch = |event| {
                preparing = post.prepares(preparing, Preparing::after(preparing, &event));
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
            let mut session = match shared {
                Some(device) => Session::on(device, choice, &mut watch)?,
                None => Session::open(choice, &mut watch)?,
            };
            session.precision = precision;
            let model = session.open_model(&name, &mut watch);
            post.prepares(preparing, None);
            let model = model?;
            Ok(Opened { session: session.into(), model: model.into() })
        };
        self.post.spawn("model", work, move |opened| Report::Opened(opening, opened));
    }

    /// Cards for everything the project names; what is known already stays.
    pub(in crate::ui) fn open_cards(&mut self) {
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
            let card = known.iter().find(|card| card.path == path);
            let (content, gone) = card.map_or((Loading::Waiting, false), |card| (card.content.clone(), card.gone));
            if card.is_none() {
                self.open_adapter(path.clone());
            }
            self.studio.adapters.push(AdapterCard { entry, path, content, gone });
        }
        self.meet();
    }

    pub(in crate::ui) fn open_concept(&self, folder: PathBuf) {
        let place = folder.clone();
        let work = move |post: &Post| cards::concept(&place, post.ctx());
        self.post.spawn("concept", work, |content| Report::Concept(folder, content));
    }

    pub(in crate::ui) fn open_adapter(&self, path: PathBuf) {
        let place = path.clone();
        self.post.spawn(
            "adapter",
            move |_| cards::adapter(&place),
            |content| {
                let gone = content.is_err() && !path.exists();
                Report::Adapter { path, content, gone }
            },
        );
    }

    /// Measures how the desk's adapters stand to each other.
    pub(in crate::ui) fn meet(&mut self) {
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
        let with = self.studio.opened.ready().cloned();
        let work = move |_: &Post| {
            let known = |file| match &with {
                Some(with) => with.resolved(file),
                None => Ok(file),
            };
            let files = files.into_iter().map(known).collect::<Result<Vec<_>>>()?;
            let device = with.as_ref().map_or_else(device::cpu, |with| with.session.device.device.clone());
            meeting(&files.iter().map(AsRef::as_ref).collect::<Vec<_>>(), &device)
        };
        self.post.spawn("overlap", work, |meeting| Report::Meeting(names, meeting));
    }

    /// What the training of the form will take, and whether it was begun before.
    pub(in crate::ui) fn look_ahead(&mut self) {
        self.studio.preflight = Preflight::of(&self.studio, &self.studio.preferences);
        if let Ok((_, training)) = self.studio.asked() {
            let out = training.out;
            let state = checkpoint::folder(&out);
            self.errands.run(move || Ok(state.is_dir()), |begun| Report::Begun(out, begun.unwrap_or(false)));
        }
    }
}
