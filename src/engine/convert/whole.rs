//! A whole difference for each layer.

use crate::engine::io::lora_file::LoraFile;

/// Nothing is cut: products are written out.
pub fn multiply_out(file: &mut LoraFile) {
    let pairs = std::mem::take(&mut file.layers).into_iter().map(|(module, layer)| (module, layer.product()));
    let products =
        std::mem::take(&mut file.kroneckers).into_iter().map(|(module, factors)| (module, factors.product()));
    for (module, product) in pairs.chain(products) {
        let difference = file.differences.entry(module).or_default();
        (difference.weight, difference.shape) = (product.weight, product.shape);
    }
}
