//! A whole difference for each layer, multiplied out.

use std::path::Path;

use crate::engine::Result;
use crate::engine::convert::{Paths, about};
use crate::engine::io::lora_file::LoraFile;

pub fn write(file: &LoraFile, _: &Paths, out: &Path) -> Result<()> {
    let mut file = file.clone();
    for (module, layer) in std::mem::take(&mut file.layers) {
        let product = layer.product();
        let difference = file.differences.entry(module).or_default();
        (difference.weight, difference.shape) = (product.weight, product.shape);
    }
    about(&mut file);
    file.save(out)
}
