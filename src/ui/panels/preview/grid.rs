//! Pictures over two parameters, side by side.

use egui::{ComboBox, ProgressBar, ScrollArea, TextEdit, Ui, vec2};

use crate::engine::words;
use crate::ui::command::{Answer, Command, Question};
use crate::ui::grid::{Axis, Grid, Plan};
use crate::ui::studio::Studio;
use crate::ui::theme;

const CELL: f32 = 84.0;

pub struct GridView {
    plan: Plan,
}

impl Default for GridView {
    fn default() -> Self {
        let axes = [Axis::Seed, Axis::Guidance];
        let values = [axes[0].usual().into(), axes[1].usual().into()];
        Self { plan: Plan { axes, values } }
    }
}

impl GridView {
    pub fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        for (side, name) in ["Across", "Down"].into_iter().enumerate() {
            self.axis(ui, studio, side, name);
        }
        ui.horizontal_wrapped(|ui| {
            let ready = studio.opened.ready().is_some() && !studio.project.preview.prompt.is_empty();
            let button = ui.add_enabled(ready, egui::Button::new("Paint the grid"));
            if button.on_disabled_hover_text("A prompt is needed: write one under Picture").clicked() {
                out.push(Command::StartGrid(self.plan.clone()));
            }
            if let Some(grid) = &studio.preview.grid {
                if ui.button(if grid.is_live() { "Cancel the grid" } else { "Clear the grid" }).clicked() {
                    out.push(Command::StopGrid);
                }
                if ui.button("Save grid…").on_hover_text("As one PNG with labels").clicked() {
                    out.push(Command::Ask(Question {
                        title: "Save the grid as",
                        kind: Answer::NewFile,
                        ending: "png",
                        offered: "grid.png",
                        then: Command::SaveGrid,
                    }));
                }
            }
        });
        if let Some(grid) = &studio.preview.grid {
            cells(ui, grid);
        }
    }

    fn axis(&mut self, ui: &mut Ui, studio: &Studio, side: usize, name: &str) {
        ui.horizontal_wrapped(|ui| {
            let label = ui.label(name);
            let mut choices = vec![Axis::Prompt, Axis::Seed, Axis::Steps, Axis::Guidance, Axis::Sampler];
            choices.extend(studio.project.preview.init.is_some().then_some(Axis::Change));
            choices.extend(studio.project.desk.faders.iter().filter_map(|fader| {
                let card = studio.adapter(&fader.file)?;
                Some(Axis::Strength { name: card.entry.name.clone(), file: card.path.clone() })
            }));
            let before = self.plan.axes[side].clone();
            let combo = ComboBox::from_id_salt(name).selected_text(before.title()).truncate().width(130.0);
            let combo = combo.show_ui(ui, |ui| {
                for axis in choices {
                    let title = axis.title();
                    ui.selectable_value(&mut self.plan.axes[side], axis, title);
                }
            });
            combo.response.labelled_by(label.id);
            if self.plan.axes[side] != before {
                self.plan.axes[side].usual().clone_into(&mut self.plan.values[side]);
            }
            let hint = if self.plan.axes[side] == Axis::Prompt {
                "values separated by |"
            } else {
                "values, separated by commas"
            };
            let field = TextEdit::singleline(&mut self.plan.values[side]).hint_text(hint);
            ui.add(field.desired_width((ui.available_width() - 4.0).max(100.0))).labelled_by(label.id);
        });
    }
}

fn cells(ui: &mut Ui, grid: &Grid) {
    if grid.is_live() {
        ui.add(ProgressBar::new(grid.done() as f32 / grid.cells.len() as f32).desired_height(6.0));
        let left = grid.left().map_or(String::new(), |left| format!(" · {} left", words::duration(left)));
        ui.weak(format!("{} of {}{left}", grid.done(), grid.cells.len()));
    }
    ScrollArea::horizontal().id_salt("grid").show(ui, |ui| {
        egui::Grid::new("cells").spacing(vec2(4.0, 4.0)).show(ui, |ui| {
            ui.label("");
            for label in &grid.labels[0] {
                ui.add_sized([CELL, 16.0], egui::Label::new(label).truncate());
            }
            ui.end_row();
            for (label, row) in grid.labels[1].iter().zip(grid.cells.chunks(grid.labels[0].len())) {
                ui.add(egui::Label::new(label).truncate());
                for cell in row {
                    if let Some(picture) = cell {
                        ui.add(egui::Image::new(&picture.texture).fit_to_exact_size(vec2(CELL, CELL)));
                    } else {
                        let (rect, _) = ui.allocate_exact_size(vec2(CELL, CELL), egui::Sense::hover());
                        ui.painter().rect_filled(rect, 2.0, theme::palette(ui).card);
                    }
                }
                ui.end_row();
            }
        });
    });
}
