//! Painted things on a real adapter, software ones included, pixel by pixel: beside the twins of their colours, and from
//! the engine's memory beside the host's.

mod colors;
mod memory;

use egui::{Rect, pos2, vec2};

use super::pipeline::Pipeline;
use super::*;

pub const WIDTH: u32 = 64;
pub const HEIGHT: u32 = 24;
/// One that stores what egui writes, and one that converts it.
pub const FORMATS: [wgpu::TextureFormat; 2] = [wgpu::TextureFormat::Rgba8Unorm, wgpu::TextureFormat::Rgba8UnormSrgb];

/// An adapter with a device of it.
pub struct Gpu {
    pub instance: wgpu::Instance,
    pub adapter: wgpu::Adapter,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
}

/// With `limits` of what the adapter offers.
pub fn open(limits: fn(&wgpu::Adapter) -> wgpu::Limits) -> Option<Gpu> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let found = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
    let opened = found.ok().and_then(|adapter| {
        let descriptor =
            wgpu::DeviceDescriptor { required_limits: limits(&adapter), ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).ok()?;
        Some(Gpu { instance, adapter, device, queue })
    });
    if opened.is_none() {
        assert!(std::env::var_os("TRIPTYCH_REQUIRE_GPU").is_none(), "no adapter");
        println!("skipped: no adapter");
    }
    opened
}

/// The least that shaders can be painted with.
pub fn least(_: &wgpu::Adapter) -> wgpu::Limits {
    wgpu::Limits::downlevel_defaults()
}

/// Where things are painted: with room around them.
pub fn place() -> Rect {
    Rect::from_min_size(pos2(8.0, 4.0), vec2(48.0, 18.0))
}

/// What a thing leaves on an empty target, row by row, in the viewport that egui gives it.
pub fn pixels(gpu: &Gpu, format: wgpu::TextureFormat, painting: &Painting) -> Vec<[u8; 4]> {
    let Gpu { device, queue, .. } = gpu;
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
    let mut pipeline = Pipeline::new(device, format, painting.thing);
    pipeline.prepare(device, queue, painting);
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
    let rect = painting.rect;
    pass.set_viewport(rect.left(), rect.top(), rect.width(), rect.height(), 0.0, 1.0);
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

/// The pixel of a target at this place.
pub fn at(pixels: &[[u8; 4]], x: f32, y: f32) -> [u8; 4] {
    pixels[y as usize * WIDTH as usize + x as usize]
}

#[test]
fn every_shader_is_of_a_thing() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders/paint");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().replace(".wgsl", ""))
        .collect();
    files.sort();
    assert_eq!(files, THINGS.iter().map(|thing| thing.name).collect::<Vec<_>>());
}
