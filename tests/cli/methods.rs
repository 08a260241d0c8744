//! `triptych methods`

use serde_json::{Value, json};
use triptych::engine::diffusion::SAMPLERS;
use triptych::engine::train::config;
use triptych::engine::{adapter, merge, preview, vision};

use crate::command::Desk;

#[test]
fn methods_lists_every_row_and_every_field() {
    let desk = Desk::new();
    let (all, prose) = (desk.run("methods").result(), desk.say("methods").stdout);
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&all["adapters"]), adapter::METHODS.iter().map(|row| row.name).collect::<Vec<_>>());
    assert_eq!(names(&all["merges"]), merge::METHODS.iter().map(|row| row.name).collect::<Vec<_>>());
    assert_eq!(names(&all["samplers"]), SAMPLERS.iter().map(|row| row.name).collect::<Vec<_>>());
    let of_methods = adapter::METHODS.iter().map(|row| (row.name, row.fields));
    let of_merges = merge::METHODS.iter().map(|row| (row.name, row.fields));
    for (i, (name, fields)) in of_methods.enumerate() {
        assert_eq!(all["adapters"][i]["fields"], json!(fields), "{name}");
    }
    for (i, (name, fields)) in of_merges.enumerate() {
        assert_eq!(all["merges"][i]["fields"], json!(fields), "{name}");
    }
    assert_eq!(all["training"], json!(config::FIELDS));
    assert_eq!(all["sampling"], json!(preview::FIELDS));
    assert_eq!(all["classifiers"]["fields"], json!(vision::fields::FIELDS));
    for field in [&all["training"], &all["sampling"], &all["classifiers"]["fields"]]
        .into_iter()
        .flat_map(|fields| fields.as_array().unwrap())
    {
        for key in ["name", "title", "help", "unit", "default", "kind"] {
            assert!(!field[key].is_null(), "{key} of {field}");
        }
        assert!(prose.contains(field["help"].as_str().unwrap()), "{field}");
    }
    for (part, keys) in [
        ("adapters", vec!["adapters", "targets", "training"]),
        ("classifiers", vec!["classifiers"]),
        ("merges", vec!["merges"]),
        ("samplers", vec!["samplers", "sampling"]),
    ] {
        let result = desk.run(&format!("methods {part}")).result();
        assert_eq!(result.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    }
}
