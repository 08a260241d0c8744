//! Colours and places, beside what the same would be in Rust.

use egui::{Color32, pos2, vec2};

use super::*;
use crate::ui::color_map::inferno;

const LOW: f32 = 0.001;
const HIGH: f32 = 10.0;

fn host(values: &[f32]) -> Numbers {
    Numbers::Host(values.into())
}

fn assert_near(what: &str, found: [u8; 4], expected: Color32) {
    let apart = expected.to_array().iter().zip(found).map(|(&a, b)| a.abs_diff(b)).max();
    assert!(apart <= Some(2), "{what} is {found:?} instead of {expected:?}");
}

/// Every value between the ends and past them, and a hole, in four layers of three.
fn strip() -> HeatStrip {
    let values = host(&[10.0, 20.0, 3.0, 1.0, 0.01, 1e-9, 0.1, 0.001, -1.0, 0.03, 0.0, 0.5]);
    HeatStrip { values, columns: 4, rows: 3, low: LOW, high: HIGH, gap: 1.0 }
}

#[test]
fn a_strip_has_the_twins_colors() {
    let Some(gpu) = open(least) else { return };
    let Numbers::Host(values) = strip().values else { return };
    for format in FORMATS {
        let pixels = pixels(&gpu, format, &strip().painting(place(), 1.0));
        for (i, &value) in values.iter().enumerate() {
            let (x, y) = (8.0 + 12.0 * (i / 3) as f32, 4.0 + 6.0 * (i % 3) as f32);
            let t = (value.max(1e-30) / LOW).log2() / (HIGH / LOW).log2();
            let expected = if value < 0.0 { Color32::TRANSPARENT } else { inferno(t) };
            assert_near(&format!("{format:?}: value {value}"), at(&pixels, x + 5.0, y + 2.0), expected);
            assert_eq!(at(&pixels, x + 11.0, y + 2.0), [0; 4], "cells stay apart");
            assert_eq!(at(&pixels, x + 5.0, y + 5.0), [0; 4], "rows stay apart");
        }
    }
}

#[test]
fn a_matrix_shows_sign_and_size() {
    const COSINES: [f32; 9] = [0.0, 0.1, -0.4, 0.1, 0.0, 1.0, -0.4, -0.05, 0.0];
    let Some(gpu) = open(least) else { return };
    let colors = [Color32::from_rgb(44, 111, 187), Color32::from_rgb(38, 42, 49), Color32::from_rgb(224, 130, 20)];
    let [cell, step] = [vec2(14.0, 4.0), vec2(17.0, 7.0)];
    let matrix = OverlapMatrix { cosines: host(&COSINES), count: 3, full: 0.4, colors, cell, step, radius: 1.5 };
    for format in FORMATS {
        let pixels = pixels(&gpu, format, &matrix.clone().painting(place(), 1.0));
        for (i, &cosine) in COSINES.iter().enumerate() {
            let corner = pos2(8.0, 4.0) + step * vec2((i % 3) as f32, (i / 3) as f32);
            let end = if cosine < 0.0 { colors[0] } else { colors[2] };
            let expected = colors[1].lerp_to_gamma(end, (cosine.abs() / 0.4).min(1.0));
            let middle = corner + 0.5 * cell;
            assert_near(&format!("{format:?}: cosine {cosine}"), at(&pixels, middle.x, middle.y), expected);
            assert_eq!(at(&pixels, corner.x + 15.0, middle.y), [0; 4], "cells stay apart");
            let round = at(&pixels, corner.x, corner.y)[3];
            assert!(round < 200, "a corner is round: {round}");
        }
    }
}

/// `width` × `height` pixels, each of another colour.
pub fn picture(width: u32, height: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(40 * x) as u8, (60 * y) as u8, (20 * x + 9 * y) as u8]))
}

#[test]
fn a_picture_is_split_at_the_divider() {
    let Some(gpu) = open(least) else { return };
    let (left, right) = (image::RgbImage::from_pixel(2, 2, image::Rgb([200, 100, 0])), picture(6, 3));
    let [before, after] = [&left, &right].map(|image| Planes::of(image, false));
    let color = Color32::from_rgb(1, 2, 3);
    for format in FORMATS {
        let divider = Divider { at: 0.5, width: 2.0, color };
        let split = Split { picture: &after, before: Some((&before, divider)) };
        let pixels = pixels(&gpu, format, &split.painting(place(), 1.0));
        for (x, y) in (8..56).flat_map(|x| (4..22).map(move |y| (x, y))) {
            let pixel = right.get_pixel((x - 8) / 8, (y - 4) / 6);
            let expected = match x {
                31 | 32 => color,
                0..31 => Color32::from_rgb(200, 100, 0),
                _ => Color32::from_rgb(pixel[0], pixel[1], pixel[2]),
            };
            assert_near(&format!("{format:?}: {x}, {y}"), at(&pixels, x as f32, y as f32), expected);
        }
        assert_eq!(at(&pixels, 57.0, 10.0), pixels[0], "nothing outside");
    }
}

#[test]
fn a_soft_picture_is_read_between_its_pixels() {
    let Some(gpu) = open(least) else { return };
    // Two pixels over 48: black to the middle of the left one, white from the middle of the right one.
    let image = image::RgbImage::from_fn(2, 1, |x, _| image::Rgb([255 * x as u8; 3]));
    let planes = Planes::of(&image, true);
    let split = Split { picture: &planes, before: None };
    let pixels = pixels(&gpu, FORMATS[0], &split.painting(place(), 1.0));
    for x in 0..48_u8 {
        let grey = ((f32::from(x) + 0.5) / 24.0 - 0.5).clamp(0.0, 1.0);
        let expected = Color32::from_gray((255.0 * grey).round() as u8);
        assert_near(&format!("{x}"), at(&pixels, 8.0 + f32::from(x), 10.0), expected);
    }
}

#[test]
fn a_list_is_handed_over_once() {
    let Some(gpu) = open(least) else { return };
    let Gpu { device, queue, .. } = &gpu;
    let mut pipeline = Pipeline::new(device, FORMATS[0], &heat_strip::THING);
    let mut bound = |strip: HeatStrip| {
        pipeline.prepare(device, queue, &strip.painting(place(), 1.0));
        pipeline.bound.as_ref().map(|bound| bound.group.clone())
    };
    let first = bound(strip());
    assert_eq!(bound(HeatStrip { high: 5.0, ..strip() }), first);
    assert_ne!(bound(HeatStrip { values: host(&[1.0; 12]), ..strip() }), first);
}
