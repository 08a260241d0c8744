//! Every panel in use looks as it did, and nothing in it is cut off where it is narrow. What is shown is made up, not
//! trained, so that the pictures are the same on every processor.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egui::accesskit::Role;
use egui::{ColorImage, Context, TextureOptions, vec2};
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT as _, Queryable as _};

use crate::engine::concept::shipped::{self, SHIPPED};
use crate::engine::device::{self, Choice};
use crate::engine::event::{Event, SingularValues, Spectrum};
use crate::engine::io::lora_file::{LoraFile, LoraLayer};
use crate::engine::io::metadata;
use crate::engine::merge::meeting::meeting;
use crate::engine::project::{AdapterEntry, ConceptEntry, Fader, Project, Slot};
use crate::engine::spectrum::adapter::spectra;
use crate::ui::cards::{self, AdapterCard, AdapterContent, ConceptCard, Loading};
use crate::ui::command::Command;
use crate::ui::gpu_paint::{self, Planes};
use crate::ui::panel::{PANELS, Panel};
use crate::ui::preferences::Preferences;
use crate::ui::run::{Origin, Run, Sample};
use crate::ui::studio::{Against, Beginning, Seen, Studio};
use crate::ui::theme;
use crate::ui::work::painter::Picture;

const LAYERS: [&str; 4] = [
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v",
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
];
const RANK: usize = 4;
const WIDTH: usize = 16;
const STEPS: usize = 120;

/// Reads columns from `first` on; two of them that share none do not meet.
fn adapter(name: &str, first: usize) -> LoraFile {
    let mut file = LoraFile { path: format!("/p/{name}.safetensors").into(), ..LoraFile::default() };
    for (i, layer) in LAYERS.iter().enumerate() {
        let mut down = vec![0.0; RANK * WIDTH];
        let mut up = vec![0.0; WIDTH * RANK];
        for r in 0..RANK {
            down[r * WIDTH + first + r] = 1.0;
            up[(first + r) * RANK + r] = (1.0 + i as f32) * 0.5f32.powi(r as i32);
        }
        let (down_shape, up_shape) = (vec![RANK, WIDTH], vec![WIDTH, RANK]);
        let layer_of = LoraLayer { down, up, rank: RANK, alpha: RANK as f32, down_shape, up_shape };
        file.layers.insert((*layer).into(), layer_of);
    }
    file.tokens.insert(format!("<{name}>"), vec![vec![0.0; 4]]);
    file.metadata.insert(metadata::METHOD.into(), "lora".into());
    file
}

fn card(file: LoraFile) -> AdapterCard {
    let name = file.path.file_stem().unwrap().to_string_lossy().into_owned();
    let entry = AdapterEntry { name: name.clone(), file: format!("{name}.safetensors").into(), concept: None };
    let path = file.path.clone();
    let content = AdapterContent { spectra: spectra(&file), bytes: 212_300, file: Arc::new(file) };
    AdapterCard { entry, path, content: Loading::Ready(Arc::new(content)), gone: false }
}

/// A checked picture with a rim.
fn picture(ctx: &Context, blue: u8) -> Picture {
    let pixel = |x: u32, y: u32| match (x.min(y) < 4, (x / 8 + y / 8).is_multiple_of(2)) {
        (true, _) => [255, 255, 255],
        (_, true) => [(4 * x) as u8, (4 * y) as u8, blue],
        (_, false) => [40, 44, 52],
    };
    let image = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb(pixel(x, y)));
    let color = ColorImage::from_rgb([64, 64], &image);
    let texture = ctx.load_texture("made up", color, TextureOptions::NEAREST);
    Picture { image: Arc::new(image), texture, coarse: false, seconds: 1.25, heard: Arc::from([]) }
}

