//! What shaders paint into the window.
//!
//! A painted thing is `shaders/paint/NAME.wgsl`, `NAME.rs` here and its row in [`THINGS`]. Pipelines are made once, when
//! the window opens. A renderer without them is no reason to show less: ask [`can_paint`] first, and paint with egui.

mod heat_strip;
mod numbers;
mod overlap_matrix;
mod pipeline;
mod split;
#[cfg(test)]
mod tests;

use egui::{Context, Id, PaintCallbackInfo, Rect, Shape};
use egui_wgpu::{Callback, CallbackResources, CallbackTrait, RenderState, ScreenDescriptor};

use self::pipeline::Pipeline;

pub use heat_strip::HeatStrip;
pub use numbers::Numbers;
pub use overlap_matrix::OverlapMatrix;
pub use split::{Divider, Planes, Split};

/// Every painted thing.
const THINGS: &[&Thing] = &[&heat_strip::THING, &overlap_matrix::THING, &split::THING];

/// One of them, in all that its pipeline needs to know.
struct Thing {
    name: &'static str,
    /// What follows `shaders/common/paint.wgsl`.
    shader: &'static str,
    /// How many lists of numbers it is painted from, one buffer each.
    lists: usize,
}

/// One thing as it is painted into a frame; of each thing there is one in a frame.
struct Painting {
    thing: &'static Thing,
    /// In pixels of the target.
    rect: Rect,
    /// What follows the place in the shader's uniform.
    words: Vec<f32>,
    numbers: Vec<Numbers>,
}

/// All things' pipelines.
struct Pipelines(Vec<Pipeline>);

/// Makes the pipelines. Without this, nothing is painted.
pub fn install(ctx: &Context, state: &RenderState) {
    let offered = state.device.limits().max_storage_buffers_per_shader_stage as usize;
    if THINGS.iter().any(|thing| thing.lists > offered) {
        return;
    }
    let pipelines = THINGS.iter().map(|thing| Pipeline::new(&state.device, state.target_format, thing));
    state.renderer.write().callback_resources.insert(Pipelines(pipelines.collect()));
    ctx.data_mut(|data| data.insert_temp(flag(), true));
}

/// Whether the renderer runs shaders that read buffers.
pub fn can_paint(ctx: &Context) -> bool {
    ctx.data(|data| data.get_temp(flag()).unwrap_or(false))
}

fn flag() -> Id {
    Id::new("gpu paint")
}

impl Painting {
    /// At `rect`, in points.
    fn new(thing: &'static Thing, rect: Rect, pixels_per_point: f32, words: Vec<f32>, numbers: Vec<Numbers>) -> Self {
        Self { thing, rect: rect * pixels_per_point, words, numbers }
    }

    fn shape(self, rect: Rect) -> Shape {
        Callback::new_paint_callback(rect, self).into()
    }
}

impl CallbackTrait for Painting {
    fn prepare(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        _: &ScreenDescriptor,
        _: &mut wgpu::CommandEncoder,
        resources: &mut CallbackResources,
    ) -> Vec<wgpu::CommandBuffer> {
        let pipelines = resources.get_mut::<Pipelines>().into_iter().flat_map(|pipelines| &mut pipelines.0);
        for pipeline in pipelines.filter(|pipeline| pipeline.is_of(self.thing)) {
            pipeline.prepare(device, queue, self);
        }
        Vec::new()
    }

    fn paint(&self, _: PaintCallbackInfo, pass: &mut wgpu::RenderPass<'static>, resources: &CallbackResources) {
        let pipelines = resources.get::<Pipelines>().into_iter().flat_map(|pipelines| &pipelines.0);
        for pipeline in pipelines.filter(|pipeline| pipeline.is_of(self.thing)) {
            pipeline.paint(pass);
        }
    }
}
