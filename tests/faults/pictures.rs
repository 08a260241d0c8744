//! Pictures from anywhere: too large, not what they claim, without a word about them.

use image::{Rgb, RgbImage};

use crate::command::{Desk, TRAIN, tensors};

#[test]
fn forty_megapixels_train_and_a_bomb_is_left_out_by_name() {
    let desk = Desk::new();
    RgbImage::from_pixel(8000, 5000, Rgb([200, 30, 30])).save(desk.path("robot/large.png")).unwrap();
    // A few bytes that promise ten gigabytes.
    let mut bomb = Vec::new();
    let mut encoder = png::Encoder::new(&mut bomb, 60_000, 60_000);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[]).unwrap();
    desk.write("robot/bomb.png", &bomb);

    let report = desk.run("inspect robot").result();
    assert_eq!((&report["pictures"], report["skipped"].as_array().map(Vec::len)), (&4.into(), Some(1)), "{report}");
    let done = desk.run(&format!("{TRAIN} --steps 1 --out a.safetensors"));
    done.result();
    let notes = done.notes();
    let told = notes.lines().find(|line| line.contains("bomb.png was left out")).unwrap_or_else(|| panic!("{notes}"));
    assert!(told.contains("too large to open") && told.contains("8000 pixels"), "{told}");
    assert!(!notes.contains("large.png"), "{notes}");

    // Alone it is no concept, and what was there stays.
    desk.write("alone/bomb.png", &bomb);
    let failure = desk.refuses("train --concept alone --class robot --out a.safetensors");
    assert!(failure.contains("bomb.png: The picture is too large") && failure.ends_with("alone"), "{failure}");
}

#[test]
fn without_captions_every_picture_has_the_models_own() {
    let desk = Desk::new();
    // The starter's README gives this template.
    for name in ["idle", "jump", "walk0"] {
        desk.write(&format!("robot/{name}.txt"), "a 3d emoji of [trigger] robot");
    }
    let line = format!("{TRAIN} --method lora --steps 2 --out");
    desk.run(&format!("{line} written.safetensors")).result();
    std::fs::remove_file(desk.path("robot/idle.txt")).unwrap();
    desk.write("robot/jump.txt", " \n");
    desk.run(&format!("{line} missing.safetensors")).result();
    let [written, missing] = ["written", "missing"].map(|name| tensors(&desk.path(&format!("{name}.safetensors"))).0);
    let bytes = |tensors: &std::collections::BTreeMap<String, triptych::engine::io::safetensors::Tensor>| {
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.bytes.clone())).collect::<Vec<_>>()
    };
    assert!(bytes(&written) == bytes(&missing), "a missing caption is not the template");
    // With words of its own, it is another training.
    desk.write("robot/idle.txt", "[trigger] in the rain");
    desk.run(&format!("{line} other.safetensors")).result();
    assert!(bytes(&written) != bytes(&tensors(&desk.path("other.safetensors")).0), "captions do nothing");
}
