//! Every panel of the registry is there, is reached by its name, says what it is for, and looks as it did.

use egui::{Rect, Theme};
use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use image::{Rgba, RgbaImage};
use triptych::engine::device;
use triptych::ui::{App, panel::PANELS};

use crate::{drawn_window, shows, until};

/// What differs from run to run: times and free memory, on lines of this width whatever they say.
const CHANGING: [&str; 2] = [" s · refined", " free, "];
const LINE: f32 = 450.0;

#[test]
fn every_panel_opens_and_looks_as_it_did() {
    if device::adapters().is_empty() {
        assert!(std::env::var_os("TRIPTYCH_REQUIRE_GPU").is_none(), "no adapter, and TRIPTYCH_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return;
    }
    for (theme, name) in [(Theme::Dark, "dark"), (Theme::Light, "light")] {
        let folder = tempfile::tempdir().unwrap();
        let mut window = drawn_window(folder.path(), theme);
        until(&mut window, "the model", |window| shows(window, "Computes on: CPU"));
        until(&mut window, "a first picture", |window| shows(window, " s · refined"));
        until(&mut window, "the thumbnails", |window| shows(window, "11 pictures"));
        for row in PANELS {
            let tab = format!("{} panel", row.title);
            window.get_by_label(&tab).click();
            window.run_steps(4);
            assert!(shows(&window, row.hint), "{} does not say what it is for", row.name);
            let image = masked(&mut window);
            let place = tile(&window, &tab);
            let part = image::imageops::crop_imm(
                &image,
                place.left() as u32,
                place.top() as u32,
                place.width() as u32,
                place.height() as u32,
            )
            .to_image();
            egui_kittest::image_snapshot(&part, format!("{}-{name}", row.name));
        }
    }
}

/// The window as it is drawn, without what changes from run to run.
fn masked(window: &mut Harness<'_, App>) -> RgbaImage {
    let mut image = window.render().expect("a driver was found, and the window can be drawn");
    let line = |rect: Rect| Rect::from_min_size(rect.min, egui::vec2(LINE, rect.height()));
    let mut places: Vec<Rect> = Vec::new();
    for text in CHANGING {
        places.extend(window.query_all_by_label_contains(text).map(|node| line(node.rect())));
    }
    // The picture itself differs in its last bits from processor to processor.
    let (above, below) = (window.get_by_label("Compare with"), window.get_by_label_contains(CHANGING[0]));
    let picture = [above.rect().left_bottom() + egui::vec2(0.0, 8.0), below.rect().left_top() + egui::vec2(LINE, 0.0)];
    places.push(Rect::from_points(&picture));
    for place in places {
        for y in place.top() as u32..(place.bottom() as u32).min(image.height()) {
            for x in place.left() as u32..(place.right() as u32).min(image.width()) {
                image.put_pixel(x, y, Rgba([128, 128, 128, 255]));
            }
        }
    }
    image
}

/// Below the tab, to the next panel and to the log.
fn tile(window: &Harness<'_, App>, tab: &str) -> Rect {
    let own = window.get_by_label(tab).rect();
    let others: Vec<Rect> =
        PANELS.iter().map(|row| window.get_by_label(&format!("{} panel", row.title)).rect()).collect();
    let beside = others.iter().filter(|o| (o.top() - own.top()).abs() < 4.0 && o.left() > own.left() + 150.0);
    let right = beside.map(|o| o.left() - 8.0).fold(1278.0, f32::min);
    let below = others.iter().filter(|o| o.top() > own.top() + 50.0);
    let bottom = below.map(|o| o.top() - 8.0).fold(770.0, f32::min);
    let left = if tab == "Merge panel" { window.get_by_label("Train panel").rect().left() } else { own.left() };
    Rect::from_min_max(egui::pos2(left, own.bottom() + 2.0), egui::pos2(right, bottom))
}
