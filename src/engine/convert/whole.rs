//! A whole difference for each layer.

use crate::engine::io::lora_file::LoraFile;

/// Nothing is cut: products are written out.
pub fn multiply_out(file: &mut LoraFile) {
    for (module, layer) in std::mem::take(&mut file.layers) {
        let product = layer.product();
        let difference = file.differences.entry(module).or_default();
        (difference.weight, difference.shape) = (product.weight, product.shape);
    }
}
