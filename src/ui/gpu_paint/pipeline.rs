//! The pipeline of a painted thing, with what it painted last.

use super::numbers::{Numbers, Slice};
use super::{Painting, Thing};

const COMMON: &str = include_str!("../../../shaders/common/paint.wgsl");
/// Bytes of the uniform: room for the longest.
const UNIFORM: u64 = 128;

pub(super) struct Pipeline {
    thing: &'static Thing,
    render: wgpu::RenderPipeline,
    layout: wgpu::BindGroupLayout,
    uniform: wgpu::Buffer,
    /// Whether the target turns linear light into sRGB by itself.
    linear: bool,
    /// Holds on to the engine's memory until something else is painted.
    pub bound: Option<Bound>,
}

pub(super) struct Bound {
    lists: Vec<(Numbers, Slice)>,
    pub group: wgpu::BindGroup,
}

impl Pipeline {
    pub fn new(device: &wgpu::Device, target: wgpu::TextureFormat, thing: &'static Thing) -> Self {
        let label = Some(thing.name);
        let text = format!("{COMMON}\n{}", thing.shader);
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
        let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::FRAGMENT,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let list = |binding| entry(binding, wgpu::BufferBindingType::Storage { read_only: true });
        let entries: Vec<_> =
            [entry(0, wgpu::BufferBindingType::Uniform)].into_iter().chain((1..=thing.lists).map(list)).collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let places = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let render = device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
            label,
            layout: Some(&places),
            vertex: wgpu::VertexState {
                module: &module,
                entry_point: Some("cover"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                buffers: &[],
            },
            primitive: wgpu::PrimitiveState::default(),
            depth_stencil: None,
            multisample: wgpu::MultisampleState::default(),
            fragment: Some(wgpu::FragmentState {
                module: &module,
                entry_point: Some("shade"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                targets: &[Some(wgpu::ColorTargetState {
                    format: target,
                    blend: Some(wgpu::BlendState::PREMULTIPLIED_ALPHA_BLENDING),
                    write_mask: wgpu::ColorWrites::ALL,
                })],
            }),
            multiview_mask: None,
            cache: None,
        });
        let uniform = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size: UNIFORM,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self { thing, render, layout, uniform, linear: target.is_srgb(), bound: None }
    }

    pub fn is_of(&self, thing: &Thing) -> bool {
        self.thing.name == thing.name
    }

    pub fn prepare(&mut self, device: &wgpu::Device, queue: &wgpu::Queue, painting: &Painting) {
        let known = self.bound.take();
        let bound = match known {
            Some(bound) if bound.is_of(&painting.numbers) => bound,
            known => self.bind(device, &painting.numbers, known),
        };
        queue.write_buffer(&self.uniform, 0, &self.words(painting, &bound));
        self.bound = Some(bound);
    }

    /// Only lists that are new go to the GPU.
    fn bind(&self, device: &wgpu::Device, numbers: &[Numbers], known: Option<Bound>) -> Bound {
        let known = known.map_or_else(Vec::new, |bound| bound.lists);
        let slice = |list: &Numbers| {
            let slice = known.iter().find(|(known, _)| known == list).map(|(_, slice)| slice.clone());
            (list.clone(), slice.unwrap_or_else(|| list.on(device)))
        };
        let lists: Vec<_> = numbers.iter().map(slice).collect();
        let resources = [self.uniform.as_entire_binding()].into_iter().chain(lists.iter().map(|(_, s)| s.binding()));
        let entries: Vec<_> =
            resources.enumerate().map(|(i, resource)| wgpu::BindGroupEntry { binding: i as u32, resource }).collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(self.thing.name),
            layout: &self.layout,
            entries: &entries,
        });
        Bound { lists, group }
    }

    /// The shader's `Place`, and what follows it.
    fn words(&self, painting: &Painting, bound: &Bound) -> Vec<u8> {
        let rect = painting.rect;
        let first = |i: usize| bound.lists.get(i).map_or(0, |(_, slice)| slice.first);
        let place = [rect.left(), rect.top(), rect.width(), rect.height()].map(f32::to_bits);
        let rest = [f32::from(u8::from(self.linear)), 0.0];
        let words = rest.into_iter().chain(painting.words.iter().copied()).map(f32::to_bits);
        place.into_iter().chain([first(0), first(1)]).chain(words).flat_map(u32::to_ne_bytes).collect()
    }

    pub fn paint(&self, pass: &mut wgpu::RenderPass<'_>) {
        let Some(Bound { group, .. }) = &self.bound else { return };
        pass.set_pipeline(&self.render);
        pass.set_bind_group(0, group, &[]);
        pass.draw(0..3, 0..1);
    }
}

impl Bound {
    fn is_of(&self, numbers: &[Numbers]) -> bool {
        self.lists.iter().map(|(list, _)| list).eq(numbers)
    }
}
