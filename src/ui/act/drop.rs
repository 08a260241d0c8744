//! What is dropped onto the window: pictures, an adapter, a model, a project, a picture with its prompt.

use std::path::Path;

use crate::engine::io::detect::{self, Kind};
use crate::engine::io::pickle;
use crate::engine::project::{AdapterEntry, ConceptEntry};
use crate::engine::{Error, Result};
use crate::ui::app::App;
use crate::ui::command::Command;

impl App {
    pub(super) fn add(&mut self, path: &Path) {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let added = match ending.as_str() {
            _ if path.is_dir() || ending == "safetensors" || pickle::is_named_so(path) => self.add_found(path),
            "toml" => {
                self.open_project(path);
                Ok(())
            }
            "png" => {
                self.open_prompt(path);
                Ok(())
            }
            _ => Err(Error::new(
                "This is neither a folder of pictures, nor an adapter or a model (.safetensors), nor a project (.toml)",
                "Drop the folder that holds the pictures",
            )
            .at(path)),
        };
        if let Err(error) = added {
            self.studio.log.error(&error);
        }
    }

    /// By what it is. Something else than was meant is told without losing the model that is open.
    fn add_found(&mut self, path: &Path) -> Result<()> {
        let found = detect::detect(path)?;
        if found.is_model() {
            found.must_be_model(path)?;
            let ctx = self.post.ctx().clone();
            self.act(Command::OpenModel(path.to_string_lossy().into_owned()), &ctx);
            return Ok(());
        }
        found.must_be_adapter(path)?;
        let file = match found.kind {
            Kind::Adapter(_) if path.is_dir() => path.join(detect::PEFT_FILE),
            _ if path.is_dir() => {
                self.add_concept(path);
                return Ok(());
            }
            _ => path.to_path_buf(),
        };
        let file = self.studio.named(&file);
        self.add_adapter(AdapterEntry::of(file));
        Ok(())
    }

    fn add_concept(&mut self, path: &Path) {
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
    }
}
