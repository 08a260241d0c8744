//! What a file holds, told by names and shapes of its tensors.
//!
//! Sources: `ComfyUI/comfy/model_detection.py`, `stable-diffusion.cpp/src/model.cpp`, `sd-scripts/networks/lora.py`.

use std::collections::BTreeSet;

use crate::engine::io::detect::{Family, Found, Kind};
use crate::engine::io::lora_file::{kinds, spelling};
use crate::engine::io::{Checkpoint, metadata};

/// What a file's tensors say.
pub fn tensors(file: &Checkpoint) -> Found {
    let names = || file.entries().keys().map(String::as_str);
    let starts = |start: &str| names().any(|name| name.starts_with(start));
    let holds = |piece: &str| names().any(|name| name.contains(piece));
    if ["control_model.", "controlnet_", "input_hint_block.", "lora_controlnet"].into_iter().any(starts) {
        return Found::new(Kind::ControlNet, None);
    }
    if file.metadata().contains_key(metadata::CLASSES) {
        return Found::new(Kind::Learnt, None);
    }
    let parts: BTreeSet<&str> = names().filter_map(spelling::part).collect();
    let alone = || ADAPTERS.iter().find(|(piece, _)| holds(piece)).map(|(_, what)| *what);
    if let Some(method) = kinds::title(&parts).or_else(alone) {
        let widths = file.entries().iter();
        let widths: Vec<_> =
            widths.map(|(name, entry)| (name.as_str(), entry.shape.get(1).copied().unwrap_or(0))).collect();
        return Found::new(Kind::Adapter(method), adapter_family(&widths));
    }
    if let Some(denoiser) = denoiser(file) {
        return denoiser;
    }
    if holds("decoder.conv_in.weight") && holds("encoder.conv_in.weight") {
        return Found::new(Kind::Autoencoder, None);
    }
    let layer = ["encoder.layers.0.self_attn.q_proj.", "resblocks.0.attn.", "encoder.block.0.layer.0.SelfAttention."];
    if layer.into_iter().any(holds) {
        return Found::new(Kind::TextEncoder, None);
    }
    if ["features.0.0.weight", "vit.embeddings.", "resnet.embedder."].into_iter().any(starts) {
        return Found::new(Kind::Classifier, None);
    }
    embedding(file).unwrap_or(Found::new(Kind::Unknown, None))
}

/// Pieces of an adapter's keys where it has no layer of any kind, and what it is, with its article.
const ADAPTERS: [(&str, &str); 3] = [
    ("bundle_emb.", "a word of an adapter"),
    ("layer_emb.", "a word of an adapter"),
    // Of a method of our own, such as `.mola_router`.
    ("lora_unet_", "an adapter"),
];

/// The family an adapter was made for, from its keys in any spelling and the width that each layer reads.
fn adapter_family(layers: &[(&str, usize)]) -> Option<Family> {
    const MARKS: [(&str, Family); 11] = [
        ("double_blocks", Family::Flux),
        ("single_blocks", Family::Flux),
        ("single_transformer_blocks", Family::Flux),
        ("joint_blocks", Family::Sd3),
        ("add_k_proj", Family::Sd3),
        ("lora_te2_", Family::Sdxl),
        ("text_encoder_2.", Family::Sdxl),
        ("clip_g", Family::Sdxl),
        // Only for SDXL do tools name a LoRA's layers as LDM does.
        ("lora_unet_input_blocks", Family::Sdxl),
        ("lora_unet_middle_block", Family::Sdxl),
        ("lora_unet_output_blocks", Family::Sdxl),
    ];
    let marked = MARKS.iter().find(|(mark, _)| layers.iter().any(|(name, _)| name.contains(mark)));
    let reads_text = |name: &str| {
        ["attn2_to_k", "attn2.to_k", "attn2.processor.to_k"].iter().any(|part| name.contains(part))
            && !["up.weight", "lora_B.", "alpha"].iter().any(|side| name.contains(side))
    };
    marked.map(|(_, family)| *family).or_else(|| {
        layers.iter().filter(|(name, _)| reads_text(name)).find_map(|&(_, width)| Family::of_context(width))
    })
}

