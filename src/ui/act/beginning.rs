//! The picture that the preview starts from: chosen, kept beside the project, opened on a thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::engine::Result;
use crate::engine::concept::picture;
use crate::engine::io::png;
use crate::engine::io::safetensors::hex;
use crate::engine::preview::Request;
use crate::engine::{Error, parameters};
use crate::ui::app::App;
use crate::ui::cards::Loading;
use crate::ui::command::Command;
use crate::ui::studio::Beginning;
use crate::ui::work::painter::{self, Picture};
use crate::ui::work::{Post, Report};

impl App {
    /// A mask belongs to its picture, and goes with the one before.
    pub(super) fn start_from(&mut self, path: &Path) {
        let file = self.studio.named(path);
        let form = &mut self.studio.project.preview;
        if form.init.as_ref() != Some(&file) {
            form.mask = None;
        }
        form.init = Some(file);
        // Of the same name it may be another picture by now.
        self.studio.preview.beginning = None;
        self.touch();
        self.paint();
    }

    /// Under a name made of its pixels: a picture that others began with is never written over.
    pub(super) fn start_from_picture(&self) {
        let view = &self.studio.preview;
        let (Some(picture), Some(request), Some(with)) = (&view.picture, &view.request, self.studio.opened.ready())
        else {
            return;
        };
        let image = Arc::clone(&picture.image);
        let text = parameters::text(request, [image.width(), image.height()], 0, &with.model.name, &picture.heard);
        let name = format!("start-{}.png", &hex(&Sha256::digest(image.as_raw()))[..8]);
        let path = self.studio.path.with_file_name(name);
        let work = move || png::write(&path, &image, &text).map(|()| path);
        self.errands.run(work, |written: Result<PathBuf>| match written {
            Ok(path) => Report::Do(Command::StartFrom(path)),
            Err(error) => Report::Done(Err(error)),
        });
    }

    /// What the form asks for, once the picture that it starts from is open.
    pub(in crate::ui) fn asked(&mut self) -> Option<Request> {
        let form = &self.studio.project.preview;
        let Some(file) = &form.init else { return Some(form.request(None)) };
        let path = self.studio.placed(file);
        let view = &mut self.studio.preview;
        match view.beginning.as_ref().filter(|beginning| beginning.path == path).map(|beginning| &beginning.content) {
            Some(Loading::Ready(picture)) => return Some(form.request(Some(Arc::clone(&picture.image)))),
            Some(Loading::Failed(error)) => view.error = Some(error.clone()),
            Some(Loading::Waiting) => {}
            None => {
                view.beginning = Some(Beginning { path: path.clone(), content: Loading::Waiting });
                let to = path.clone();
                let work = move |post: &Post| open(&path, post);
                self.post.spawn("beginning", work, move |picture| Report::Beginning(to, picture));
            }
        }
        None
    }

    pub(super) fn begun_with(&mut self, path: &Path, picture: Result<Picture>) {
        // Another may have been chosen meanwhile.
        if let Some(beginning) = self.studio.preview.beginning.as_mut().filter(|beginning| beginning.path == path) {
            beginning.content = picture.into();
            self.paint();
        }
    }
}

fn open(path: &Path, post: &Post) -> Result<Picture> {
    let image = picture::open(path)
        .map_err(|error| Error { advice: "Choose another picture, or start from noise".into(), ..error })?;
    let texture = painter::texture(&image, post.ctx());
    Ok(Picture { image: Arc::new(image), texture, coarse: false, seconds: 0.0, heard: Arc::from([]) })
}
