//! What is proven, and what is measured, about an adapter beside others.

use std::path::Path;

use egui::{RichText, Ui};

use super::shown::number;
use crate::ui::cards::AdapterContent;
use crate::ui::run::Run;
use crate::ui::studio::Studio;
use crate::ui::theme;

/// A large word, and sentences below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Certificate {
    pub headline: String,
    /// Whether the headline is a proof.
    pub proven: bool,
    pub sentences: Vec<String>,
    /// One line for each other adapter.
    pub others: Vec<String>,
}

/// Of an adapter with a slot, or of any on the desk.
pub fn of_adapter(studio: &Studio, file: &Path, content: &AdapterContent) -> Certificate {
    let mut found = Certificate::default();
    if let Some(slot) = content.slot() {
        found.sentences.push(format!("Owns slot {slot} of the shared basis"));
    } else {
        found.sentences.push("Owns no slot: nothing about it is proven, only measured".into());
    }
    let (names, meeting) = match &studio.meeting {
        Some((names, Ok(meeting))) => (names, meeting),
        Some((_, Err(error))) => {
            found.sentences.push(error.what.clone());
            return found;
        }
        None => {
            found.sentences.push("How it stands to the others on the desk is being measured".into());
            return found;
        }
    };
    let Some(mine) = names.iter().position(|name| name == file) else {
        found.sentences.push("It is not on the desk, so it is compared with none".into());
        return found;
    };
    let title = |other: usize| {
        let card = names.get(other).and_then(|name| studio.adapter(name));
        card.map_or_else(String::new, |card| card.entry.name.clone())
    };
    let mut worst: Option<(f64, String)> = None;
    for pair in &meeting.pairs {
        let other = match (pair.first == mine, pair.second == mine) {
            (true, _) => pair.second,
            (_, true) => pair.first,
            _ => continue,
        };
        let largest = pair.overlap.product_max;
        found.others.push(format!("{}: {}", title(other), measured(largest)));
        if worst.as_ref().is_none_or(|(most, _)| largest > *most) {
            worst = Some((largest, title(other)));
        }
    }
    let certificate = meeting.certificate.as_ref();
    let Some((largest, name)) = worst else {
        found.sentences.push("It is alone on the desk".into());
        return found;
    };
    found.proven = certificate.is_some_and(|certificate| certificate.disjoint);
    found.headline = if found.proven { "0 (exact)".into() } else { measured(largest) };
    if let Some(certificate) = certificate {
        found.sentences.push(format!("{}: {}", certificate.basis, certificate.sentence));
    }
    found.sentences.push(if found.proven {
        format!(
            "Proven from the slots in the files. Measured on the stored numbers: at most {}, which is rounding",
            measured(largest)
        )
    } else {
        format!("Measured, not proven: the largest overlap of any layer, with {name}")
    });
    found
}

/// Of a training: by the slots that the project hands out.
pub fn of_run(studio: &Studio, run: &Run) -> Certificate {
    let Some(slot) = studio.project.slot_of(&run.out, &studio.path) else {
        return Certificate {
            sentences: vec![
                "This training owns no slot, so nothing is proven; its overlap is measured once it is on the desk"
                    .into(),
            ],
            ..Certificate::default()
        };
    };
    if !run.in_slots {
        let text = "Its columns are not those of a slot, so nothing is proven; its overlap is measured on the desk";
        return Certificate { sentences: vec![text.into()], ..Certificate::default() };
    }
    let others: Vec<String> = studio
        .project
        .slots
        .iter()
        .filter(|other| other.number != slot.number)
        .map(|other| format!("slot {}: {}", other.number, other.token))
        .collect();
    let shared = studio.project.slots.iter().find(|other| other.number == slot.number && other.file != slot.file);
    let mut sentences = vec![format!("Trains in slot {} of the shared basis", slot.number)];
    let mut headline = String::new();
    if let Some(shared) = shared {
        sentences.push(format!("{} has the same slot: train one of the two again in a free one", shared.token));
    } else if others.is_empty() {
        sentences.push("No other slot is taken yet".into());
    } else {
        headline = "0 (exact)".into();
        sentences.push(format!("No column in common with {}", others.join(", ")));
        sentences.push(
            "Proven for adapters of this project's basis by their slots; measured once the file is on the desk".into(),
        );
    }
    Certificate { proven: !headline.is_empty(), headline, sentences, others: Vec::new() }
}

fn measured(product: f64) -> String {
    if product == 0.0 { "0".into() } else { number(product) }
}

pub fn show(ui: &mut Ui, certificate: &Certificate) {
    let palette = theme::palette(ui);
    ui.spacing_mut().item_spacing.y = 2.0;
    if !certificate.headline.is_empty() {
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new("largest overlap").small());
            let color = if certificate.proven { palette.good } else { palette.accent };
            let about =
                "The largest ‖ΔWᵢ ΔWⱼᵀ‖ / (‖ΔWᵢ‖ ‖ΔWⱼ‖) of any layer: how much of what one writes the other reads";
            ui.label(RichText::new(&certificate.headline).strong().color(color)).on_hover_ui(|ui| {
                ui.label(about);
                for line in &certificate.others {
                    ui.weak(line);
                }
            });
            ui.label(RichText::new(if certificate.proven { "proven" } else { "measured" }).small());
        });
    }
    for sentence in &certificate.sentences {
        ui.label(RichText::new(sentence).small());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::device::Choice;
    use crate::engine::project::{Project, Slot};
    use crate::ui::preferences::Preferences;

    #[test]
    fn a_training_is_disjoint_from_the_other_slots() {
        let mut project = Project::new(8);
        for (number, file, token) in [(0, "a.safetensors", "<a>"), (3, "b.safetensors", "<b>")] {
            project.slots.push(Slot { number, file: file.into(), token: token.into() });
        }
        let mut studio = Studio::new(project, "/p/triptych.toml".into(), Choice::Cpu, Preferences::default());
        let run = |out: &str| Run::new("a".into(), out.into(), "a".into(), String::new(), 10);
        let found = of_run(&studio, &run("/p/b.safetensors"));
        assert!(found.proven && found.headline == "0 (exact)" && found.sentences[1].contains("slot 0: <a>"));
        assert!(!of_run(&studio, &run("/p/c.safetensors")).proven);
        studio.project.slots[0].number = 3;
        let found = of_run(&studio, &run("/p/b.safetensors"));
        assert!(!found.proven && found.sentences[1].contains("<a> has the same slot"));
    }
}