/// A model, or a denoiser without the rest of one.
fn denoiser(file: &Checkpoint) -> Option<Found> {
    const LDM: &str = "model.diffusion_model.";
    let names = || file.entries().keys().map(String::as_str);
    let whole = names().any(|name| name.starts_with(LDM));
    let own = || names().map(|name| name.strip_prefix(LDM).unwrap_or(name)).zip(file.entries().values());
    let has = |start: &str| own().any(|(name, _)| name.starts_with(start));
    let axis = |name: &str| {
        let found = own().find(|(found, entry)| found.ends_with(name) && entry.shape.len() > 1);
        found.map_or(0, |(_, entry)| entry.shape[1])
    };
    let family = if ["double_blocks.", "single_blocks.", "single_transformer_blocks."].into_iter().any(has) {
        Some(Family::Flux)
    } else if ["joint_blocks.", "context_embedder."].into_iter().any(has) {
        Some(Family::Sd3)
    } else if ["label_emb.", "add_embedding."].into_iter().any(has)
        || names().any(|name| name.starts_with("conditioner.embedders."))
    {
        Some(Family::Sdxl)
    } else if names().any(|name| name.starts_with("cond_stage_model.model.")) {
        Some(Family::Sd2)
    } else if ["input_blocks.0.", "down_blocks.0.resnets."].into_iter().any(has) {
        // Models of other sizes than the known ones were made in the first one's shape.
        Some(Family::of_context(axis("attn2.to_k.weight")).unwrap_or(Family::Sd1))
    } else if whole {
        None
    } else {
        return None;
    };
    let input = ["input_blocks.0.0.weight", "conv_in.weight"];
    let channels = own().find(|(name, _)| input.contains(name)).and_then(|(_, entry)| entry.shape.get(1).copied());
    if let Some(channels @ (8 | 9)) = channels {
        return Some(Found::new(Kind::Editing(channels), family));
    }
    let part = |starts: &[&str]| names().any(|name| starts.iter().any(|start| name.starts_with(start)));
    let text = part(&["cond_stage_model.", "conditioner.embedders.", "text_encoders."]);
    let vae = part(&["first_stage_model.", "vae."]);
    Some(match (text, vae) {
        (true, true) => Found::new(Kind::Model, family),
        (true, false) => Found::new(Kind::Denoiser("its autoencoder (VAE)"), family),
        (false, true) => Found::new(Kind::Denoiser("its text encoder"), family),
        (false, false) => Found::new(Kind::Denoiser("text encoder and autoencoder"), family),
    })
}

