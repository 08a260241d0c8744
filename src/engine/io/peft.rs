//! PEFT's folders: what lies where.

use std::path::{Path, PathBuf};

use crate::engine::io::lora_file::paths::Adaptable;

/// The tensors in a folder that PEFT saved.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What it says of them beside.
pub const CONFIG: &str = "adapter_config.json";

/// Where an adapter's tensors lie: in the file itself, in the folder that PEFT saved, or in one such for each network.
pub fn files(path: &Path) -> Vec<PathBuf> {
    if is_one(path) {
        return vec![path.join(WEIGHTS)];
    }
    let networks = Adaptable::ALL.map(|network| path.join(network.in_diffusers()));
    let inside: Vec<_> = networks.iter().filter(|folder| is_one(folder)).map(|folder| folder.join(WEIGHTS)).collect();
    if inside.is_empty() { vec![path.to_path_buf()] } else { inside }
}

/// Whether a path is such a folder, of one network or of several.
pub fn is_folder(path: &Path) -> bool {
    files(path).iter().any(|file| file != path)
}

/// Whether PEFT saved these tensors.
pub fn is_weights(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == WEIGHTS)
}

/// The lack of one of the two is told when it is opened.
fn is_one(folder: &Path) -> bool {
    [WEIGHTS, CONFIG].iter().any(|name| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_one_network_and_of_several_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str| {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
        };
        for name in [
            "one/adapter_config.json",
            "each/text_encoder_2/adapter_model.safetensors",
            "each/unet/adapter_config.json",
            "model/unet/config.json",
            "a.safetensors",
        ] {
            write(name);
        }
        assert_eq!(files(&at("one")), [at("one").join(WEIGHTS)]);
        assert_eq!(
            files(&at("each")),
            ["unet", "text_encoder_2"].map(|network| at("each").join(network).join(WEIGHTS))
        );
        assert_eq!(files(&at("a.safetensors")), [at("a.safetensors")]);
        assert_eq!(
            ["one", "each", "model", "a.safetensors"].map(|name| is_folder(&at(name))),
            [true, true, false, false]
        );
    }
}
