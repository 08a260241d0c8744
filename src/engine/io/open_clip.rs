//! Names in OpenCLIP's text encoders, which single files of SD 2.x and SDXL hold, ↔ ours (transformers).
//!
//! Source: `diffusers/loaders/single_file_utils.py`, `convert_open_clip_checkpoint`; ComfyUI's `comfy/utils.py`.

use crate::engine::Result;
use crate::engine::io::safetensors::Tensor;
use crate::engine::io::{Checkpoint, Dtype};

/// Inside a layer.
const LAYER: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];
/// Queries, keys and values of a layer: in OpenCLIP one under the other in one tensor.
const FUSED: [(&str, &str); 2] = [("weight", "attn.in_proj_weight"), ("bias", "attn.in_proj_bias")];
const ROWS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
/// Outside of the layers.
const ENDS: [(&str, &str); 4] = [
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.final_layer_norm.weight", "ln_final.weight"),
    ("text_model.final_layer_norm.bias", "ln_final.bias"),
];
/// OpenCLIP multiplies by it from the right, so it is the transpose of a linear layer's weight.
const PROJECTION: (&str, &str) = ("text_projection.weight", "text_projection");
const OURS: &str = "text_model.encoder.layers.";
const THEIRS: &str = "transformer.resblocks.";

/// Our names of what a stored tensor holds: three of queries, keys and values. None of what is no weight.
pub fn ours(stored: &str) -> Vec<String> {
    let end = ENDS.iter().chain([&PROJECTION]).find(|(_, theirs)| *theirs == stored);
    if let Some((ours, _)) = end {
        return vec![(*ours).to_owned()];
    }
    let Some((n, inside)) = stored.strip_prefix(THEIRS).and_then(|rest| rest.split_once('.')) else {
        // Some files spell the projection as ours is: then it is turned already.
        return if stored == "logit_scale" { Vec::new() } else { vec![stored.to_owned()] };
    };
    if let Some((kind, _)) = FUSED.iter().find(|(_, theirs)| *theirs == inside) {
        return ROWS.map(|row| format!("{OURS}{n}.self_attn.{row}.{kind}")).into();
    }
    let renamed = LAYER.iter().find_map(|(ours, theirs)| Some((ours, inside.strip_prefix(theirs)?)));
    vec![renamed.map_or_else(|| stored.to_owned(), |(ours, rest)| format!("{OURS}{n}.{ours}{rest}"))]
}

/// The stored tensor that holds one of ours.
pub fn stored(ours: &str) -> Option<String> {
    if let Some((_, theirs)) = ENDS.iter().chain([&PROJECTION]).find(|(mine, _)| *mine == ours) {
        return Some((*theirs).to_owned());
    }
    let (n, inside) = ours.strip_prefix(OURS)?.split_once('.')?;
    let row = ROWS.iter().find_map(|row| inside.strip_prefix("self_attn.")?.strip_prefix(row)?.strip_prefix('.'));
    let fused =
        row.and_then(|kind| FUSED.iter().find(|(mine, _)| *mine == kind)).map(|(_, theirs)| (*theirs).to_owned());
    let renamed = || LAYER.iter().find_map(|(mine, theirs)| Some(format!("{theirs}{}", inside.strip_prefix(mine)?)));
    Some(format!("{THEIRS}{n}.{}", fused.or_else(renamed)?))
}

/// Whether a tensor of a single file is stored as the transpose of ours.
pub fn is_transposed(stored: &str) -> bool {
    stored.rsplit('.').next() == Some(PROJECTION.1)
}

/// The encoder's tensors under our names, from those under OpenCLIP's; the first `layers` of its layers, and its
/// projection only where `projects`.
pub fn read(file: &Checkpoint, layers: usize, projects: bool) -> Result<Checkpoint> {
    let is_kept = |stored: &str| {
        let layer = stored.strip_prefix(THEIRS).and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_none_or(|layer| layer < layers) && (projects || !stored.starts_with(PROJECTION.1))
    };
    let mut read = file.renamed(|stored| is_kept(stored).then(|| stored.to_owned()));
    for name in read.entries().keys().cloned().collect::<Vec<_>>() {
        match &ours(&name)[..] {
            rows @ [_, _, _] => read.split(&name, rows),
            [renamed] if name == PROJECTION.1 => read.transpose(&name, renamed)?,
            [renamed] => read.split(&name, std::slice::from_ref(renamed)),
            _ => read.split(&name, &[]),
        }
    }
    Ok(read)
}