/// Vectors of a word: A1111's, SDXL's two, or diffusers' one under the word itself.
fn embedding(file: &Checkpoint) -> Option<Found> {
    let entries = file.entries();
    let width = |name: &str| entries.get(name).and_then(|entry| entry.shape.last().copied());
    if entries.contains_key("clip_g") {
        return Some(Found::new(Kind::Embedding, Family::Sdxl));
    }
    let lone = (entries.len() == 1).then(|| entries.keys().next()).flatten();
    let lone = lone.filter(|name| entries[*name].shape.len() <= 2).and_then(|name| Family::of_context(width(name)?));
    let found = width("emb_params").or_else(|| width("clip_l"));
    (found.is_some() || lone.is_some())
        .then(|| Found::new(Kind::Embedding, found.and_then(Family::of_context).or(lone)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::engine::io::Dtype;
    use crate::engine::io::detect::detect;
    use crate::engine::io::safetensors::{Tensor, save};

    const CLIP: &str = "cond_stage_model.transformer.text_model.final_layer_norm.bias";
    /// Names with shapes, and what a file of them is.
    type Case<'a> = (&'a [(&'a str, &'a [usize])], &'a str);

    fn found(tensors: &[(&str, &[usize])]) -> Found {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let zeros = |shape: &[usize]| Tensor::new(Dtype::F16, shape, &vec![0.0; shape.iter().product()]);
        let tensors: BTreeMap<_, _> = tensors.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        detect(&path).unwrap()
    }

    #[test]
    fn each_kind_is_told_by_a_few_of_its_tensors() {
        const CONTEXT: &str = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
        let whole = |context: usize, text: &'static str, channels: usize| {
            let shapes = [vec![8, context], vec![8, channels, 3, 3], vec![1], vec![1]];
            let names =
                [CONTEXT, "model.diffusion_model.input_blocks.0.0.weight", text, "first_stage_model.quant_conv.weight"];
            let pairs: Vec<(&str, &[usize])> = names.into_iter().zip(shapes.iter().map(Vec::as_slice)).collect();
            found(&pairs).words()
        };
        assert_eq!(whole(768, CLIP, 4), "an SD 1.x checkpoint");
        assert_eq!(whole(32, CLIP, 4), "an SD 1.x checkpoint");
        assert!(whole(768, CLIP, 9).contains("takes 9 channels"));
        assert_eq!(whole(1024, "cond_stage_model.model.ln_final.bias", 4), "an SD 2.x checkpoint");
        assert_eq!(whole(2048, "conditioner.embedders.0.transformer.x.bias", 4), "an SDXL checkpoint");
        let cases: [Case<'_>; 31] = [
            (&[("features.0.0.weight", &[32, 3, 3, 3])], "an image classifier"),
            (&[("vit.embeddings.cls_token", &[1, 1, 8])], "an image classifier"),
            (
                &[("model.diffusion_model.joint_blocks.0.x", &[1])],
                "a denoiser without text encoder and autoencoder for SD 3",
            ),
            (
                &[("double_blocks.0.img_attn.qkv.weight", &[1])],
                "a denoiser without text encoder and autoencoder for Flux",
            ),
            (&[("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", &[1, 9])], "a LoRA for Flux"),
            (&[("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", &[1, 9])], "a LoRA for Flux"),
            (&[("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", &[1, 9])], "a LoRA for SD 3"),
            (&[("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", &[1, 9])], "a LoRA for SDXL"),
            (&[("lora_unet_mid_block_attentions_0_attn2_to_k.lora_down.weight", &[1, 2048])], "a LoRA for SDXL"),
            (&[("lora_unet_mid_block_attentions_0_attn2_to_k.lora_down.weight", &[1, 768])], "a LoRA for SD 1.x"),
            (&[("unet.mid_block.attentions.0.attn2.to_k.lora_A.weight", &[1, 1024])], "a LoRA for SD 2.x"),
            (&[("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", &[1, 9])], "a LoHa"),
            (&[("base_model.model.x.lora_A.weight", &[1, 9])], "a LoRA"),
            (&[("x.lora_A.default.weight", &[1, 9]), ("x.lora_magnitude_vector", &[9])], "a DoRA"),
            (&[("lora_unet_x.lora_down.weight", &[1, 9]), ("lora_unet_x.dora_scale", &[9, 1])], "a DoRA"),
            (&[("lora_unet_x.oft_blocks", &[2, 4, 4])], "an OFT"),
            (&[("base_model.model.x.boft_R", &[2, 2, 4, 4])], "a BOFT"),
            (&[("lora_unet_x.on_input", &[]), ("lora_unet_x.weight", &[9])], "an (IA)³"),
            (&[("base_model.model.x.ia3_l", &[9, 1])], "an (IA)³"),
            (&[("lora_unet_x.a1.weight", &[2, 9]), ("lora_unet_x.b1.weight", &[2, 9])], "a GLoRA"),
            (&[("lora_unet_x.diff_b", &[9])], "a full difference"),
            (&[("lora_unet_x.mola_router", &[2, 9])], "an adapter"),
            (&[("emb_params", &[2, 768])], "a textual inversion (an embedding) for SD 1.x"),
            (&[("clip_g", &[2, 1280]), ("clip_l", &[2, 768])], "a textual inversion (an embedding) for SDXL"),
            (&[("<my-cat>", &[768])], "a textual inversion (an embedding) for SD 1.x"),
            (&[("decoder.conv_in.weight", &[1]), ("encoder.conv_in.weight", &[1])], "an autoencoder (VAE) alone"),
            (&[("text_model.encoder.layers.0.self_attn.q_proj.weight", &[1])], "a text encoder alone"),
            (&[("control_model.zero_convs.0.0.weight", &[1])], "a ControlNet"),
            (&[("controlnet_cond_embedding.conv_in.weight", &[1])], "a ControlNet"),
            (
                &[("down_blocks.0.resnets.0.norm1.weight", &[1]), ("add_embedding.linear_1.bias", &[1])],
                "a denoiser without text encoder and autoencoder for SDXL",
            ),
            (&[("weight", &[3, 5])], "nothing that is known here"),
        ];
        for (tensors, words) in cases {
            let found = found(tensors);
            assert_eq!(found.words(), words);
            assert!(found.must_be_model(Path::new("x")).is_err(), "{words}");
        }
    }
}
