//! What PEFT says of an adapter beside its tensors: in `adapter_config.json`, or in diffusers' `lora_adapter_metadata`.

use serde_json::Value;

use crate::engine::io::lora_file::paths::Adaptable;
use crate::engine::io::safetensors::Checkpoint;
use crate::engine::io::{names, peft};
use crate::engine::{Error, Result};

/// Of one layer. The default is what files without a word say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    pub alpha: Option<f32>,
    pub rank: Option<usize>,
    /// The scale is `alpha / √rank`.
    pub rank_stabilised: bool,
    /// Terms of the series that stands for Cayley's transform; `None` where it is exact.
    pub series: Option<usize>,
    /// Orthogonal blocks: 0 is a bound, and not none (kohya).
    pub always_bounded: bool,
    /// (IA)³: the layer's input is scaled.
    pub on_input: bool,
}

/// Terms where nothing says how many.
const TERMS: usize = 5;

/// The words of a file about its layers.
#[derive(Debug, Default)]
pub struct Words {
    configs: Vec<(String, Value)>,
}

impl Words {
    /// Those of the file itself, and of the folder that PEFT saved it in.
    pub fn of(file: &Checkpoint) -> Result<Self> {
        let mut configs: Vec<(String, Value)> = Vec::new();
        let beside = file.path().with_file_name(peft::CONFIG);
        if peft::is_weights(file.path()) && beside.is_file() {
            let text = std::fs::read_to_string(&beside).map_err(|e| Error::io("read", &beside, &e))?;
            let config = serde_json::from_str(&text).map_err(|e| {
                Error::new(format!("PEFT's settings cannot be read: {e}"), "Export the adapter again").at(&beside)
            })?;
            configs.push((String::new(), config));
        }
        let header = file.metadata().get("lora_adapter_metadata").and_then(|text| serde_json::from_str(text).ok());
        if let Some(Value::Object(header)) = header {
            // `unet.r`, `text_encoder.lora_alpha`: the network stands before the key.
            for network in Adaptable::ALL.map(Adaptable::in_diffusers) {
                let of = header.iter().filter_map(|(key, value)| {
                    Some((key.strip_prefix(network)?.strip_prefix('.')?.to_owned(), value.clone()))
                });
                let config: serde_json::Map<String, Value> = of.collect();
                if !config.is_empty() {
                    configs.push((format!("{network}."), Value::Object(config)));
                }
            }
        }
        Ok(Self { configs })
    }

    /// What they say of the layer that is called `path` in the file: with dots, and the network before it.
    pub fn numbers(&self, path: &str) -> Numbers {
        let path = path.strip_prefix(names::PEFT).unwrap_or(path);
        let found =
            self.configs.iter().find_map(|(network, config)| Some((path.strip_prefix(network.as_str())?, config)));
        let Some((path, config)) = found else {
            let always_bounded = path.starts_with("oft_unet_");
            return Numbers { series: Some(TERMS), always_bounded, ..Numbers::default() };
        };
        let number = |key: &str| config[key].as_f64().map(|x| x as f32);
        let is = |key: &str| config[key].as_bool().unwrap_or(false);
        let own = config["alpha_pattern"].as_object().and_then(|patterns| pattern(patterns, path));
        let exact = !config["use_cayley_neumann"].as_bool().unwrap_or(true);
        let terms = config["num_cayley_neumann_terms"].as_u64().map_or(TERMS, |terms| terms as usize);
        let feed_forward = config["feedforward_modules"].as_array();
        let ends = |name: &Value| name.as_str().is_some_and(|name| is_end(path, name));
        Numbers {
            rank: config["r"].as_u64().filter(|&r| r > 0).map(|r| r as usize),
            alpha: own.or_else(|| number("lora_alpha")).or_else(|| number("alpha")),
            rank_stabilised: is("use_rslora"),
            series: (!exact).then_some(terms),
            always_bounded: false,
            on_input: feed_forward.is_some_and(|names| names.iter().any(ends)),
        }
    }
}

/// PEFT takes the first pattern that is the path or the end of it. Its patterns are regular expressions; what tools write
/// are paths, with their dots escaped or not.
fn pattern(patterns: &serde_json::Map<String, Value>, path: &str) -> Option<f32> {
    let found = patterns.iter().find(|(pattern, _)| {
        let plain = pattern.replace('\\', "");
        is_end(path, plain.trim_start_matches('^').trim_end_matches('$'))
    });
    found.and_then(|(_, alpha)| alpha.as_f64()).map(|alpha| alpha as f32)
}

fn is_end(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
