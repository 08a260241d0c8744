//! `triptych sample --init`: from a picture, and into a part of it.

use image::{GrayImage, Luma, RgbImage};
use triptych::engine::io::png;

use crate::command::Desk;
use crate::pixels;

const LINE: &str = "sample --steps 8 --sampler ddim --prompt 'a 3d emoji of robot' --init robot/idle.png";

/// 64×64, as the starter's pictures are.
fn square(desk: &Desk) -> RgbImage {
    let picture = RgbImage::from_fn(64, 64, |x, y| image::Rgb([(4 * x) as u8, (4 * y) as u8, 90]));
    picture.save(desk.path("square.png")).expect("the desk is writable");
    picture
}

fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn the_picture_stays_near_at_a_small_strength_and_goes_with_a_large_one() {
    let desk = Desk::new();
    let original = square(&desk).into_raw();
    let line = LINE.replace("robot/idle.png", "square.png");
    let away = |strength: &str| {
        desk.run(&format!("{line} --strength {strength} --out {strength}.png")).result();
        mean_difference(&original, &pixels(&desk, &format!("{strength}.png")))
    };
    let [none, little, all] = ["0", "0.2", "1"].map(away);
    assert!(none < little && little < all, "{none} {little} {all}");
    assert!(none < 16.0, "without a step only the autoencoder has a say: {none}");
    assert!(all > 2.0 * little, "{little} {all}");
    let text = &png::read_text(&desk.path("0.2.png")).unwrap()[png::PARAMETERS];
    assert!(text.contains(", Denoising strength: 0.2, "), "{text}");
}

#[test]
fn of_all_steps_the_last_are_taken() {
    let desk = Desk::new();
    for (sampler, strength, passes) in [("ddim", 0.5, 4), ("heun", 0.5, 7), ("heun", 1.0, 15), ("lcm", 0.0, 0)] {
        let line = LINE.replace("ddim", sampler);
        let done = desk.run(&format!("{line} --strength {strength} --out a.png"));
        let told: Vec<_> = done.lines().into_iter().filter(|line| line["event"] == "progress").collect();
        assert_eq!(told.len(), passes, "{sampler} {strength}");
        if let Some(last) = told.last() {
            assert_eq!((&last["done"], &last["total"]), (&passes.into(), &passes.into()), "{sampler} {strength}");
        }
    }
}

#[test]
fn outside_of_a_mask_every_pixel_stays() {
    let desk = Desk::new();
    let original = square(&desk).into_raw();
    let line = LINE.replace("robot/idle.png", "square.png");
    GrayImage::new(64, 64).save(desk.path("black.png")).unwrap();
    desk.run(&format!("{line} --mask black.png --out black-out.png")).result();
    assert_eq!(pixels(&desk, "black-out.png"), original, "a black mask keeps everything");
    GrayImage::from_pixel(64, 64, Luma([255])).save(desk.path("white.png")).unwrap();
    desk.run(&format!("{line} --mask white.png --out white-out.png")).result();
    desk.run(&format!("{line} --out plain.png")).result();
    assert_eq!(pixels(&desk, "white-out.png"), pixels(&desk, "plain.png"), "a white mask is none");
    // Of twice the size, as a mask may be.
    let inside = |x: u32, y: u32| (19..45).contains(&x) && (10..30).contains(&y);
    let mask = GrayImage::from_fn(128, 128, |x, y| Luma([if inside(x / 2, y / 2) { 255 } else { 0 }]));
    mask.save(desk.path("part.png")).unwrap();
    for more in ["", "--sampler euler_ancestral", "--sampler unipc", "--sampler lcm --cfg 1", "--strength 1 --count 2"]
    {
        let name = if more.contains("count") { "part-out-2.png" } else { "part-out.png" };
        let line =
            if more.contains("sampler") { line.replace("--sampler ddim", more) } else { format!("{line} {more}") };
        desk.run(&format!("{line} --mask part.png --out part-out.png")).result();
        let found = pixels(&desk, name);
        let mut changed = 0;
        for (i, (found, original)) in found.chunks(3).zip(original.chunks(3)).enumerate() {
            let (x, y) = (i as u32 % 64, i as u32 / 64);
            if inside(x, y) {
                changed += usize::from(found != original);
            } else {
                assert_eq!(found, original, "{more}: {x} {y}");
            }
        }
        assert!(changed > 300, "{more}: only {changed} pixels are new");
    }
}

#[test]
fn a_picture_is_cut_to_the_size() {
    let desk = Desk::new();
    RgbImage::from_fn(100, 50, |x, _| image::Rgb([if x < 50 { 255 } else { 0 }; 3]))
        .save(desk.path("wide.jpg"))
        .unwrap();
    let line = LINE.replace("robot/idle.png", "wide.jpg");
    desk.run(&format!("{line} --strength 0 --size 32x64 --out a.png")).result();
    let found = image::open(desk.path("a.png")).unwrap().into_rgb8();
    assert_eq!(found.dimensions(), (32, 64));
    assert!(found.get_pixel(3, 32).0[0] > 180 && found.get_pixel(28, 32).0[0] < 80, "its middle is the picture's");
}

#[test]
fn what_cannot_be_is_a_sentence() {
    let desk = Desk::new();
    desk.write("broken.png", "no picture");
    square(&desk);
    GrayImage::new(64, 32).save(desk.path("flat.png")).unwrap();
    let plain = LINE.replace(" --init robot/idle.png", "");
    for (line, code, words) in [
        (format!("{plain} --mask flat.png"), 2, "A mask needs a picture"),
        (format!("{plain} --init none.png"), 1, "Could not read the picture"),
        (format!("{plain} --init broken.png"), 1, "not a picture"),
        (format!("{plain} --init square.png --mask broken.png"), 1, "not a picture"),
        (format!("{plain} --init square.png --mask flat.png"), 2, "The mask has another shape"),
        (format!("{plain} --init square.png --strength 1.5"), 2, "cannot change by 1.5"),
        (format!("{plain} --init square.png --strength NaN"), 2, "cannot change by NaN"),
        (format!("{plain} --set spacing=wide"), 2, "spacing cannot be"),
        (format!("{plain} --set speed=1"), 2, "There is no field"),
        (plain.replace("8 --sampler ddim", "51 --sampler lcm"), 2, "51 sampling steps"),
    ] {
        let done = desk.say(&format!("{line} --out a.png"));
        assert_eq!(done.code, Some(code), "{done:?}");
        assert!(done.stderr.contains(words), "{line}: {}", done.stderr);
        assert!(!desk.path("a.png").exists());
    }
}

#[test]
fn fields_of_sampling_change_the_picture_and_are_told() {
    let desk = Desk::new();
    let line = LINE.replace(" --init robot/idle.png", "");
    desk.run(&format!("{line} --out plain.png")).result();
    for (set, told) in [
        ("spacing=trailing", "Timestep spacing: trailing"),
        ("zero_snr=on", "Noise Schedule: Zero Terminal SNR"),
        ("guidance_rescale=0.7", "CFG rescale: 0.7"),
    ] {
        desk.run(&format!("{line} --set {set} --out a.png")).result();
        assert_ne!(pixels(&desk, "plain.png"), pixels(&desk, "a.png"), "{set} changes nothing");
        let text = &png::read_text(&desk.path("a.png")).unwrap()[png::PARAMETERS];
        assert!(text.contains(told), "{text}");
    }
    let kept = desk.say(&format!("{} --set spacing=trailing --out b.png", line.replace("ddim", "dpmpp_2m_karras")));
    assert!(kept.stderr.contains("DPM++ 2M Karras keeps its own spacing"), "{kept:?}");
}
