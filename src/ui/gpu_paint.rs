//! What shaders paint into the window: `shaders/paint`, one struct for each.
//!
//! Pipelines are made once, when the window opens. A renderer without wgpu has none: ask [`can_paint`] first.

use std::sync::Arc;

use egui::{Context, Id, PaintCallbackInfo, Rect, Shape};
use egui_wgpu::{Callback, CallbackResources, CallbackTrait, RenderState, ScreenDescriptor};
use wgpu::util::DeviceExt as _;

const HEAT_STRIP: &str = include_str!("../../shaders/paint/heat_strip.wgsl");
/// Bytes of the shader's `Strip`.
const UNIFORM: u64 = 32;

/// A grid of values, columns × rows. Shared, and handed to the GPU only when it is another one.
#[derive(Debug, PartialEq)]
pub struct Cells {
    pub columns: u32,
    pub rows: u32,
    /// Row by row; less than 0 where there is nothing to paint.
    pub values: Vec<f32>,
}

/// A grid painted by `heat_strip.wgsl`.
#[derive(Clone)]
pub struct HeatStrip {
    pub cells: Arc<Cells>,
    /// The values of the darkest and the brightest colour, both above 0.
    pub low: f32,
    pub high: f32,
    /// Pixels between two cells.
    pub gap: f32,
    /// In pixels of the target.
    pub rect: Rect,
}

/// Makes the pipelines. Without this, nothing is painted.
pub fn install(ctx: &Context, state: &RenderState) {
    let pipeline = Pipeline::new(&state.device, state.target_format);
    state.renderer.write().callback_resources.insert(pipeline);
    ctx.data_mut(|data| data.insert_temp(flag(), true));
}

/// Whether the renderer runs shaders.
pub fn can_paint(ctx: &Context) -> bool {
    ctx.data(|data| data.get_temp(flag()).unwrap_or(false))
}

fn flag() -> Id {
    Id::new("gpu paint")
}

impl HeatStrip {
    /// The strip as a shape at `rect`, in points.
    pub fn shape(mut self, rect: Rect, pixels_per_point: f32) -> Shape {
        self.rect = Rect::from_min_max(
            (rect.min.to_vec2() * pixels_per_point).to_pos2(),
            (rect.max.to_vec2() * pixels_per_point).to_pos2(),
        );
        Callback::new_paint_callback(rect, self).into()
    }

    fn uniform(&self, linear: bool) -> Vec<u8> {
        let (low, high) = (self.low.log2(), self.high.log2());
        let Rect { min, .. } = self.rect;
        // Equal ends would divide by nothing.
        let high = if high > low { high } else { low + 1.0 };
        let words =
            [min.x, min.y, self.rect.width(), self.rect.height(), low, high, self.gap, f32::from(u8::from(linear))];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

impl CallbackTrait for HeatStrip {
    fn prepare(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        _: &ScreenDescriptor,
        _: &mut wgpu::CommandEncoder,
        resources: &mut CallbackResources,
    ) -> Vec<wgpu::CommandBuffer> {
        if let Some(pipeline) = resources.get_mut::<Pipeline>() {
            pipeline.prepare(device, queue, self);
        }
        Vec::new()
    }

    fn paint(&self, _: PaintCallbackInfo, pass: &mut wgpu::RenderPass<'static>, resources: &CallbackResources) {
        if let Some(pipeline) = resources.get::<Pipeline>() {
            pipeline.paint(pass);
        }
    }
}

/// The heat strip's, with the grid it painted last.
struct Pipeline {
    render: wgpu::RenderPipeline,
    layout: wgpu::BindGroupLayout,
    uniform: wgpu::Buffer,
    /// Whether the target turns linear light into sRGB by itself.
    linear: bool,
    bound: Option<(Arc<Cells>, wgpu::BindGroup)>,
}

impl Pipeline {
    fn new(device: &wgpu::Device, target: wgpu::TextureFormat) -> Self {
        let label = Some("heat strip");
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(HEAT_STRIP.into()),
        });
        let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::FRAGMENT,
            ty,
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &[
                entry(
                    0,
                    wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Uniform,
                        has_dynamic_offset: false,
                        min_binding_size: wgpu::BufferSize::new(UNIFORM),
                    },
                ),
                entry(
                    1,
                    wgpu::BindingType::Texture {
                        sample_type: wgpu::TextureSampleType::Float { filterable: false },
                        view_dimension: wgpu::TextureViewDimension::D2,
                        multisampled: false,
                    },
                ),
            ],
        });
        let places = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
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
        Self { render: pipeline, layout, uniform, linear: target.is_srgb(), bound: None }
    }

    fn prepare(&mut self, device: &wgpu::Device, queue: &wgpu::Queue, strip: &HeatStrip) {
        queue.write_buffer(&self.uniform, 0, &strip.uniform(self.linear));
        if self.bound.as_ref().is_some_and(|(cells, _)| Arc::ptr_eq(cells, &strip.cells)) {
            return;
        }
        let Cells { columns, rows, values } = strip.cells.as_ref();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let texture = device.create_texture_with_data(
            queue,
            &wgpu::TextureDescriptor {
                label: Some("heat strip"),
                size: wgpu::Extent3d { width: *columns, height: *rows, depth_or_array_layers: 1 },
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: wgpu::TextureFormat::R32Float,
                usage: wgpu::TextureUsages::TEXTURE_BINDING,
                view_formats: &[],
            },
            wgpu::util::TextureDataOrder::LayerMajor,
            &bytes,
        );
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("heat strip"),
            layout: &self.layout,
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: self.uniform.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: wgpu::BindingResource::TextureView(&view) },
            ],
        });
        self.bound = Some((Arc::clone(&strip.cells), group));
    }

    fn paint(&self, pass: &mut wgpu::RenderPass<'_>) {
        let Some((_, group)) = &self.bound else { return };
        pass.set_pipeline(&self.render);
        pass.set_bind_group(0, group, &[]);
        pass.draw(0..3, 0..1);
    }
}

#[cfg(test)]
#[path = "gpu_paint_test.rs"]
mod tests;
