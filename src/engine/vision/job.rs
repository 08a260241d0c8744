//! Everything that teaching a classifier depends on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::engine::adapter::{self, Adapter, Method};
use crate::engine::concept;
use crate::engine::field::{self, Settings};
use crate::engine::io::metadata::{BASE, BASE_HASH, BASIS, METHOD, RECIPE, RUN, SLOT};
use crate::engine::io::{Dtype, safetensors};
use crate::engine::vision::Classifier;
use crate::engine::vision::dataset::DataSet;
use crate::engine::vision::fields::{FIELDS, OBSERVING};
use crate::engine::vision::probe::{self, Nothing};
use crate::engine::{Error, Result};

/// Rates for a head alone, and for a head and adapters before it.
const PROBE_RATE: f64 = 1e-2;
const ADAPTER_RATE: f64 = 2e-3;

pub struct Job<'a> {
    pub model: &'a Classifier,
    pub data: &'a DataSet,
    /// `None` teaches the head alone.
    pub method: Option<&'static Method>,
    pub method_settings: Settings,
    pub settings: Settings,
    pub context: adapter::Context,
    pub out: PathBuf,
    pub resume: bool,
}

/// The method of a name, or a probe.
pub fn method(name: &str) -> Result<Option<&'static Method>> {
    if name == probe::NAME {
        return Ok(None);
    }
    let method = adapter::method(name);
    method.map(Some).map_err(|e| Error { advice: format!("{}, or {} for the head alone", e.advice, probe::NAME), ..e })
}

/// The settings of a method and of teaching a classifier; see [`field::both`].
pub fn settings(method: Option<&Method>, changes: &[(String, String)]) -> Result<(Settings, Settings)> {
    field::both(method.map_or(&[], |method| method.fields), FIELDS, changes)
}

impl Job<'_> {
    pub fn adapter(&self) -> Result<Arc<dyn Adapter>> {
        match self.method {
            Some(method) => Ok((method.build)(&self.method_settings, &self.context)?.into()),
            None => Ok(Arc::new(Nothing)),
        }
    }

    pub fn lr(&self) -> f64 {
        match (self.settings.number("lr"), self.method) {
            (0.0, Some(method)) => ADAPTER_RATE * method.rate,
            (0.0, None) => PROBE_RATE,
            (rate, _) => rate,
        }
    }

    pub fn dtype(&self) -> Dtype {
        match self.settings.text("dtype") {
            "f16" => Dtype::F16,
            "bf16" => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn method_name(&self) -> &'static str {
        self.method.map_or(probe::NAME, |method| method.name)
    }

    /// Changes whenever anything changes that the trained numbers depend on.
    pub fn fingerprint(&self) -> Result<String> {
        let picture = |item: &super::dataset::Item| Ok(json!([concept::content_hash(&item.path)?, item.class]));
        let inputs = json!({
            "base": self.model.hash,
            "method": self.method_name(),
            "method_settings": self.method_settings,
            "settings": self.settings.without(|name| OBSERVING.contains(&name)),
            "seed": self.context.seed,
            "slot": self.context.slot,
            "block": self.context.block,
            "classes": self.data.classes,
            "pictures": self.data.items.iter().map(picture).collect::<Result<Vec<_>>>()?,
        });
        Ok(safetensors::hex(&Sha256::digest(inputs.to_string().as_bytes())))
    }

    /// What the file says of itself: a function of inputs and seed.
    pub fn metadata(&self, adapter: &dyn Adapter, run: &str) -> BTreeMap<String, String> {
        let recipe = json!({
            "method": self.method_settings,
            "training": self.settings.without(|name| OBSERVING.contains(&name)),
            "seed": self.context.seed,
            "pictures": self.data.items.len(),
        });
        let mut metadata = BTreeMap::from(
            [
                (METHOD, self.method_name().to_owned()),
                (BASE, self.model.name.clone()),
                (BASE_HASH, self.model.hash.clone()),
                (RECIPE, recipe.to_string()),
                (RUN, run.to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        if let Some((basis, slot)) = adapter.basis() {
            metadata.insert(BASIS.into(), basis.to_string());
            metadata.insert(SLOT.into(), slot.to_string());
        }
        metadata
    }
}