/// A training in its second half.
fn run(ctx: &Context) -> Run {
    let mut run = Run::new("clown".into(), "/p/clown.safetensors".into(), "clown".into(), "a <clown>".into(), STEPS);
    let start = Instant::now();
    for step in 1..=80 {
        let loss = 0.2 + 0.5 * (-(step as f32) / 25.0).exp() + 0.05 * (step as f32 * 1.7).sin();
        let (rate, gradient) = (1e-3, 1.0 + loss);
        let event = Event::Step { step, total: STEPS, loss, prior: None, charged: None, gradient, rate };
        run.hear(&event, start + Duration::from_millis(250 * step as u64));
        if step.is_multiple_of(20) {
            run.hear(&Event::Steady { step, loss: 0.25 + 0.3 / step as f32 }, start);
            let values = |i: usize| (0..RANK).map(|r| (1 + i) as f32 * step as f32 * 0.6f32.powi(r as i32)).collect();
            let layers = LAYERS
                .iter()
                .enumerate()
                .map(|(i, layer)| SingularValues { layer: (*layer).into(), values: values(i) });
            run.hear(&Event::Spectrum(Spectrum { step, layers: layers.collect() }), start);
            run.strip.push(Sample {
                step,
                look: Some(picture(ctx, 3 * step as u8).texture),
                from: Origin::File { is_there: true },
            });
        }
    }
    run
}

/// A project with a concept, two adapters on the desk, a training and a picture.
fn studio(folder: &Path, ctx: &Context) -> Studio {
    let (pictures, _) = shipped::unpack(&SHIPPED[2], &folder.join("clown")).unwrap();
    let mut project = Project::new(8);
    let [token, class] = ["<clown>", "face"].map(Into::into);
    let entry = ConceptEntry { name: "clown".into(), folder: "clown".into(), token, class };
    project.concepts.push(entry.clone());
    project.training.concept = "clown".into();
    project.preview.prompt = "a 3d emoji of <robot> face".into();
    project.slots.push(Slot { number: 0, file: "robot.safetensors".into(), token: "<robot>".into() });
    let cards = [adapter("robot", 0), adapter("cat", 2)].map(card);
    project.adapters = cards.iter().map(|card| card.entry.clone()).collect();
    project.desk.faders = cards.iter().map(|card| Fader::new(card.entry.file.clone())).collect();
    project.desk.faders[1].strength = 0.75;
    let mut studio = Studio::new(project, "/p/triptych.toml".into(), Choice::Cpu, Preferences::default());
    let content = cards::concept(&pictures, ctx).into();
    studio.concepts.push(ConceptCard { entry, folder: pictures, content });
    let files: Vec<&LoraFile> = cards.iter().map(|card| card.content.ready().unwrap().file.as_ref()).collect();
    studio.meeting = Some((
        cards.iter().map(|card| card.entry.file.clone()).collect(),
        meeting(&files, &crate::engine::device::cpu()),
    ));
    studio.adapters = cards.into();
    studio.run = Some(run(ctx));
    let [shown, other] = [200, 20].map(|blue| picture(ctx, blue));
    let [picture_seen, other_seen] = [&shown, &other].map(|picture| Some(Planes::of(&picture.image, false)));
    studio.preview.seen = Seen { picture: picture_seen, other: other_seen };
    (studio.preview.picture, studio.preview.other) = (Some(shown), Some(other));
    studio.preview.against = Some(Against::Untouched);
    studio.project.preview.init = Some("start.png".into());
    let content = Loading::Ready(picture(ctx, 90));
    studio.preview.beginning = Some(Beginning { path: "/p/start.png".into(), content });
    studio
}

struct Room {
    panel: Box<dyn Panel>,
    studio: Studio,
    out: Vec<Command>,
}

impl eframe::App for Room {
    fn ui(&mut self, ui: &mut egui::Ui, _: &mut eframe::Frame) {
        let frame = egui::Frame::central_panel(ui.style()).inner_margin(theme::GAP);
        egui::CentralPanel::default().frame(frame).show(ui, |ui| self.panel.ui(ui, &self.studio, &mut self.out));
    }
}

fn room<'a>(name: &str, size: [f32; 2], folder: &Path, drawn: bool) -> Harness<'a, Room> {
    let row = PANELS.iter().find(|row| row.name == name).unwrap();
    let builder = Harness::builder().with_size(size).with_theme(egui::Theme::Dark).with_step_dt(0.05);
    let builder = if drawn { builder.wgpu() } else { builder };
    let mut room = builder.build_eframe(|cc| {
        theme::install(&cc.egui_ctx);
        if let Some(state) = &cc.wgpu_render_state {
            gpu_paint::install(&cc.egui_ctx, state);
        }
        Room { panel: (row.build)(), studio: studio(folder, &cc.egui_ctx), out: Vec::new() }
    });
    room.run_steps(4);
    room
}

