//! A table of fields as a form: what differs from its default is marked and can be put back.

use std::collections::BTreeMap;

use egui::{ComboBox, DragValue, RichText, Ui};

use crate::engine::field::{Field, Kind, Settings};
use crate::ui::theme;

/// Width of a field's name in points.
const NAME: f32 = 130.0;
/// Width of the longest unit, and of the gap before it.
const UNIT: f32 = 60.0;
/// Width of the button that resets a field, and of the gap before it.
const RESET: f32 = 34.0;

/// Shows those of `fields` that `search` finds and writes what differs from its default to `changes`.
pub fn form(ui: &mut Ui, fields: &[Field], changes: &mut BTreeMap<String, String>, search: &str) {
    let search = search.to_lowercase();
    let found =
        |field: &&Field| [field.name, field.title, field.help].iter().any(|text| text.to_lowercase().contains(&search));
    for field in fields.iter().filter(found) {
        ui.push_id(field.name, |ui| one(ui, field, changes));
    }
}

/// Takes out what none of `tables` knows: after a method was changed, it would be refused.
pub fn forget_unknown(changes: &mut BTreeMap<String, String>, tables: &[&[Field]]) {
    changes.retain(|name, _| tables.iter().copied().flatten().any(|field| field.name == name));
}

fn one(ui: &mut Ui, field: &Field, changes: &mut BTreeMap<String, String>) {
    let palette = theme::palette(ui);
    let changed = changes.contains_key(field.name);
    let mut text = changes.get(field.name).map_or(field.default, String::as_str).to_owned();
    ui.horizontal(|ui| {
        let title = RichText::new(if changed { format!("• {}", field.title) } else { field.title.to_owned() });
        let title = if changed { title.strong().color(palette.accent) } else { title };
        let height = ui.spacing().interact_size.y;
        let label = ui
            .allocate_ui_with_layout(egui::vec2(NAME, height), egui::Layout::left_to_right(egui::Align::Center), |ui| {
                ui.set_min_width(NAME);
                ui.add(egui::Label::new(title).truncate())
            })
            .inner
            .on_hover_text(about(field));
        // Whether it is changed or not, it has one name.
        label.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::Label, true, field.title));
        value(ui, field, &mut text).labelled_by(label.id).on_hover_text(about(field));
        if !field.unit.is_empty() {
            ui.weak(field.unit);
        }
        if changed {
            let button = ui.small_button("⟲").on_hover_text(format!("Back to {}", shown(field.default)));
            button.widget_info(|| {
                egui::WidgetInfo::labeled(egui::WidgetType::Button, true, format!("Reset {}", field.title))
            });
            if button.clicked() {
                field.default.clone_into(&mut text);
            }
        }
    });
    if let Err(error) = Settings::new(&[*field], [(field.name, text.as_str())]) {
        ui.label(RichText::new(error.to_string()).color(palette.error).small());
    }
    if text == field.default {
        changes.remove(field.name);
    } else if changes.get(field.name) != Some(&text) {
        changes.insert(field.name.into(), text);
    }
}

fn value(ui: &mut Ui, field: &Field, text: &mut String) -> egui::Response {
    match field.kind {
        Kind::Integer { min, max } => match text.parse::<i64>() {
            Ok(mut number) => {
                let response = ui.add(DragValue::new(&mut number).range(min..=max));
                if response.changed() {
                    *text = number.to_string();
                }
                response
            }
            // What a file holds may be no number: it is shown as it is, to be mended.
            Err(_) => ui.text_edit_singleline(text),
        },
        Kind::Number { min, max } => match text.parse::<f64>() {
            Ok(mut number) => {
                let speed = (number.abs() * 0.01).max(1e-5);
                let drag =
                    DragValue::new(&mut number).range(min..=max).speed(speed).custom_formatter(|x, _| x.to_string());
                let response = ui.add(drag);
                if response.changed() {
                    *text = number.to_string();
                }
                response
            }
            Err(_) => ui.text_edit_singleline(text),
        },
        Kind::Choice(words) => {
            let room = (ui.available_width() - RESET).clamp(40.0, 100.0);
            let combo = ComboBox::from_id_salt("value").selected_text(text.as_str()).truncate().width(room);
            combo
                .show_ui(ui, |ui| {
                    for word in words {
                        ui.selectable_value(text, (*word).to_owned(), *word);
                    }
                })
                .response
        }
        Kind::Flag => {
            let mut on = text == "true";
            let response = ui.add(egui::Checkbox::without_text(&mut on));
            response.widget_info(|| egui::WidgetInfo::selected(egui::WidgetType::Checkbox, true, on, field.title));
            if response.changed() {
                *text = on.to_string();
            }
            response
        }
        Kind::Text => {
            let unit = if field.unit.is_empty() { 0.0 } else { UNIT };
            let room = (ui.available_width() - RESET - unit).clamp(40.0, 180.0);
            ui.add(egui::TextEdit::singleline(text).desired_width(room))
        }
    }
}

fn about(field: &Field) -> String {
    format!(
        "{}\n{} in files and on the command line: {}, usually {}",
        field.help,
        field.name,
        field.kind,
        shown(field.default)
    )
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "empty" } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egui_kittest::Harness;
    use egui_kittest::kittest::Queryable as _;

    const FIELDS: &[Field] = &[
        Field {
            name: "rank",
            title: "Rank",
            help: "h",
            unit: "",
            default: "4",
            kind: Kind::Integer { min: 1, max: 9 },
        },
        Field { name: "on", title: "Mirror", help: "h", unit: "", default: "true", kind: Kind::Flag },
    ];

    #[test]
    fn what_differs_is_kept_and_can_be_put_back() {
        let changes = BTreeMap::from([("rank".to_owned(), "7".to_owned())]);
        let mut harness = Harness::new_ui_state(|ui, changes| form(ui, FIELDS, changes, ""), changes);
        harness.get_by_label("Reset Rank").click();
        harness.get_by_role_and_label(egui::accesskit::Role::CheckBox, "Mirror").click();
        harness.run();
        assert_eq!(*harness.state(), BTreeMap::from([("on".to_owned(), "false".to_owned())]));
    }

    #[test]
    fn the_search_looks_at_names_and_help() {
        let harness = Harness::new_ui(|ui| form(ui, FIELDS, &mut BTreeMap::new(), "mirr"));
        assert!(harness.query_by_label("Rank").is_none());
        assert!(harness.query_all_by_label("Mirror").next().is_some());
    }
}
