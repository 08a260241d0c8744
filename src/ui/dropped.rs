//! What is dropped onto the window, by its content: pictures, an adapter, a model, a project, a recipe, a picture with
//! its prompt or one to start from, or something that has its place elsewhere.

use std::path::{Path, PathBuf};

use crate::engine::io::detect::{self, Kind};
use crate::engine::io::{pickle, png};
use crate::engine::{Error, Result, parameters};
use crate::ui::command::Command;

/// What is done with what lies at `path`.
pub fn command(path: PathBuf) -> Result<Command> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match ending.as_str() {
        _ if path.is_dir() || ending == "safetensors" || pickle::is_named_so(&path) => found(path),
        "toml" => text(path),
        "json" => Ok(Command::OpenSettings(path)),
        "png" if has_prompt(&path)? => Ok(Command::OpenPrompt(path)),
        "png" | "jpg" | "jpeg" | "webp" => Ok(Command::StartFrom(path)),
        _ => Err(Error::new(
            "This is neither a folder of pictures, nor an adapter or a model (.safetensors), nor a project or a recipe (.toml), nor a picture (PNG, JPEG, WebP)",
            "Drop the folder that holds the pictures",
        )
        .at(path)),
    }
}

/// Whether a picture tells what made it, rather than being one to start from.
fn has_prompt(path: &Path) -> Result<bool> {
    Ok(png::read_text(path)?.get(png::PARAMETERS).is_some_and(|text| parameters::read(text).is_some()))
}

/// Something else than was meant is told without losing the model that is open.
fn found(path: PathBuf) -> Result<Command> {
    let found = detect::detect(&path)?;
    if found.is_model() {
        found.must_be_model(&path)?;
        return Ok(Command::OpenModel(path.to_string_lossy().into_owned()));
    }
    found.must_be_adapter(&path)?;
    Ok(match found.kind {
        Kind::Unknown if path.is_dir() => Command::AddConcept(path),
        _ => Command::AddAdapter(path),
    })
}

/// What is no file of ours may be another trainer's settings.
fn text(path: PathBuf) -> Result<Command> {
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| {
        Error::new(format!("This file cannot be read: {}", e.message()), "Mend it, or drop another").at(&path)
    })?;
    let has = |names: &[&str]| names.iter().all(|name| table.contains_key(*name));
    if has(&["block"]) {
        Ok(Command::OpenProject(path))
    } else if has(&["fader"]) {
        Ok(Command::OpenRecipe(path))
    } else if has(&["state", "token", "method", "out"]) {
        let what = "This is a training of the queue, not a project";
        Err(Error::new(what, "Copy it into the queue's folder, and press “Refresh” under Queue").at(path))
    } else {
        Ok(Command::OpenSettings(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::project::{Desk, Fader, Project};

    #[test]
    fn a_file_says_itself_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        Project::new(8).save_work(&file("project.toml")).unwrap();
        let faders = vec![Fader::new(file("a.safetensors"))];
        Desk { faders, ..Desk::default() }.save_recipe(&file("recipe.toml")).unwrap();
        assert!(matches!(command(file("project.toml")), Ok(Command::OpenProject(_))));
        assert!(matches!(command(file("recipe.toml")), Ok(Command::OpenRecipe(_))));
        std::fs::write(file("settings.toml"), "rank = 4\nsteps = 50").unwrap();
        assert!(matches!(command(file("settings.toml")), Ok(Command::OpenSettings(_))));
        // Empty, it changes nothing; a key that nobody knows is told when it is opened.
        std::fs::write(file("empty.toml"), "").unwrap();
        assert!(matches!(command(file("empty.toml")), Ok(Command::OpenSettings(_))));
        let order = "state = \"waiting\"\ntoken = \"<a>\"\nmethod = \"lora\"\nout = \"/a.safetensors\"";
        for (text, word) in [(order, "queue"), ("block = 3\n[fader", "cannot be read"), ("rank = ", "cannot be read")] {
            std::fs::write(file("x.toml"), text).unwrap();
            let error = command(file("x.toml")).unwrap_err();
            assert!(error.what.contains(word) && !error.advice.is_empty(), "{text}: {error}");
        }
        assert!(command(file("none.toml")).is_err());
        let picture = image::RgbImage::new(4, 4);
        for (prompt, asked) in [(None, false), (Some("a cat\nSteps: 5, Seed: 1"), true)] {
            let text = prompt.map(|text| (png::PARAMETERS.to_owned(), text.to_owned()));
            png::write(&file("a.png"), &picture, &text.into_iter().collect()).unwrap();
            let found = command(file("a.png")).unwrap();
            assert_eq!(matches!(found, Command::OpenPrompt(_)), asked, "{found:?}");
            assert_eq!(matches!(found, Command::StartFrom(_)), !asked, "{found:?}");
        }
        for (folder, inside) in [("one", "one"), ("each", "each/unet")] {
            std::fs::create_dir_all(file(inside)).unwrap();
            std::fs::write(file(inside).join("adapter_config.json"), "{}").unwrap();
            let found = command(file(folder));
            assert!(matches!(&found, Ok(Command::AddAdapter(path)) if *path == file(folder)), "{found:?}");
        }
        std::fs::create_dir(file("pictures")).unwrap();
        assert!(matches!(command(file("pictures")), Ok(Command::AddConcept(_))));
        std::fs::write(file("b.png"), "none").unwrap();
        assert!(command(file("b.png")).is_err());
    }
}
