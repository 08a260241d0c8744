//! What happens to files that are dropped, lost and taken out, without anything being taught.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use egui::{Key, Modifiers};
use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use triptych::engine::io::lora_file::LoraFile;
use triptych::engine::io::safetensors::{self, Dtype, Tensor};
use triptych::engine::model::StableDiffusion;
use triptych::engine::model::stored::Stored;
use triptych::engine::project::{AdapterEntry, Desk, Fader, Project, Slot};
use triptych::ui::App;

use crate::{answer, press, shows, until, use_control, window};

#[derive(Debug)]
struct Dropped(PathBuf);

impl egui::DroppedFile for Dropped {
    fn path(&self) -> &Path {
        &self.0
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        std::fs::read(&self.0).map_err(|error| error.to_string())
    }
}

fn drop_file(window: &mut Harness<'_, App>, path: &Path) {
    window.input_mut().dropped_files.push(std::sync::Arc::new(Dropped(path.into())));
    window.run_steps(2);
}

/// A project that knows an adapter whose file is gone, in slot 3.
fn lost(path: &Path) {
    let mut project = Project::new(8);
    project.adapters.push(AdapterEntry { name: "lost".into(), file: "lost.safetensors".into(), concept: None });
    project.desk.faders.push(Fader::new("lost.safetensors".into()));
    let slot = Slot { number: 3, file: "lost.safetensors".into(), token: "<lost>".into() };
    project.slots.push(slot);
    project.save_as(path).unwrap();
}

#[test]
fn a_lost_adapter_gives_its_slot_back_and_undo_takes_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("triptych.toml");
    lost(&path);
    let taken = || Project::open(&path, 8).unwrap().slots.iter().map(|slot| slot.number).collect::<Vec<_>>();
    let mut window = window(folder.path());
    until(&mut window, "the card", |window| window.query_by_label("Adapter lost").is_some());
    use_control(&mut window, "Adapter lost");
    until(&mut window, "that it is gone", |window| window.query_by_label("Find adapter lost").is_some());
    use_control(&mut window, "Remove adapter lost");
    until(&mut window, "the free slot", |_| taken().is_empty());
    window.key_press_modifiers(Modifiers::COMMAND, Key::Z);
    until(&mut window, "the slot again", |_| taken() == [3]);
    until(&mut window, "the card again", |window| window.query_by_label("Adapter lost").is_some());
    window.key_press_modifiers(Modifiers::COMMAND | Modifiers::SHIFT, Key::Z);
    until(&mut window, "the free slot again", |_| taken().is_empty());
}

#[test]
fn a_dropped_file_is_opened_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut window = window(folder.path());
    until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));
    let recipe = folder.path().join("recipe.toml");
    let faders = vec![Fader::new(folder.path().join("a.safetensors"))];
    Desk { faders, method: "ties".into(), ..Desk::default() }.save_recipe(&recipe).unwrap();
    drop_file(&mut window, &recipe);
    until(&mut window, "the recipe's adapter", |window| window.query_by_label("Adapter a").is_some());

    let settings = folder.path().join("settings.toml");
    std::fs::write(&settings, "rank = 4").unwrap();
    drop_file(&mut window, &settings);
    until(&mut window, "what it is", |window| shows(window, "Settings taken over"));

    let other = folder.path().join("other/triptych.toml");
    std::fs::create_dir(other.parent().unwrap()).unwrap();
    lost(&other);
    drop_file(&mut window, &other);
    until(&mut window, "the other project", |window| window.query_by_label("Adapter lost").is_some());
    assert!(window.query_by_label("Adapter a").is_none());
    let left = Project::open(&folder.path().join("triptych.toml"), 8).unwrap();
    assert_eq!(left.desk.method, "ties", "the project that was left is saved");
}

/// (IA)³ multiplies the model's own weights: they are those of the model in the window.
#[test]
fn what_depends_on_the_model_is_merged_on_the_one_that_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let [adapter, path, mix] =
        ["ia3.safetensors", "triptych.toml", "mix.safetensors"].map(|name| folder.path().join(name));
    let module = "lora_unet_up_blocks_2_attentions_0_transformer_blocks_0_ff_net_2";
    let tensors = [(".weight", vec![64], vec![3.0; 64]), (".on_input", vec![], vec![0.0])]
        .map(|(part, shape, values)| (format!("{module}{part}"), Tensor::new(Dtype::F32, &shape, &values)));
    safetensors::save(&adapter, &tensors.into(), &BTreeMap::new()).unwrap();
    let mut project = Project::new(8);
    project.adapters.push(AdapterEntry::of("ia3.safetensors".into()));
    project.desk.faders.push(Fader::new("ia3.safetensors".into()));
    project.save_as(&path).unwrap();

    let mut window = window(folder.path());
    until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));
    window.get_by_label("Merge panel").click();
    window.run_steps(3);
    press(&mut window, "Save as adapter…");
    answer(&mut window, "Save the mix as", &mix);
    until(&mut window, "the mix", |_| mix.is_file());
    let model = Stored::open(&StableDiffusion::folder("starter")).unwrap();
    let weight = model.base(module).unwrap().unwrap().weight;
    let delta = LoraFile::open(&mix).unwrap().pair(module).unwrap().product().weight;
    assert_eq!(delta.len(), weight.len());
    assert!(delta.iter().zip(&weight).all(|(d, w)| (d - 3.0 * w).abs() < 1e-5), "it adds thrice the weight");
}

#[test]
fn a_dropped_picture_is_started_from_and_the_project_remembers_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("triptych.toml");
    let saved = || Project::open(&path, 8).unwrap().preview;
    let mut window = window(folder.path());
    until(&mut window, "a first picture", |window| shows(window, " s · refined"));
    let picture = folder.path().join("photo.jpg");
    image::RgbImage::from_pixel(80, 40, image::Rgb([200, 40, 40])).save(&picture).unwrap();
    drop_file(&mut window, &picture);
    window.input_mut().dropped_files.clear();
    use_control(&mut window, "Start from a picture");
    until(&mut window, "the picture", |window| window.query_by_label("Mask over the picture").is_some());
    until(&mut window, "the saved project", |_| saved().init.as_deref() == Some(Path::new("photo.jpg")));
    use_control(&mut window, "Invert mask");
    until(&mut window, "the saved mask", |_| saved().mask.is_some_and(|mask| mask.size() == [128, 64]));
    until(&mut window, "a picture from it", |window| !window.state().is_busy());

    // The picture that was made is kept beside the project; the mask of the other one goes.
    use_control(&mut window, "Use this picture");
    until(&mut window, "the kept picture", |_| {
        saved().mask.is_none() && saved().init.is_some_and(|file| folder.path().join(file).is_file())
    });
    assert!(saved().init.unwrap().to_string_lossy().starts_with("start-"));

    std::fs::write(&picture, "no picture any more").unwrap();
    drop_file(&mut window, &picture);
    window.input_mut().dropped_files.clear();
    until(&mut window, "why there is none", |window| shows(window, "start from noise"));
    use_control(&mut window, "Start from noise");
    until(&mut window, "the saved project", |_| saved().init.is_none());
}