/// Tensors under OpenCLIP's names, from those under ours in the order of their names: `(our name, tensor)` pairs of one
/// stored tensor become one.
pub fn fuse(mut parts: Vec<(String, Tensor)>) -> Option<Tensor> {
    let place = |name: &str| ROWS.iter().position(|row| name.contains(row)).unwrap_or(0);
    parts.sort_by_key(|(name, _)| place(name));
    let is_projection = parts.first().is_some_and(|(name, _)| name == PROJECTION.0);
    let whole = parts.into_iter().map(|(_, tensor)| tensor).reduce(|mut whole, part| {
        whole.shape[0] += part.shape[0];
        whole.bytes.extend(part.bytes);
        whole
    })?;
    Some(if is_projection { whole.transposed() } else { whole })
}

/// Number format and shape of what [`fuse`] makes of tensors whose bytes are left out.
pub fn fused_shape(parts: Vec<(String, Tensor)>) -> Option<(Dtype, Vec<usize>)> {
    let is_projection = parts.first().is_some_and(|(name, _)| name == PROJECTION.0);
    let whole = parts.into_iter().map(|(_, tensor)| tensor).reduce(|mut whole, part| {
        whole.shape[0] += part.shape[0];
        whole
    })?;
    let mut shape = whole.shape;
    if is_projection {
        shape.reverse();
    }
    Some((whole.dtype, shape))
}

/// How many layers a file's encoder has.
pub fn layers(file: &Checkpoint) -> usize {
    let has = |n: &usize| file.entries().contains_key(&format!("{THEIRS}{n}.ln_1.bias"));
    (0..file.entries().len()).take_while(has).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::io::safetensors::save;

    /// Numbers and bytes come back: rows cut apart and put together, the projection turned and turned back.
    #[test]
    fn values_go_there_and_back() {
        let numbers = |shape: &[usize], from: f32| {
            let count = shape.iter().product::<usize>();
            Tensor::new(Dtype::F16, shape, &(0..count).map(|i| from + i as f32).collect::<Vec<_>>())
        };
        let theirs = BTreeMap::from([
            ("transformer.resblocks.0.attn.in_proj_weight".to_owned(), numbers(&[6, 2], 0.0)),
            ("transformer.resblocks.0.attn.in_proj_bias".to_owned(), numbers(&[6], 50.0)),
            ("transformer.resblocks.0.ln_1.bias".to_owned(), numbers(&[2], 90.0)),
            ("transformer.resblocks.1.ln_1.bias".to_owned(), numbers(&[2], 95.0)),
            ("text_projection".to_owned(), numbers(&[2, 3], 70.0)),
            ("logit_scale".to_owned(), numbers(&[], 4.0)),
        ]);
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.safetensors");
        save(&path, &theirs, &BTreeMap::new()).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        let whole = read(&file, layers(&file), true).unwrap();
        assert_eq!(whole.f32("text_model.encoder.layers.0.self_attn.k_proj.weight").unwrap(), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(whole.f32("text_model.encoder.layers.0.self_attn.v_proj.bias").unwrap(), [54.0, 55.0]);
        assert_eq!(whole.shape("text_projection.weight").unwrap(), [3, 2]);
        assert_eq!(whole.f32("text_projection.weight").unwrap(), [70.0, 73.0, 71.0, 74.0, 72.0, 75.0]);
        let mut back: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
        for name in whole.entries().keys() {
            back.entry(stored(name).unwrap()).or_default().push((name.clone(), whole.raw(name).unwrap()));
        }
        assert_eq!(back.len(), theirs.len() - 1, "all but the scale, which is no weight");
        for (name, parts) in back {
            let tensor = fuse(parts).unwrap();
            assert_eq!((&tensor.shape, &tensor.bytes), (&theirs[&name].shape, &theirs[&name].bytes), "{name}");
        }
        let cut = read(&file, layers(&file) - 1, false).unwrap();
        assert_eq!(cut.entries().len(), 3 + 3 + 1, "neither the last layer nor the projection");
    }
}
