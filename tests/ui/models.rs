//! A model in one file is opened by dropping it or by its button; what is no model leaves the open one alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use egui::DroppedFile;
use egui::accesskit::Role;
use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use triptych::engine::device::cpu;
use triptych::engine::export;
use triptych::engine::io::safetensors::{Dtype, Tensor, save};
use triptych::engine::model::StableDiffusion;
use triptych::ui::App;

use crate::{answer, press, shows, until, window};

#[derive(Debug)]
struct Dropped(PathBuf);

impl DroppedFile for Dropped {
    fn path(&self) -> &Path {
        &self.0
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        std::fs::read(&self.0).map_err(|e| e.to_string())
    }
}

fn let_fall(window: &mut Harness<'_, App>, path: &Path) {
    window.input_mut().dropped_files = vec![Arc::new(Dropped(path.into()))];
    window.step();
    window.input_mut().dropped_files.clear();
}

#[test]
fn a_single_file_is_dropped_and_chosen_and_other_files_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let starter = StableDiffusion::folder("starter");
    for name in ["quartz.safetensors", "agate.safetensors"] {
        export::bake(&starter, &[], &place(name), &cpu(), &mut |_| Ok(())).unwrap();
    }
    let mut window = window(folder.path());
    until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));

    let_fall(&mut window, &place("quartz.safetensors"));
    until(&mut window, "the dropped model", |window| window.query_by_label("quartz").is_some());

    let tensor = |shape: &[usize]| Tensor::new(Dtype::F32, shape, &vec![0.0; shape.iter().product()]);
    let foreign = [("model.diffusion_model.label_emb.0.0.bias".to_owned(), tensor(&[1]))];
    save(&place("xl.safetensors"), &foreign.into(), &[].into()).unwrap();
    std::fs::write(place("old.ckpt"), b"PK\x03\x04").unwrap();
    for (name, words) in [("xl.safetensors", "for SDXL"), ("old.ckpt", "This is a pickle")] {
        let_fall(&mut window, &place(name));
        until(&mut window, words, |window| shows(window, words));
        assert!(window.query_by_label("quartz").is_some(), "{name} took the place of the open model");
    }

    press(&mut window, "Open model file…");
    answer(&mut window, "Open a model file", &place("agate.safetensors"));
    until(&mut window, "the chosen model", |window| window.query_by_label("agate").is_some());
    assert!(window.query_by_label("Open model folder…").is_some());

    assert!(shows(&window, "· f32"));
    press(&mut window, "Computes on: CPU");
    window.get_by_role_and_label(Role::RadioButton, "f16").click();
    window.run_steps(2);
    until(&mut window, "weights that are held as f16", |window| shows(window, "· f16"));
}
