//! The window's loop: hear what threads report, show the panels, do what they ask for, save.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use eframe::CreationContext;
use egui_tiles::{Container, Linear, LinearDir, Tile, TileId, Tiles, Tree};

use crate::engine::device::{self, Choice, WgpuSetup};
use crate::engine::model::Precision;
use crate::engine::project::Project;
use crate::ui::command::Command;
use crate::ui::panel::{PANELS, Panel};
use crate::ui::preferences::Preferences;
use crate::ui::studio::Studio;
use crate::ui::widgets::focus;
use crate::ui::work::errands::Errands;
use crate::ui::work::painter::Painter;
use crate::ui::work::{Post, Report};
use crate::ui::{act, chrome, first_start, gpu_paint, theme};

/// What a window opens on.
#[derive(Clone, Debug)]
pub struct Start {
    /// `None` opens the last project, or the starter's.
    pub project: Option<PathBuf>,
    pub device: Choice,
    /// What models are held as, where it is not to be what the preferences say.
    pub precision: Option<Precision>,
    /// Where looks and recent projects are kept.
    pub preferences: Option<PathBuf>,
    /// `None` is the queue that `triptych queue` uses.
    pub queue: Option<PathBuf>,
    /// When the process began.
    pub began: Instant,
}

pub struct App {
    pub(super) studio: Studio,
    pub(super) post: Post,
    pub(super) errands: Errands,
    pub(super) painter: Painter,
    /// The window's own GPU, where it is a real one.
    pub(super) gpu: Option<WgpuSetup>,
    /// Models that were asked for so far: only the last one counts.
    pub(super) opening: u64,
    /// What the meeting in view was last asked for.
    pub(super) meeting_of: Vec<PathBuf>,
    /// The same once the engine computes on it.
    pub(super) shared: Option<device::Opened>,
    pub(super) preferences: Option<PathBuf>,
    pub(super) queue_folder: Option<PathBuf>,
    /// Whether the project is on its way to the disk.
    pub(super) is_saving: bool,
    reports: Receiver<Report>,
    panels: Vec<Box<dyn Panel>>,
    tiles: Tree<usize>,
    chrome: chrome::Chrome,
    began: Option<Instant>,
}

impl App {
    pub fn new(cc: &CreationContext<'_>, start: Start) -> Self {
        theme::install(&cc.egui_ctx);
        if let Some(state) = &cc.wgpu_render_state {
            gpu_paint::install(&cc.egui_ctx, state);
        }
        let Start { project, device, precision, preferences, queue, began } = start;
        let looks = preferences.as_deref().map(Preferences::open).unwrap_or_default();
        let (post, reports) = Post::new(&cc.egui_ctx);
        let last = || looks.recent.iter().find(|path| path.is_file()).cloned();
        let path = project.or_else(last).map_or_else(first_start::place, Ok);
        let opened = path.and_then(|path| Ok((first_start::project(&path)?, path)));
        let (project, path, failed) = match opened {
            Ok((project, path)) => (project, path, None),
            // The window opens all the same, and says why the project did not.
            Err(error) => (Project::new(8), std::env::temp_dir().join("triptych").join("triptych.toml"), Some(error)),
        };
        let mut studio = Studio::new(project, path, device, looks);
        studio.precision = precision.unwrap_or(studio.preferences.precision);
        if let Some(error) = failed {
            studio.log.error(&error);
        }
        let mut app = Self {
            studio,
            painter: Painter::start(&post),
            errands: Errands::start(&post),
            post,
            gpu: cc.wgpu_render_state.as_ref().and_then(gpu),
            opening: 0,
            meeting_of: Vec::new(),
            shared: None,
            preferences,
            queue_folder: queue,
            is_saving: false,
            reports,
            panels: PANELS.iter().map(|row| (row.build)()).collect(),
            tiles: tiles(),
            chrome: chrome::Chrome::default(),
            began: Some(began),
        };
        app.set_looks(&cc.egui_ctx);
        app.open_device();
        app.open_cards();
        app.list_queue();
        app.recent();
        app
    }

    /// Whether something is on its way that will change what is shown.
    pub fn is_busy(&self) -> bool {
        self.studio.is_training()
            || self.studio.preview.is_painting
            || matches!(self.studio.opened, crate::ui::cards::Loading::Waiting)
    }

    fn set_looks(&self, ctx: &egui::Context) {
        ctx.set_theme(match self.studio.preferences.theme.as_str() {
            "light" => egui::ThemePreference::Light,
            "system" => egui::ThemePreference::System,
            _ => egui::ThemePreference::Dark,
        });
        ctx.set_zoom_factor(self.studio.preferences.zoom.clamp(0.5, 3.0));
    }

    fn dropped(ctx: &egui::Context) -> Vec<Command> {
        let files = ctx.input(|input| input.raw.dropped_files.clone());
        files.into_iter().map(|file| Command::Add(file.path().to_path_buf())).collect()
    }
}

