//! The window. It asks and shows; the engine computes, on threads of its own.
//!
//! `app` drains what the threads report, draws the panels and does what they ask for. Panels read the studio
//! and answer with commands. A panel is one file and one line in [`panel::PANELS`].

mod act;
pub mod app;
mod cards;
mod chrome;
mod color_map;
mod command;
mod crops;
mod dropped;
mod facts;
mod first_start;
mod gpu_paint;
mod grid;
mod log;
mod mixdown;
mod pace;
pub mod panel;
mod panels;
mod preferences;
mod preflight;
mod preparing;
mod run;
mod show;
mod snapshots;
mod studio;
mod teach;
mod theme;
mod undo;
mod widgets;
mod work;

pub use app::{App, Start};

use crate::engine::{Error, Result};

/// Opens the window and stays until it is closed.
pub fn run(start: Start) -> Result<()> {
    let options = eframe::NativeOptions {
        viewport: egui::ViewportBuilder::default()
            .with_title("Triptych")
            .with_app_id("triptych")
            .with_inner_size([1280.0, 800.0])
            .with_min_inner_size([900.0, 600.0])
            .with_drag_and_drop(true),
        renderer: eframe::Renderer::Wgpu,
        wgpu_options: egui_wgpu::WgpuConfiguration {
            wgpu_setup: egui_wgpu::WgpuSetup::CreateNew(setup()),
            ..egui_wgpu::WgpuConfiguration::default()
        },
        ..eframe::NativeOptions::default()
    };
    eframe::run_native("triptych", options, Box::new(|cc| Ok(Box::new(App::new(cc, start))))).map_err(|error| {
        // winit names the line of its source before the reason.
        let error = error.to_string();
        let why = error.rsplit(": ").next().unwrap_or(&error).trim_end_matches('.');
        Error::new(
            format!("No window could be opened ({why})"),
            "A display is needed, on Linux with libxkbcommon, libX11 or libwayland-client. Without one, `triptych demo` shows the whole way, and `triptych --help` every command",
        )
    })
}

/// The device that the window draws with and the engine computes on: with everything it offers, as the engine's own.
fn setup() -> egui_wgpu::WgpuSetupCreateNew {
    let mut setup = egui_wgpu::WgpuSetupCreateNew::without_display_handle();
    setup.device_descriptor = std::sync::Arc::new(|adapter| wgpu::DeviceDescriptor {
        label: Some("triptych"),
        required_features: adapter
            .features()
            .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
            .difference(wgpu::Features::all_experimental_mask()),
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..wgpu::DeviceDescriptor::default()
    });
    setup
}