/// Presses what shows the rest.
fn press(room: &mut Harness<'_, Room>, labels: &[&str]) {
    for label in labels {
        room.get_by_label(label).click_accesskit();
        room.run_steps(4);
    }
}

#[test]
fn every_panel_in_use_looks_as_it_did() {
    if device::adapters().is_empty() {
        assert!(std::env::var_os("TRIPTYCH_REQUIRE_GPU").is_none(), "no adapter, and TRIPTYCH_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return;
    }
    for (name, size, pressed) in [
        ("library", [272.0, 1150.0], &["Concept clown", "Adapter robot"][..]),
        ("train", [520.0, 480.0], &[]),
        ("merge", [520.0, 800.0], &["Blocks of robot"]),
        ("preview", [430.0, 520.0], &[]),
        ("spectrum", [1270.0, 210.0], &[]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut room = room(name, size, folder.path(), true);
        press(&mut room, pressed);
        room.remove_cursor();
        room.run_steps(4);
        let image = room.render().expect("a driver was found, and the panel can be drawn");
        egui_kittest::image_snapshot(&image, format!("{name}-used"));
    }
}

/// Half of 1280×720, as at 200 %, shared as the panels share it.
#[test]
fn nothing_is_cut_off_where_it_is_narrow() {
    for (name, size, pressed) in [
        ("library", [136.0, 220.0], &["Concept clown", "Adapter robot"][..]),
        ("train", [270.0, 220.0], &[]),
        ("train", [270.0, 220.0], &["Plan", "All settings"]),
        ("train", [270.0, 220.0], &["Queue (0)"]),
        ("merge", [270.0, 220.0], &["Blocks of robot"]),
        ("spectrum", [630.0, 84.0], &[]),
        ("preview", [226.0, 220.0], &["Start from a picture", "Advanced"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut room = room(name, size, folder.path(), false);
        press(&mut room, pressed);
        let cut: Vec<String> = room
            .root()
            .children_recursive()
            .filter(|node| {
                matches!(node.accesskit_node().role(), Role::Label | Role::Button | Role::ComboBox | Role::CheckBox)
            })
            .filter(|node| !is_beside(&room, node.rect()))
            .filter(|node| node.rect().right() > size[0] + 0.5 || node.rect().left() < -0.5)
            .map(|node| format!("{:?} {:?} at {:?}", node.accesskit_node().label(), node.value(), node.rect()))
            .collect();
        assert!(cut.is_empty(), "{name} {pressed:?}: {cut:#?}");
    }
}

/// A stroke on the mask is part of what is asked for, and so are the fields.
#[test]
fn a_stroke_on_the_mask_changes_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut room = room("preview", [430.0, 1200.0], folder.path(), false);
    press(&mut room, &["Start from a picture", "Advanced"]);
    let asked = |room: &Harness<'_, Room>| match room.state().out.last() {
        Some(Command::SetPreview(form)) => form.clone(),
        other => panic!("{other:?}"),
    };
    let middle = room.get_by_label("Mask over the picture").rect().center();
    room.drag_at(middle);
    room.run_steps(3);
    assert!(room.state().out.is_empty(), "not before the stroke is done");
    room.drop_at(middle);
    room.run_steps(3);
    assert!(asked(&room).mask.is_some_and(|mask| !mask.is_empty()));
    press(&mut room, &["Invert mask"]);
    let form = asked(&room);
    let request = form.request(Some(Arc::new(image::RgbImage::new(64, 64))));
    assert_eq!(request.init.and_then(|init| init.mask), form.mask);
    press(&mut room, &["Start from noise"]);
    assert_eq!((asked(&room).init, asked(&room).mask), (None, None));
}

/// Strips, bands and samples stand side by side and scroll there.
fn is_beside(room: &Harness<'_, Room>, rect: egui::Rect) -> bool {
    let faders = room.query_all_by_role(Role::Slider).filter(|node| node.rect().height() > 50.0);
    let samples = room.query_all_by_label_contains("Keep ");
    let mut rows = faders.chain(samples).map(|node| node.rect().expand2(vec2(f32::INFINITY, 120.0)));
    rows.any(|row| row.contains(rect.center()))
}