impl eframe::App for App {
    fn logic(&mut self, ctx: &egui::Context, frame: &mut eframe::Frame) {
        self.studio.pace.frame(frame.info().cpu_usage);
        while let Ok(report) = self.reports.try_recv() {
            self.hear(report);
        }
        for command in Self::dropped(ctx).into_iter().chain(chrome::keys::shortcuts(ctx)) {
            self.act(command, ctx);
        }
        self.autosave(ctx);
        self.chrome.closing.hold(ctx, &self.studio);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        let mut commands = Vec::new();
        self.chrome.top(ui, &self.studio, &mut commands);
        self.chrome.log.show(ui, &self.studio);
        let mut rooms = Rooms { panels: &mut self.panels, studio: &self.studio, out: &mut commands };
        let frame = egui::Frame::central_panel(ui.style()).inner_margin(4);
        egui::CentralPanel::default().frame(frame).show(ui, |ui| self.tiles.ui(&mut rooms, ui));
        self.chrome.over(ui, &self.studio);
        focus::ring(ui);
        let looks = self.studio.preferences.clone();
        for command in commands {
            self.act(command, ui.ctx());
        }
        if self.studio.preferences != looks {
            self.set_looks(ui.ctx());
        }
        if let Some(began) = self.began.take() {
            tracing::info!("first frame after {} ms", began.elapsed().as_millis());
        }
    }

    fn on_exit(&mut self) {
        act::leave(self);
    }
}

/// Draws the panels in their tiles.
struct Rooms<'a> {
    panels: &'a mut [Box<dyn Panel>],
    studio: &'a Studio,
    out: &'a mut Vec<Command>,
}

impl egui_tiles::Behavior<usize> for Rooms<'_> {
    fn pane_ui(&mut self, ui: &mut egui::Ui, _: TileId, panel: &mut usize) -> egui_tiles::UiResponse {
        let row = &PANELS[*panel];
        egui::Frame::new().inner_margin(theme::GAP).show(ui, |ui| {
            ui.set_min_size(ui.available_size());
            chrome::hint(ui, row, self.studio, self.out);
            ui.push_id(row.name, |ui| self.panels[*panel].ui(ui, self.studio, self.out));
        });
        egui_tiles::UiResponse::None
    }

    fn tab_title_for_pane(&mut self, panel: &usize) -> egui::WidgetText {
        PANELS[*panel].title.into()
    }

    /// Tabs have a name for screen readers, and the keyboard reaches them.
    fn on_tab_button(&mut self, tiles: &mut Tiles<usize>, tile: TileId, button: egui::Response) -> egui::Response {
        if let Some(Tile::Pane(panel)) = tiles.get(tile) {
            let title = format!("{} panel", PANELS[*panel].title);
            button.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::SelectableLabel, true, &title));
        }
        button
    }

    fn gap_width(&self, _: &egui::Style) -> f32 {
        4.0
    }

    fn simplification_options(&self) -> egui_tiles::SimplificationOptions {
        egui_tiles::SimplificationOptions { all_panes_must_have_tabs: true, ..Default::default() }
    }
}

/// Library, then Train and Merge in one place, then Preview; the spectrum below.
fn tiles() -> Tree<usize> {
    let place = |name: &str| PANELS.iter().position(|row| row.name == name).unwrap_or(0);
    let mut tiles = Tiles::default();
    let pane = |tiles: &mut Tiles<usize>, names: &[&str]| {
        let panes = names.iter().map(|name| tiles.insert_pane(place(name))).collect();
        tiles.insert_tab_tile(panes)
    };
    let [library, desk, preview, spectrum] =
        [&["library"][..], &["train", "merge"], &["preview"], &["spectrum"]].map(|names| pane(&mut tiles, names));
    let mut across = Linear { children: vec![library, desk, preview], dir: LinearDir::Horizontal, ..Linear::default() };
    for (tile, share) in [(library, 0.75), (desk, 1.5), (preview, 1.25)] {
        across.shares.set_share(tile, share);
    }
    let across = tiles.insert_new(Tile::Container(Container::Linear(across)));
    let mut down = Linear { children: vec![across, spectrum], dir: LinearDir::Vertical, ..Linear::default() };
    down.shares.set_share(across, 2.3);
    let root = tiles.insert_new(Tile::Container(Container::Linear(down)));
    Tree::new("rooms", root, tiles)
}

/// The window's device, unless it only imitates a GPU.
fn gpu(state: &egui_wgpu::RenderState) -> Option<WgpuSetup> {
    let info = state.adapter.get_info();
    (info.device_type != wgpu::DeviceType::Cpu).then(|| WgpuSetup {
        instance: state.instance.clone(),
        adapter: state.adapter.clone(),
        device: state.device.clone(),
        queue: state.queue.clone(),
        backend: info.backend,
    })
}
