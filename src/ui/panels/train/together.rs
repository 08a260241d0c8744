//! Which concepts are taught in one run, and how much each counts.

use std::path::Path;

use egui::{DragValue, RichText, Ui};

use crate::engine::project::{Together, TrainingForm};
use crate::ui::studio::Studio;
use crate::ui::widgets::called::called;

/// Beside the chosen concept: which others share its adapter, and the shares of all.
pub fn show(ui: &mut Ui, studio: &Studio, asked: &mut TrainingForm) {
    // None is taught twice, and none that has left the project.
    let chosen = asked.concept.clone();
    asked.together.retain(|other| other.concept != chosen && studio.concept(&other.concept).is_some());
    let others: Vec<_> = studio.concepts.iter().map(|card| &card.entry).filter(|e| e.folder != asked.concept).collect();
    if others.is_empty() || studio.concept(&asked.concept).is_none() {
        return;
    }
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("Together with").on_hover_text(
            "Taught in the same run into one adapter with several words. They share its slot: they can be told apart by \
             their words, but not be mixed or taken out of a merge one by one",
        );
        for entry in others {
            let at = asked.together.iter().position(|other| other.concept == entry.folder);
            let mut chosen = at.is_some();
            let response = called(ui.checkbox(&mut chosen, &entry.name), &format!("Teach {} too", entry.name));
            if response.labelled_by(label.id).changed() {
                match at {
                    Some(at) => drop(asked.together.remove(at)),
                    None => {
                        asked.together.push(Together { concept: entry.folder.clone(), repeats: 1, weight: 1.0 });
                    }
                }
            }
        }
    });
    if asked.together.is_empty() {
        (asked.repeats, asked.weight) = (1, 1.0);
        return;
    }
    let name = |folder: &Path| {
        studio.concept(folder).map_or_else(|| folder.display().to_string(), |card| card.entry.name.clone())
    };
    share(ui, &name(&asked.concept), &mut asked.repeats, &mut asked.weight);
    for Together { concept, repeats, weight } in &mut asked.together {
        share(ui, &name(concept), repeats, weight);
    }
}

fn share(ui: &mut Ui, name: &str, repeats: &mut usize, weight: &mut f32) {
    ui.horizontal(|ui| {
        ui.label(RichText::new(name).small());
        let drag = ui.add(DragValue::new(repeats).range(1..=1000).suffix(" ×"));
        called(drag, &format!("Repeats of {name}"))
            .on_hover_text("How often its pictures are shown for once of another concept's");
        let drag = ui.add(DragValue::new(weight).range(0.0..=100.0).speed(0.01).prefix("weight "));
        called(drag, &format!("Loss weight of {name}")).on_hover_text("How hard its errors pull");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    use egui_kittest::Harness;
    use egui_kittest::kittest::Queryable as _;

    use crate::engine::device::Choice;
    use crate::engine::project::{ConceptEntry, Project};
    use crate::ui::cards::{ConceptCard, Loading};
    use crate::ui::preferences::Preferences;

    fn studio() -> Studio {
        let mut project = Project::new(8);
        let entry = |name: &str| ConceptEntry {
            name: name.into(),
            folder: name.into(),
            token: format!("<{name}>"),
            class: String::new(),
        };
        project.concepts = vec![entry("robot"), entry("head")];
        project.training.concept = "robot".into();
        let mut studio = Studio::new(project, "triptych.toml".into(), Choice::Cpu, Preferences::default());
        for entry in studio.project.concepts.clone() {
            // Where folders lie is told from the card, and the panel asks for the entry's name.
            studio.concepts.push(ConceptCard {
                folder: studio.placed(&entry.folder),
                entry,
                content: Loading::Waiting,
            });
        }
        studio
    }

    #[test]
    fn another_concept_is_taught_too_and_has_a_share() {
        let studio = studio();
        let form = studio.project.training.clone();
        let mut window = Harness::new_ui_state(move |ui, form| show(ui, &studio, form), form);
        assert!(window.query_by_label("Repeats of robot").is_none(), "one alone has no share");
        window.get_by_label("Teach head too").click();
        window.run();
        let head = Together { concept: "head".into(), repeats: 1, weight: 1.0 };
        assert_eq!(window.state().together, [head]);
        for label in ["Repeats of robot", "Loss weight of robot", "Repeats of head", "Loss weight of head"] {
            window.get_by_label(label);
        }
        window.get_by_label("Teach head too").click();
        window.run();
        assert!(window.state().together.is_empty());
    }

    #[test]
    fn what_is_asked_for_has_a_lesson_for_each_concept() {
        let mut studio = studio();
        studio.project.training.repeats = 2;
        studio.project.training.together = vec![Together { concept: "head".into(), repeats: 1, weight: 0.5 }];
        let (concepts, training) = studio.asked().unwrap();
        assert_eq!(concepts.iter().map(|entry| &*entry.name).collect::<Vec<_>>(), ["robot", "head"]);
        let shares: Vec<_> = training.lessons.iter().map(|l| (&*l.token, l.repeats, l.weight)).collect();
        assert_eq!(shares, [("<robot>", 2, 1.0), ("<head>", 1, 0.5)]);
        assert!(training.out.ends_with("adapters/robot-and-head.safetensors"), "{}", training.out.display());
        studio.project.concepts[1].token = "<robot>".into();
        assert!(studio.asked().unwrap_err().advice.contains("token of its own"));
    }
}
