//! The heat strip on a real adapter, software ones included, pixel by pixel against the colour map's Rust twin.

use egui::{Color32, pos2, vec2};

use super::*;
use crate::ui::color_map::inferno;

const WIDTH: u32 = 64;
const HEIGHT: u32 = 24;
const LOW: f32 = 0.001;
const HIGH: f32 = 10.0;

fn open() -> Option<(wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let found = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
    let opened = found.ok().and_then(|adapter| {
        // The least that any adapter offers must be enough.
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: wgpu::Limits::downlevel_webgl2_defaults(),
            ..wgpu::DeviceDescriptor::default()
        };
        pollster::block_on(adapter.request_device(&descriptor)).ok()
    });
    if opened.is_none() {
        assert!(std::env::var_os("TRIPTYCH_REQUIRE_GPU").is_none(), "no adapter");
        println!("skipped: no adapter");
    }
    opened
}

fn painted(device: &wgpu::Device, queue: &wgpu::Queue, format: wgpu::TextureFormat, strip: &HeatStrip) -> Vec<[u8; 4]> {
    let size = wgpu::Extent3d { width: WIDTH, height: HEIGHT, depth_or_array_layers: 1 };
    let target = device.create_texture(&wgpu::TextureDescriptor {
        label: None,
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
        view_formats: &[],
    });
    let read = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: u64::from(4 * WIDTH * HEIGHT),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut pipeline = Pipeline::new(device, format);
    pipeline.prepare(device, queue, strip);
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let view = target.create_view(&wgpu::TextureViewDescriptor::default());
    let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
        color_attachments: &[Some(wgpu::RenderPassColorAttachment {
            view: &view,
            resolve_target: None,
            ops: wgpu::Operations { load: wgpu::LoadOp::Clear(wgpu::Color::TRANSPARENT), store: wgpu::StoreOp::Store },
            depth_slice: None,
        })],
        ..wgpu::RenderPassDescriptor::default()
    });
    pipeline.paint(&mut pass);
    drop(pass);
    let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(4 * WIDTH), rows_per_image: None };
    encoder.copy_texture_to_buffer(target.as_image_copy(), wgpu::TexelCopyBufferInfo { buffer: &read, layout }, size);
    queue.submit([encoder.finish()]);
    read.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let bytes = read.get_mapped_range(..).unwrap().to_vec();
    bytes.chunks_exact(4).map(|pixel| [pixel[0], pixel[1], pixel[2], pixel[3]]).collect()
}

/// Every value between the ends and past them, and a hole.
fn strip() -> HeatStrip {
    let values = vec![10.0, 1.0, 0.1, 0.03, 20.0, 0.01, 0.001, 0.0, 3.0, 1e-9, -1.0, 0.5];
    let rect = Rect::from_min_size(pos2(8.0, 4.0), vec2(48.0, 18.0));
    HeatStrip { cells: Arc::new(Cells { columns: 4, rows: 3, values }), low: LOW, high: HIGH, gap: 1.0, rect }
}

#[test]
fn pixels_are_the_twins_colors() {
    let Some((device, queue)) = open() else { return };
    let strip = strip();
    for format in [wgpu::TextureFormat::Rgba8Unorm, wgpu::TextureFormat::Rgba8UnormSrgb] {
        let pixels = painted(&device, &queue, format, &strip);
        let at = |x: usize, y: usize| pixels[y * WIDTH as usize + x];
        for (i, &value) in strip.cells.values.iter().enumerate() {
            let (column, row) = (i % 4, i / 4);
            let found = at(8 + 12 * column + 5, 4 + 6 * row + 2);
            let t = (value.max(1e-30) / LOW).log2() / (HIGH / LOW).log2();
            let expected = if value < 0.0 { Color32::TRANSPARENT } else { inferno(t) };
            let apart = expected.to_array().iter().zip(found).map(|(&a, b)| a.abs_diff(b)).max();
            assert!(apart <= Some(2), "{format:?}: value {value} is {found:?} instead of {expected:?}");
            assert_eq!(at(8 + 12 * column + 11, 4 + 6 * row + 2), [0; 4], "cells stay apart");
            assert_eq!(at(8 + 12 * column + 5, 4 + 6 * row + 5), [0; 4], "rows stay apart");
        }
    }
}

#[test]
fn a_grid_is_handed_over_once() {
    let Some((device, queue)) = open() else { return };
    let mut pipeline = Pipeline::new(&device, wgpu::TextureFormat::Rgba8Unorm);
    let first = strip();
    pipeline.prepare(&device, &queue, &first);
    let bound = pipeline.bound.as_ref().map(|(_, group)| group.clone());
    pipeline.prepare(&device, &queue, &HeatStrip { high: 5.0, ..first });
    assert_eq!(pipeline.bound.as_ref().map(|(_, group)| group.clone()), bound);
    pipeline.prepare(&device, &queue, &strip());
    assert_ne!(pipeline.bound.as_ref().map(|(_, group)| group.clone()), bound);
}
