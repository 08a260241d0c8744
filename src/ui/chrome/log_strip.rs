//! The log below the panels: the last line, or all of them.

use egui::RichText;

use crate::ui::log::{Line, Weight};
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::called::called;

#[derive(Default)]
pub struct LogStrip {
    is_open: bool,
}

impl LogStrip {
    pub fn show(&mut self, ui: &mut egui::Ui, studio: &Studio) {
        egui::Panel::bottom("log").show(ui, |ui| {
            ui.horizontal(|ui| {
                let sign = if self.is_open { "⏷" } else { "⏵" };
                let button = ui.small_button(sign).on_hover_text("Everything that happened");
                let name = if self.is_open { "Close the log" } else { "Open the log" };
                if called(button, name).clicked() {
                    self.is_open ^= true;
                }
                match studio.log.last() {
                    Some(line) => ui.add(egui::Label::new(worded(ui, line)).truncate()),
                    None => ui.weak("Nothing has happened yet"),
                }
            });
            if self.is_open {
                egui::ScrollArea::vertical().max_height(160.0).stick_to_bottom(true).auto_shrink([false, true]).show(
                    ui,
                    |ui| {
                        for line in &studio.log.lines {
                            ui.label(worded(ui, line));
                        }
                    },
                );
            }
        });
    }
}

fn worded(ui: &egui::Ui, line: &Line) -> RichText {
    let palette = theme::palette(ui);
    let (sign, color) = match line.weight {
        Weight::Note => ("", ui.visuals().weak_text_color()),
        Weight::Warning => ("Warning: ", palette.warning),
        Weight::Error => ("Error: ", palette.error),
    };
    RichText::new(format!("{}  {sign}{}", clock(line.at), line.text)).color(color).small()
}

/// Hours, minutes and seconds of universal time: where the window stands is not known without a library of time zones.
fn clock(at: std::time::SystemTime) -> String {
    let seconds = at.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs()) % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_clock_says_whose_time_it_is() {
        assert_eq!(clock(UNIX_EPOCH + Duration::from_secs(86_400 + 3 * 3600 + 4 * 60 + 5)), "03:04:05 UTC");
    }
}
