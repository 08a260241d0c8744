use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;

use super::*;
use crate::engine::device::Choice;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::project::{AdapterEntry, ConceptEntry, Project, Slot};
use crate::engine::session::Session;
use crate::ui::cards::{self, AdapterCard, ConceptCard, Loading};
use crate::ui::crops;
use crate::ui::preferences::Preferences;
use crate::ui::work::Opened;

/// A concept of two pictures, one with a caption, and one file that is no picture.
fn studio(folder: &Path) -> Studio {
    let pictures = folder.join("robot");
    std::fs::create_dir_all(&pictures).unwrap();
    for name in ["a.png", "b.png"] {
        image::RgbImage::from_pixel(8, 6, image::Rgb([9, 99, 200])).save(pictures.join(name)).unwrap();
    }
    std::fs::write(pictures.join("a.txt"), "standing").unwrap();
    std::fs::write(pictures.join("c.png"), "no picture").unwrap();
    let mut project = Project::new(8);
    let [token, class] = ["<robo>", "robot"].map(Into::into);
    let entry = ConceptEntry { name: "Robbie".into(), folder: "robot".into(), token, class };
    project.concepts.push(entry.clone());
    let lost = AdapterEntry { name: "lost".into(), file: "lost.safetensors".into(), concept: None };
    project.adapters.push(lost.clone());
    let mut studio = Studio::new(project, folder.join("triptych.toml"), Choice::Cpu, Preferences::default());
    let content = cards::concept(&pictures, &egui::Context::default()).into();
    studio.concepts.push(ConceptCard { entry, folder: pictures, content });
    let path = folder.join("lost.safetensors");
    studio.adapters.push(AdapterCard {
        content: cards::adapter(&path).into(),
        entry: lost,
        gone: !path.exists(),
        path,
    });
    studio
}

fn harness(studio: Studio) -> (Harness<'static>, Rc<RefCell<Vec<Command>>>) {
    let said = Rc::new(RefCell::new(Vec::new()));
    let (theirs, mut panel) = (Rc::clone(&said), Library::default());
    let harness = Harness::builder().with_size([280.0, 1400.0]).build_ui(move |ui| {
        panel.ui(ui, &studio, &mut theirs.borrow_mut());
    });
    (harness, said)
}

#[test]
fn a_concept_opens_and_its_words_and_captions_change() {
    let folder = tempfile::tempdir().unwrap();
    let (mut window, said) = harness(studio(folder.path()));
    window.get_by_label("1 without a caption");
    window.get_by_label("⚠ 1 file left out");
    window.get_by_label("Concept Robbie").click();
    window.run_steps(3);
    window.get_by_label("Picture b.png").click();
    window.run_steps(3);
    let caption = window.get_by_label("Caption of picture b.png");
    caption.focus();
    caption.type_text("waving");
    window.run_steps(3);
    window.get_by_label("Class word of Robbie").focus();
    window.run_steps(3);
    window.get_by_label("Remove concept Robbie").click();
    window.run_steps(3);
    let said = said.borrow();
    let written = said.iter().any(|command| {
        matches!(command, Command::SetCaption { picture, text, .. } if picture.ends_with("b.png") && text == "waving")
    });
    assert!(written, "{said:?}");
    assert!(
        said.iter().any(|command| matches!(command, Command::RemoveConcept(folder) if folder == Path::new("robot")))
    );
}

/// With the model open and a form that asks for buckets, masks and versions: the exact crops, each on demand.
#[test]
fn a_concept_shows_its_sizes_masks_and_every_view() {
    let folder = tempfile::tempdir().unwrap();
    let mut studio = studio(folder.path());
    let pictures = folder.path().join("robot");
    image::RgbImage::from_pixel(90, 40, image::Rgb([200, 9, 9])).save(pictures.join("wide.png")).unwrap();
    image::GrayImage::from_pixel(90, 40, image::Luma([255])).save(pictures.join("wide.mask.png")).unwrap();
    studio.concepts[0].content = cards::concept(&pictures, &egui::Context::default()).into();
    let session = Session::open(Choice::Cpu, &mut |_| Ok(())).unwrap();
    let model = session.model("starter").unwrap();
    studio.opened = Loading::Ready(Opened { session: Arc::new(session), model: Arc::new(model) });
    let changes = [("fit", "bucket"), ("mask", "file"), ("variations", "3"), ("rotate", "9")];
    studio.project.training.changes = changes.map(|(name, value)| (name.into(), value.into())).into();
    let (mut window, said) = harness(studio);
    window.get_by_label("Concept Robbie").click();
    window.run_steps(3);
    window.get_by_label("2 pictures of 64 × 64 pixels");
    window.get_by_label("1 picture of 80 × 48 pixels");
    window.get_by_label("Picture wide.png (with a mask)").click();
    window.run_steps(3);
    window.get_by_label("As training will see it: the middle of the picture, 80 × 48 pixels");
    window.get_by_label("Next view").click();
    window.run_steps(3);
    window.get_by_label("As training will see it: a changed version, 80 × 48 pixels");
    window.get_by_label("2 of 3");
    let key = said.borrow().iter().rev().find_map(|command| match command {
        Command::Crop(key) => Some(key.clone()),
        _ => None,
    });
    let key = key.unwrap();
    assert!(key.picture.path.ends_with("wide.png") && key.view.number == 1, "{key:?}");
    let crop = crops::make(&key, &egui::Context::default()).unwrap();
    let factor = key.factor;
    assert_eq!((crop.seen.size(), crop.mask.unwrap().size()), ([80, 48], [80 / factor, 48 / factor]));
}

#[test]
fn an_adapter_that_is_removed_keeps_its_slot_unless_it_is_gone_or_the_slot_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    for (gone, button, frees) in [
        (true, "Remove adapter lost", true),
        (false, "Remove adapter lost", false),
        (false, "Remove adapter lost and free its slot", true),
    ] {
        let mut studio = studio(folder.path());
        studio.adapters[0].gone = gone;
        let slot = Slot { number: 3, file: "lost.safetensors".into(), token: "<lost>".into() };
        studio.project.slots.push(slot);
        let (mut window, said) = harness(studio);
        window.get_by_label("Adapter lost").click();
        window.run_steps(3);
        window.get_by_label(button).click();
        window.run_steps(3);
        assert!(
            matches!(&said.borrow()[..], [Command::RemoveAdapter { frees: found, .. }] if *found == frees),
            "{button}: {said:?}"
        );
    }
}

#[test]
fn an_adapter_says_where_its_word_has_vectors_for_each_layer() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = LoraFile::default();
    file.add_layers("<a>", vec![vec![vec![0.5; 4]]; 3]);
    file.tokens.insert("<b>".into(), vec![vec![0.5; 4]]);
    file.save(&folder.path().join("lost.safetensors")).unwrap();
    let (mut window, _) = harness(studio(folder.path()));
    window.get_by_label("Adapter lost").click();
    window.run_steps(3);
    window.get_by_label("<a> (per-layer vectors) <b>");
}

#[test]
fn a_lost_adapter_says_so_and_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let studio = studio(folder.path());
    assert!(matches!(studio.adapters[0].content, Loading::Failed(_)));
    let (mut window, said) = harness(studio);
    window.get_by_label("Adapter lost").click();
    window.run_steps(3);
    window.get_by_label("Find adapter lost").click();
    window.run_steps(3);
    assert!(matches!(&said.borrow()[..], [Command::Find(file)] if file == Path::new("lost.safetensors")));
}
