//! Stand-in until the real one is merged.
use std::collections::BTreeMap;

use crate::engine::field::Field;

pub fn form(ui: &mut egui::Ui, fields: &[Field], changes: &mut BTreeMap<String, String>, _filter: &str) -> bool {
    for field in fields {
        let mut text = changes.get(field.name).map_or(field.default, String::as_str).to_owned();
        ui.horizontal(|ui| {
            let label = ui.label(field.title);
            if ui.text_edit_singleline(&mut text).labelled_by(label.id).changed() {
                changes.insert(field.name.into(), text);
            }
        });
    }
    false
}
